"""What a drafting method is to the engine, and how methods are found.

A method drafts by a model, which costs time and memory, or by look-up, which costs neither and
joins the trees of models too (`engine.drafting.drafter`).

Loading goes in two steps, since the plan stands between them: `prepare` (in the method's file)
reads what it needs to know and says what it will take of the device's memory; `build` makes the
drafter once the target stands.
"""

from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol

import torch
from torch import Tensor

import engine.drafting.methods
from engine.drafting.growth import Bounds
from engine.drafting.lookups.bets import Lookup
from engine.drafting.model.draft_model import DraftModel
from engine.errors import ModelError
from engine.kv.cache import KVCache
from engine.messages import ReportProgress
from engine.model.decoder import Decoder
from engine.spec import ModelSpec
from engine.streaming.device import Device
from engine.streaming.ring import LayerStream
from engine.weights.layout import UnitReader


@dataclass(frozen=True)
class DraftNeeds:
    """What a method takes of the device's memory."""

    tree_rows: int  # most rows of one tree
    scratch_rows: int  # most scratch slots of the target's cache one tree needs
    draft_rows: int = 0  # slots of the target's cache for the draft's own rows, per sequence
    weight_bytes: int = 0
    kv_bytes_per_token: int = 0  # a cache of its own, with as many slots as the target's


@dataclass(frozen=True)
class DraftContext:
    """What is known when a method prepares itself."""

    spec: ModelSpec
    config: Any  # the target's configuration
    dtype: torch.dtype
    device: Device
    units: UnitReader  # the target's units
    identity: str  # what the target's weights are: source, revision and precision
    tokenizer: Any  # the target's
    vocab_size: int  # rows of the target's embedding
    progress: ReportProgress

    def bounds(self, default: Bounds) -> Bounds:
        """The tree's bounds: the YAML's numbers where there are some, else the method's."""
        draft = self.spec.draft
        return Bounds(
            depth=draft.depth or default.depth,
            width=draft.width or default.width,
            branch=draft.branch or default.branch,
            budget=draft.budget or default.budget,
        )


@dataclass(frozen=True)
class Target:
    """The loaded target, as far as a draft may share it."""

    tensors: dict[str, Tensor]  # outside layers and head, by full name
    reader: UnitReader  # the units as the stream read them
    stream: LayerStream
    decoder: Decoder
    cache: KVCache


class DraftMethod(Protocol):
    """A prepared method, which waits for the target."""

    @property
    def needs(self) -> DraftNeeds: ...

    @property
    def bounds(self) -> Bounds: ...

    def build(self, target: Target) -> DraftModel | Lookup | None:
        """What drafts: a model, a look-up, or nothing."""


@dataclass(frozen=True)
class LookupMethod:
    """A look-up as a method of its own: it takes nothing of the device."""

    lookup: Lookup
    bounds: Bounds

    @property
    def needs(self) -> DraftNeeds:
        return DraftNeeds(tree_rows=self.bounds.budget, scratch_rows=self.bounds.budget)

    def build(self, target: Target) -> Lookup:
        return self.lookup


def available() -> list[str]:
    """The names of all drafting methods."""
    return sorted(module.name for module in iter_modules(engine.drafting.methods.__path__))


def prepare(method: str, context: DraftContext) -> DraftMethod:
    """The method of this name. Raises `ModelError` for an unknown one."""
    if method not in available():
        raise ModelError(
            f"draft.method: there is no method {method!r}; known: {', '.join(available())}"
        )
    return _module(method).prepare(context)  # type: ignore[no-any-return]  # found by name


def all_lookups() -> list[Lookup]:
    """One of each look-up: the methods whose file has a function `lookup`."""
    modules = [_module(name) for name in available()]
    return [module.lookup() for module in modules if hasattr(module, "lookup")]


def _module(method: str) -> Any:
    return import_module(f"engine.drafting.methods.{method}")
