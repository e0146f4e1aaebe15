"""What a drafting method is to the engine, and how methods are found by name.

A method drafts by a model, which costs time and memory, or by look-up, which costs neither and
joins the trees of models too (`engine.drafting.drafter`). `engine/drafting/methods/__init__.py` has
a complete example.

Loading goes in three steps: `prepare` (in the file of a method that has no `lookup`) checks that
everything is there; the method's facts say what it takes of the device's memory, and the plan
follows from that; what `prepare` returned makes the drafter once the target is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from engine.drafting.methods import available
from engine.drafting.tree import Bounds
from engine.errors import ModelError
from engine.messages import ReportProgress
from engine.spec import DraftSpec, ModelSpec

if TYPE_CHECKING:  # a method's file imports this module, and the front end reads that file
    import torch

    from engine.drafting.lookups.bets import Lookup
    from engine.drafting.model.draft_model import DraftModel
    from engine.kv.cache import KVCache
    from engine.model.decoder import Decoder
    from engine.streaming.device import Device
    from engine.streaming.ring import LayerStream
    from engine.weights.layout import UnitLayout, UnitReader
    from engine.weights.safetensors import OtherTensor


@dataclass(frozen=True)
class PlanContext:
    """What is known when a draft is planned: the target's config.json is enough."""

    draft: DraftSpec
    bounds: Bounds  # of this method's trees
    config: Any  # the target's configuration
    dtype: torch.dtype  # of the target's activations
    layouts: Sequence[UnitLayout]  # the target's units


@dataclass(frozen=True)
class DraftNeeds:
    """What a method takes of memory."""

    scratch_rows: int  # most scratch slots of the target's cache one tree needs
    draft_rows: int = 0  # slots of the target's cache for the draft's own rows, per sequence
    weight_bytes: int = 0  # on the device
    kv_bytes_per_token: int = 0  # a cache of its own, with as many slots as the target's
    making_bytes: int = 0  # of host memory while the draft is made
    # Where the draft is a low-bit copy of the target's layers: of `weight_bytes`, what each unit's
    # copy takes. A unit that is resident serves the draft too and needs no copy.
    substitute_bytes: Sequence[int] = ()


def tree_alone(context: PlanContext) -> DraftNeeds:
    """Return the needs of a method that has no weights: its tree's rows ride the target's pass."""
    return DraftNeeds(scratch_rows=context.bounds.budget)


@dataclass(frozen=True)
class MethodFacts:
    """Everything that is known of a drafting method before it is prepared.

    The plan, the forecast, `draft: auto` and the checks of a model's YAML follow from it. `needs`
    raises `ModelError` for a target that the method cannot serve.
    """

    bounds: Bounds  # of its trees, where the YAML has no numbers
    # Expected share of a tree's levels that hold the token which the target chooses. The forecast
    # assumes it; the draft's own calibration tells the truth once it runs.
    agreement: float = 0.0
    costs_draft_time: bool = False  # whether a level of the tree takes a step on the device
    proposes: bool = True  # False: plain decoding, one token a pass, whatever bounds are asked for
    is_candidate: bool = False  # whether `draft: auto` considers it
    needs: Callable[[PlanContext], DraftNeeds] = tree_alone
    keys: frozenset[str] = frozenset()  # of the YAML's `draft`: those that only some methods use
    required: Mapping[str, str] = field(default_factory=dict)  # keys it needs -> what each one is


@dataclass(frozen=True)
class DraftContext:
    """What is known when a method prepares itself."""

    method: str
    spec: ModelSpec
    config: Any  # the target's configuration
    dtype: torch.dtype
    device: Device
    identity: str  # what the target's weights are: source, revision and precision
    tokenizer: Any  # the target's
    vocab_size: int  # rows of the target's embedding
    progress: ReportProgress

    @property
    def bounds(self) -> Bounds:
        """The bounds of the trees."""
        return facts_of(self.method, self.spec.draft).bounds


@dataclass(frozen=True)
class Target:
    """The loaded target, as far as a draft may share it."""

    tensors: Mapping[str, OtherTensor]  # outside layers and head, by full name
    reader: UnitReader  # the units as the stream read them
    stream: LayerStream
    decoder: Decoder
    cache: KVCache


# Makes what drafts, once the target is loaded: a model, a look-up, or nothing.
BuildDraft = Callable[[Target], "DraftModel | Lookup | None"]


def facts_of(method: str, draft: DraftSpec | None = None) -> MethodFacts:
    """Return what is known of a method; its bounds are the numbers of `draft` where it has some.

    Raises `ModelError` for a name that no method has.
    """
    if method not in available():
        raise ModelError(
            f"draft.method: there is no method {method!r}; known: {', '.join(available())}"
        )
    facts: MethodFacts = _module(method).FACTS
    if draft is None or not facts.proposes:
        return facts
    asked = {bound.name: getattr(draft, bound.name) for bound in fields(Bounds)}
    return replace(facts, bounds=replace(facts.bounds, **{k: v for k, v in asked.items() if v}))


def candidates() -> list[str]:
    """Return the methods that `draft: auto` considers; those without draft time come first."""
    found = [name for name in available() if facts_of(name).is_candidate]
    return sorted(found, key=lambda name: facts_of(name).costs_draft_time)


def prepare(context: DraftContext) -> BuildDraft:
    """Prepare the method that the context names. Raises `ModelError` for an unknown one."""
    facts_of(context.method)
    module = _module(context.method)
    if hasattr(module, "lookup"):  # the loaded target is of no use to it
        return lambda target: module.lookup()
    build: BuildDraft = module.prepare(context)
    return build


def all_lookups() -> list[Lookup]:
    """Return one of each look-up: the methods whose file has a function `lookup`."""
    modules = [_module(name) for name in available()]
    return [module.lookup() for module in modules if hasattr(module, "lookup")]


def _module(method: str) -> Any:
    return import_module(f"engine.drafting.methods.{method}")
