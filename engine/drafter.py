"""What a drafting method is to the engine, and how methods are found.

Loading goes in two steps, since the plan stands between them: `prepare` (in the method's file)
reads what it needs to know and says what it will take of the device's memory; `build` makes the
drafter once the target stands.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol

import torch
from torch import Tensor

import engine.drafters
from engine.decoder import Decoder
from engine.errors import ModelError
from engine.growth import Bounds
from engine.kv_cache import KVCache
from engine.layout import UnitReader
from engine.sequence import Sequence
from engine.spec import ModelSpec
from engine.stream import LayerStream
from engine.tree import DraftTree

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DraftNeeds:
    """What a method takes of the device's memory."""

    tree_rows: int  # most rows of one tree
    scratch_rows: int  # most scratch slots of the target's cache one sequence needs
    weight_bytes: int = 0
    kv_bytes_per_token: int = 0  # a cache of its own, with as many slots as the target's


@dataclass(frozen=True)
class DraftContext:
    """What is known when a method prepares itself."""

    spec: ModelSpec
    config: Any  # the target's configuration
    dtype: torch.dtype
    device: torch.device
    units: UnitReader  # the target's units
    identity: str  # what the target's weights are: source, revision and precision
    tokenizer: Any  # the target's
    vocab_size: int  # rows of the target's embedding
    progress: Progress

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


class Drafter(Protocol):
    """Proposes a tree for each sequence; what it proposes never changes what is emitted."""

    def propose(self, sequences: Seq[Sequence], rooms: Seq[int]) -> list[DraftTree]:
        """A tree for each decoding sequence, of at most `rooms[i]` rows; row 0 is its last token.

        Every sequence has scratch slots for as many rows in the target's cache.
        """

    def commit(self, sequence: Sequence, rows: Seq[int]) -> None:
        """The tree rows of the last proposal that were accepted, from the root down."""

    def release(self, sequence: Sequence) -> None:
        """The sequence ended or was paused: forget what is kept for it."""


class DraftMethod(Protocol):
    """A prepared method, which waits for the target."""

    @property
    def needs(self) -> DraftNeeds: ...

    def build(self, target: Target) -> Drafter: ...


def available() -> list[str]:
    """The names of all drafting methods."""
    return sorted(module.name for module in iter_modules(engine.drafters.__path__))


def prepare(method: str, context: DraftContext) -> DraftMethod:
    """The method of this name. Raises `ModelError` for an unknown one."""
    if method not in available():
        raise ModelError(
            f"draft.method: there is no method {method!r}; known: {', '.join(available())}"
        )
    module = import_module(f"engine.drafters.{method}")
    return module.prepare(context)  # type: ignore[no-any-return]  # found by name
