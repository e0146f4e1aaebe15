"""Which families of transformers are served exactly: a survey of tiny random models.

    python -m benchmarks.families [FAMILY ...] [--seconds 60] [--json]

Each type of causal language model and of models that take images too is shrunk to a few layers with
random weights, written as a checkpoint, and served. In float32 at temperature 0, without drafts and
with n-gram drafts, its answer must be that of the library's own `generate`. The result is one of:

- equal: all answers are the library's;
- refused: loading it raises a `ModelError`, which names the reason;
- wrong: an answer differs, or loading raises anything else;
- dead: the process ended, or took longer than `--seconds`;
- not built: the library itself cannot make or run a tiny model from its default configuration.
"""

import argparse
import json
import multiprocessing
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from engine.errors import ModelError
from engine.messages import Generate, SamplingParams, Tokens
from engine.model.guard import small_values
from engine.model.reduced import VOCABULARY
from engine.model.reference import Reference
from engine.planning.blueprint import Blueprint
from engine.runtime.engine import Engine
from engine.spec import DraftSpec, MemorySpec, ModelSpec, StreamSpec, TargetSpec
from engine.weights.family import make_config

PROMPT = 70  # tokens, more than a tile
NEW = 24  # tokens of an answer
METHODS = ("none", "ngram")
# Values without which the library cannot build a model from the defaults of a configuration.
MISSING: dict[str, dict[str, Any]] = {
    "nemotron": {"num_key_value_heads": 48},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2},
}


@dataclass(frozen=True)
class Outcome:
    """The result of one family, and why."""

    family: str
    result: str
    reason: str = ""


def survey(family: str) -> Outcome:
    """Serve a tiny model of a family and compare its answers with the library's."""
    with TemporaryDirectory(prefix="understudy-families-") as scratch:
        folder, prompt = Path(scratch), _prompt()
        config = CONFIG_MAPPING[family](**MISSING.get(family, {}))
        values = json.loads(config.to_json_string(use_diff=False))
        with suppress(Exception):  # then the plan has to refuse the true sizes
            values = small_values(config, narrow=True)
        try:
            (folder / "config.json").write_text(json.dumps(values))
            Blueprint(_spec(folder, "none"), folder)  # what `understudy plan` does
        except ModelError as error:
            return Outcome(family, "refused", str(error).replace(f"{folder}/", ""))
        except Exception as error:  # what a user would see as a traceback
            return Outcome(family, "wrong", _said(error))
        try:
            want = _generate(values, folder, prompt)
        except Exception as error:  # the library, given the defaults of any configuration
            return Outcome(family, "not built", _said(error))
        try:
            for method in METHODS:
                if (found := _serve(folder, method, prompt)) != want:
                    return Outcome(family, "wrong", f"{method}: {found} instead of {want}")
        except ModelError as error:
            return Outcome(family, "refused", str(error).replace(f"{folder}/", ""))
        except Exception as error:  # what a user would see as a traceback
            return Outcome(family, "wrong", _said(error))
    return Outcome(family, "equal")


def _prompt() -> list[int]:
    generator = torch.Generator().manual_seed(5)
    part: list[int] = torch.randint(3, VOCABULARY, (PROMPT // 2,), generator=generator).tolist()
    return part * 2  # n-grams find drafts in it


def _generate(values: dict[str, Any], folder: Path, prompt: Sequence[int]) -> list[int]:
    """Write a tiny checkpoint, and return the answer of the library's own model."""
    model = Reference(make_config(values), seed=0).model
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=backend).save_pretrained(folder)
    inputs = torch.tensor([list(prompt)])
    tokens = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    answer: list[int] = tokens[0, len(prompt) :].tolist()
    return answer


def _spec(folder: Path, method: str) -> ModelSpec:
    return ModelSpec(
        id="tiny",
        target=TargetSpec(str(folder), dtype="float32"),
        draft=DraftSpec(method, tuned=False),
        device="cpu",
        memory=MemorySpec(device=1 << 30),
        stream=StreamSpec(tier="ram", slots=2),
    )


def _serve(folder: Path, method: str, prompt: Sequence[int]) -> list[int]:
    """Return the answer of our engine."""
    params = SamplingParams(temperature=0.0, max_tokens=NEW, ignore_eos=True)
    found: list[int] = []
    with closing(Engine.load(_spec(folder, method), lambda *_: None)) as engine:
        engine.add(Generate("r", tuple(prompt), params, 1, ""))
        while engine.has_work():
            for event in engine.step():
                if not isinstance(event, Tokens):
                    raise RuntimeError(str(event))
                found += event.ids
    return found


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _survey_to(family: str, sender: Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sender.send(survey(family))


def survey_apart(family: str, seconds: float) -> Outcome:
    """Return the result of a family, found in a process of its own within `seconds`."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=_survey_to, args=(family, sender))
    child.start()
    sender.close()
    try:
        if receiver.poll(seconds):
            found: Outcome = receiver.recv()
            return found
        return Outcome(family, "dead", f"not finished after {seconds:.0f} s")
    except EOFError:
        return Outcome(family, "dead", "the process ended")
    finally:
        child.kill()
        child.join()


def main() -> None:
    """Survey the families named on the command line, or all, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("families", nargs="*", help="types of models (default: all)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each family")
    parser.add_argument("--json", action="store_true", help="one JSON object for each family")
    options = parser.parse_args()
    every = {**MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, **MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES}
    counted: Counter[str] = Counter()
    for family in options.families or sorted(every):
        outcome = survey_apart(family, options.seconds)
        counted[outcome.result] += 1
        line = f"{outcome.family:28} {outcome.result:10} {outcome.reason}"
        print(json.dumps(asdict(outcome)) if options.json else line, flush=True)
    if not options.json:
        print(dict(counted))


if __name__ == "__main__":
    main()
