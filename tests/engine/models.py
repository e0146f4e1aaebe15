"""Engines with tiny checkpoints, and the answers that requests get from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakKeyDictionary

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.drafting.model.draft_model import DraftModel
from engine.messages import Failed, Generate, Origin, SamplingParams, Stats, TokenLogprob, Tokens
from engine.runtime.engine import Engine
from engine.spec import DraftSpec, MemorySpec, ModelSpec, StreamSpec, TargetSpec
from tests.engine.checkpoints import save_tiny

VOCAB = 128
PLAIN = DraftSpec("none")
# Not tuned, so that tests have drafts: a target this small is faster without them.
SMALL: dict[str, Any] = {"depth": 4, "width": 3, "branch": 3, "budget": 24, "tuned": False}
SUBSPEC = DraftSpec("subspec", **SMALL)

_SCRATCH = TemporaryDirectory(prefix="understudy-models-")  # removed at exit

_loaded: list[Engine] = []
_hooks: "WeakKeyDictionary[Engine, Hooks]" = WeakKeyDictionary()

Answers = dict[tuple[str, int], "Answer"]


@dataclass
class Hooks:
    """Functions that a test runs before each unit, given its number, and for reported prompts."""

    on_unit: Callable[[int], None] | None = None
    on_prompt: Callable[[str, int], None] | None = None
    calls: int = 0

    def on_pass_progress(self) -> None:
        self.calls += 1
        if self.on_unit is not None:
            self.on_unit(self.calls)

    def report_prompt(self, request_id: str, done: int) -> None:
        if self.on_prompt is not None:
            self.on_prompt(request_id, done)


@dataclass
class Answer:
    """Everything that one choice of a request has emitted."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    finish: str | None = None
    stats: Stats | None = None

    def take(self, tokens: Tokens) -> None:
        """Add what one pass emitted. Nothing may follow the finish."""
        assert self.finish is None, "nothing comes after the finish"
        self.ids += tokens.ids
        self.text += tokens.text
        self.logprobs += tokens.logprobs
        self.prompt_logprobs += tokens.prompt_logprobs
        self.origins += tokens.origins
        self.finish, self.stats = tokens.finish, tokens.stats

    @property
    def exact(self) -> tuple[object, ...]:
        """The parts that must not depend on draft, batch or cache."""
        return self.ids, self.text, self.logprobs, self.prompt_logprobs, self.finish


@cache
def checkpoint(
    family: str, dtype: torch.dtype = torch.float32, seed: int = 0, layers: int = 3
) -> Path:
    """Return the folder of a tiny checkpoint, whose tokenizer has one token for each byte."""
    name = f"{family}-{dtype}-{seed}-{layers}"
    folder = save_tiny(
        family, Path(_SCRATCH.name) / name, dtype=dtype, seed=seed, vocab_size=VOCAB, layers=layers
    )
    add_tokenizer(folder)
    return folder


def add_tokenizer(folder: Path) -> None:
    """Write a tokenizer with one token for each of the first `VOCAB` bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:VOCAB]
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=backend).save_pretrained(folder)


def model_spec(folder: Path, draft: DraftSpec, **changes: Any) -> ModelSpec:
    """Return a spec that streams every unit from RAM, so that tests include the ring."""
    spec = ModelSpec(
        id="tiny",
        target=TargetSpec(str(folder)),
        draft=draft,
        device="cpu",
        memory=MemorySpec(device=256 << 20),
        stream=StreamSpec(tier="ram", slots=2),
    )
    return replace(spec, **changes)


def load(folder: Path, draft: DraftSpec, **changes: Any) -> Engine:
    """Return a loaded engine, which conftest.py closes at the end of the test."""
    own = Hooks()
    spec = model_spec(folder, draft, **changes)
    engine = Engine.load(spec, lambda step: None, own.on_pass_progress, own.report_prompt)
    _loaded.append(engine)
    _hooks[engine] = own
    return engine


def hooks(engine: Engine) -> Hooks:
    """Return the hooks of an engine that `load` made."""
    return _hooks[engine]


def close_all() -> None:
    """Close every engine loaded since the last call: their threads would outlive the test."""
    while _loaded:
        _loaded.pop().close()


def request(
    name: str, prompt: Sequence[int], *, n: int = 1, key: str = "", **params: Any
) -> Generate:
    defaults: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}
    return Generate(name, tuple(prompt), SamplingParams(**{**defaults, **params}), n, key)


def run(engine: Engine, requests: Sequence[Generate]) -> Answers:
    """Serve requests together, and return their answers."""
    for message in requests:
        engine.add(message)
    return drain(engine)


def alone(engine: Engine, requests: Sequence[Generate]) -> Answers:
    """Serve requests one after the other, and return their answers."""
    return {key: answer for message in requests for key, answer in run(engine, [message]).items()}


def exact(answers: Answers) -> dict[tuple[str, int], tuple[object, ...]]:
    """Return the parts of every choice that must not depend on draft, batch or cache."""
    return {key: answer.exact for key, answer in answers.items()}


def draft_model(engine: Engine) -> DraftModel:
    """Return the draft model of this engine."""
    model = engine._drafting._model
    assert model is not None, "the engine has no draft model"
    return model


def draft_ahead(engine: Engine, steps: int = 3) -> None:
    """Make the engine draft `steps` steps while it waits for each unit, as over a slow link."""
    engine._drafting.policy.draft.observe(1, 1e-6)
    stream: Any = engine._loaded.stream
    own = stream.unit

    def unit(index: int, on_wait: Any = None) -> Any:
        for _ in range(steps):
            engine._drafting.draft_ahead(1e9)
        return own(index, on_wait)

    stream.unit = unit


def drain(engine: Engine) -> Answers:
    """Run steps until no work is left, and return the answers."""
    answers: Answers = {}
    while engine.has_work():
        for event in engine.step():
            assert not isinstance(event, Failed), event
            answers.setdefault((event.request_id, event.choice), Answer()).take(event)
    return answers


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (length,), generator=generator).tolist()
