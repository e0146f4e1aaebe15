"""What the file of a drafting method states, and how methods are found by name.

A method drafts with a model, which takes time and memory, or by look-up, which takes neither and
also joins the trees of draft models (`engine.drafting.drafter`). The docstring of
`engine/drafting/methods/__init__.py` has a complete example.

A method is loaded in three steps. `prepare`, in the file of a method without `lookup`, checks that
everything it needs is there. Then the plan is made, which reserves the memory that the method's
facts ask for. Once the target is loaded, the function that `prepare` returned builds the draft.
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

    from engine.drafting.lookups.lookup import Lookup
    from engine.drafting.model.draft_model import DraftModel
    from engine.kv.cache import KVCache
    from engine.model.decoder import Decoder
    from engine.streaming.device import Device
    from engine.streaming.ring import LayerStream
    from engine.weights.expert_weights import ExpertWeights
    from engine.weights.layout import LayerUnits, UnitLayout, WholeLayers
    from engine.weights.safetensors import OtherTensor


@dataclass(frozen=True)
class PlanContext:
    """What a method may use to plan its memory. The target's config.json determines all of it."""

    draft: DraftSpec
    bounds: Bounds  # of this method's trees
    config: Any  # the target's transformers configuration
    dtype: torch.dtype  # of the target's activations
    layouts: Sequence[UnitLayout]  # of the target's units
    layers: Sequence[LayerUnits]  # the units of each layer
    device: torch.device | None  # None: a recent CUDA card that this machine may not have
    experts: ExpertWeights | None = None  # of its layers; None: no layer is a mixture of experts
    stored: Sequence[UnitLayout] = ()  # the units with all tensors as the checkpoint stores them


@dataclass(frozen=True)
class DraftNeeds:
    """The memory that a method takes."""

    scratch_rows: int  # slots of the target's KV cache that the rows of one tree need at most
    draft_rows: int = 0  # slots of the target's KV cache for the draft's own rows, per sequence
    # The most rows of one sequence that run through a layer of a draft model at a time.
    step_rows: int = 0
    weight_bytes: int = 0  # on the device
    kv_bytes_per_token: int = 0  # of a KV cache of its own, with as many slots as the target's
    own_rows: int = 0  # slots of that cache for the draft's own rows, per sequence
    state_bytes: int = 0  # of recurrent layers of its own, after one sequence of tokens
    node_bytes: int = 0  # that these keep of a drafted row
    node_values: int = 0  # elements of such a row that a step reads in one layer
    making_bytes: int = 0  # of host memory while the draft is made
    reading_bytes: int = 0  # of host memory while what was made is read from the cache
    # Names of all entries of the cache that hold what is made, beside the target's identity. The
    # last one has the copies by which weights may be coded.
    cache_entries: Sequence[str] = ()
    # Where the draft is a low-bit copy of the target's layers: the part of `weight_bytes` that each
    # unit's copy takes. A resident unit serves the draft too and needs no copy, unless its layer is
    # a mixture of experts.
    substitute_bytes: Sequence[int] = ()
    expert_bytes: int = 0  # the part of `substitute_bytes` for experts, of which few are read


def lookup_needs(context: PlanContext) -> DraftNeeds:
    """Return the needs of a method without weights: slots for the rows of its trees."""
    return DraftNeeds(scratch_rows=context.bounds.budget)


@dataclass(frozen=True)
class MethodFacts:
    """What a drafting method's file states about the method.

    The plan, the forecast, `draft: auto` and the checks of a model's YAML use it. `needs` raises
    `ModelError` for a target that the method cannot serve.
    """

    bounds: Bounds  # of its trees, where the YAML has no numbers
    # Expected share of a tree's levels that hold the token which the target chooses. Only forecasts
    # use it; a running draft is judged by its calibration.
    agreement: float = 0.0
    has_draft_steps: bool = False  # whether each level of a tree takes a step on the device
    drafts_ahead: bool = True  # whether these steps go on while a pass waits for weights
    is_tuned: bool = True  # whether trees may be smaller than their bounds
    has_drafts: bool = True  # False: plain decoding, one token a pass, whatever the bounds
    is_candidate: bool = False  # whether `draft: auto` considers it
    needs: Callable[[PlanContext], DraftNeeds] = lookup_needs
    keys: frozenset[str] = frozenset()  # of the YAML's `draft`, it uses; not every method does
    required: Mapping[str, str] = field(default_factory=dict)  # keys it needs -> what each one is


@dataclass(frozen=True)
class DraftContext:
    """What a method's `prepare` may use. The target is not loaded yet."""

    method: str
    spec: ModelSpec
    config: Any  # the target's transformers configuration
    dtype: torch.dtype
    device: Device
    identity: str  # names the target's weights: source, revision and precision
    tokenizer: Any  # the target's
    vocab_size: int  # rows of the target's embedding
    progress: ReportProgress

    @property
    def bounds(self) -> Bounds:
        """Return the bounds of the method's trees."""
        return facts_of(self.method, self.spec.draft).bounds


@dataclass(frozen=True)
class LoadedTarget:
    """The parts of the loaded target that a draft may share."""

    tensors: Mapping[str, OtherTensor]  # outside layers and head, by full name
    reader: WholeLayers  # the layers and the head, each read as one unit
    stream: LayerStream
    decoder: Decoder
    cache: KVCache
    num_nodes: int = 0  # drafted rows for which recurrent layers have memory
    num_states: int = 0  # sequences that have states in recurrent layers at the same time
    stored_states: int = 0  # further ones, of stored prefixes
    is_coded: bool = False  # whether weights will travel in a code that needs the draft's copies
    # Called before anything is made; raises `MakingNotPlanned` if there is no memory for it.
    check_making: Callable[[], None] = lambda: None


# Builds the draft once the target is loaded: a model, a look-up, or nothing.
BuildDraft = Callable[[LoadedTarget], "DraftModel | Lookup | None"]


def facts_of(method: str, draft: DraftSpec | None = None) -> MethodFacts:
    """Return the facts of a method, with what `draft` sets in place of its own.

    Raises `ModelError` for an unknown method.
    """
    if method not in available():
        raise ModelError(
            f"draft.method: there is no method {method!r}; choose one of {', '.join(available())}"
        )
    facts: MethodFacts = _module(method).FACTS
    if draft is None or not facts.has_drafts:
        return facts
    asked = {bound.name: getattr(draft, bound.name) for bound in fields(Bounds)}
    bounds = replace(facts.bounds, **{k: v for k, v in asked.items() if v})
    return replace(facts, bounds=bounds, drafts_ahead=draft.ahead, is_tuned=draft.tuned)


def candidates() -> list[str]:
    """Return the methods that `draft: auto` considers, those without draft steps first."""
    found = [name for name in available() if facts_of(name).is_candidate]
    return sorted(found, key=lambda name: facts_of(name).has_draft_steps)


def prepare(context: DraftContext) -> BuildDraft:
    """Prepare the method that the context names, and return the function that builds its draft.

    Raises `ModelError` for an unknown method, and where something that the method needs is missing.
    """
    facts_of(context.method)
    module = _module(context.method)
    if hasattr(module, "lookup"):  # a look-up does not use the loaded target
        return lambda target: module.lookup()
    build: BuildDraft = module.prepare(context)
    return build


def all_lookups() -> list[Lookup]:
    """Return a new look-up of each method whose file has a function `lookup`."""
    modules = [_module(name) for name in available()]
    return [module.lookup() for module in modules if hasattr(module, "lookup")]


def _module(method: str) -> Any:
    return import_module(f"engine.drafting.methods.{method}")
