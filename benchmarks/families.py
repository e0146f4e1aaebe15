"""Which families of transformers are served exactly: a survey of tiny random models.

    python -m benchmarks.families [FAMILY ...] [--seconds 180] [--results FILE]

Each type of causal language model and of models that take images too is shrunk to a few layers with
random weights, written as a checkpoint, and served. In float32 at temperature 0, without drafts and
with n-gram drafts, its answer must be that of the library's own `generate`. The result is one of:

- equal: all answers are the library's;
- refused: planning it raises a `ModelError`, which names the reason;
- wrong: an answer differs, loading refuses what planning accepts, or either raises anything else;
- dead: the process ended, or took longer than `--seconds`;
- not built: the library itself cannot make or run a tiny model from its default configuration.

With `--results`, each result is added to a file, and families that are in it are not run again. So
a survey that was ended goes on where it stopped.
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

from engine.drafting.method import DraftNeeds
from engine.errors import ModelError
from engine.messages import Generate, SamplingParams, Tokens
from engine.model.guard import small_values
from engine.model.reduced import VOCABULARY
from engine.model.reference import Reference
from engine.planning.blueprint import Blueprint
from engine.runtime.engine import Engine
from engine.spec import DraftSpec, MemorySpec, ModelSpec, StreamSpec, TargetSpec
from engine.weights.family import is_multimodal, make_config

PROMPT = 70  # tokens, more than a tile
NEW = 24  # tokens of an answer
METHODS = ("none", "ngram")
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MROPE = {**ROPE, "mrope_section": [8, 12, 12], "partial_rotary_factor": 0.5}
# Values without which the library cannot build a model from the defaults of a configuration.
MISSING: dict[str, dict[str, Any]] = {
    "nemotron": {"num_key_value_heads": 48},
    "glm4v": {"text_config": {"rope_parameters": MROPE}},
    "glm46v": {"text_config": {"rope_parameters": MROPE}},
    "glmga": {"text_config": {"rope_parameters": MROPE}},
    "glm4v_moe": {"text_config": {"rope_parameters": MROPE}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "hunyuan_v1_dense": {"rope_parameters": ROPE, "head_dim": 128},
    "hunyuan_v1_moe": {"rope_parameters": ROPE, "head_dim": 128},
    "ministral": {"rope_parameters": ROPE, "head_dim": 128},
}


@dataclass(frozen=True)
class Outcome:
    """The result of one family, and why."""

    family: str
    result: str
    reason: str = ""


def survey(family: str, methods: Sequence[str] = METHODS) -> Outcome:
    """Serve a tiny model of a family and compare its answers with the library's.

    Args:
        methods: the drafting methods to serve it with; without one the model is only loaded.
    """
    with TemporaryDirectory(prefix="understudy-families-") as scratch:
        folder, prompt = Path(scratch), _prompt()
        try:
            config = CONFIG_MAPPING[family](**MISSING.get(family, {}))
        except Exception as error:  # the library, given its own defaults
            return Outcome(family, "not built", _said(error))
        values = json.loads(config.to_json_string(use_diff=False))
        with suppress(Exception):  # then the plan has to refuse the true sizes
            values = small_values(config, narrow=True)
        try:
            make_config(values)
        except Exception:  # its own defaults, written down, may have types that it does not take
            values = _without_null(values)
        try:
            (folder / "config.json").write_text(json.dumps(values))
            Blueprint(_spec(folder, "none"), folder).demand(DraftNeeds(scratch_rows=0), packed=True)
        except ModelError as error:
            return Outcome(family, "refused", str(error).replace(f"{folder}/", ""))
        except Exception as error:  # what a user would see as a traceback
            return Outcome(family, "wrong", _said(error))
        try:
            model = _save(values, folder)
            want = _generate(model, prompt) if methods else []
        except Exception as error:  # the library, given the defaults of any configuration
            return Outcome(family, "not built", _said(error))
        try:
            for method in methods:
                if (found := _serve(folder, method, prompt)) != want:
                    return Outcome(family, "wrong", f"{method}: {found} instead of {want}")
            if not methods:
                Engine.load(_spec(folder, "none"), lambda *_: None).close()
        except Exception as error:  # what a user would see, although the plan accepts the model
            return Outcome(family, "wrong", _said(error))
    return Outcome(family, "equal" if methods else "loaded")


def _without_null(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of an object that are not null, also in nested objects."""
    return {
        key: _without_null(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }


def _prompt() -> list[int]:
    generator = torch.Generator().manual_seed(5)
    part: list[int] = torch.randint(3, VOCABULARY, (PROMPT // 2,), generator=generator).tolist()
    return part * 2  # n-grams find drafts in it


def _save(values: dict[str, Any], folder: Path) -> Any:
    """Write a tiny checkpoint and a tokenizer, and return the library's own model."""
    config = make_config(values)
    model = Reference(config, seed=0, has_side=is_multimodal(config)).model
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=backend).save_pretrained(folder)
    return model


def _generate(model: Any, prompt: Sequence[int]) -> list[int]:
    """Return the answer of the library's own model."""
    model.generation_config.eos_token_id = None
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


def _survey_to(family: str, methods: Sequence[str], sender: Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sender.send(survey(family, methods))


def survey_apart(family: str, seconds: float, methods: Sequence[str] = METHODS) -> Outcome:
    """Return the result of `survey`, found in a process of its own within `seconds`."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=_survey_to, args=(family, methods, sender))
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


def read_results(path: Path) -> dict[str, Outcome]:
    """Return the results in a file, by family; the last one counts. A cut last line is skipped."""
    found: dict[str, Outcome] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):
                outcome = Outcome(**json.loads(line))
                found[outcome.family] = outcome
    return found


def all_families() -> list[str]:
    """Return the types of all causal language models, and of models that take images too."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES})


def main() -> None:
    """Survey the families named on the command line, or all, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("families", nargs="*", help="types of models (default: all)")
    parser.add_argument("--seconds", type=float, default=180.0, help="for each family")
    parser.add_argument("--results", type=Path, help="a file to add results to, one a line")
    options = parser.parse_args()
    kept = read_results(options.results) if options.results else {}
    counted: Counter[str] = Counter()
    for family in options.families or all_families():
        outcome = kept.get(family) or survey_apart(family, options.seconds)
        if options.results and family not in kept:
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
        counted[outcome.result] += 1
        print(f"{outcome.family:28} {outcome.result:10} {outcome.reason}", flush=True)
    print(dict(counted))


if __name__ == "__main__":
    main()
