"""Replace the library's modules by fused ones where both give the same, within rounding.

Nothing is decided by the name of a family. A few rows run through the library's modules, and what
each module gets and returns is kept. A module is recognized by the names of its parts, and its
replacement has to return the same. What differs stays as it is.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

import torch
from torch import Tensor, nn

from engine.drafting.model.fused.modules import FusedAttention, FusedLayer, FusedMlp, FusedNorm
from engine.drafting.model.fused.operations import AttentionRule, NormRule, Operations
from engine.errors import ModelError, printable
from engine.kv.cache import KVCache
from engine.kv.page_pool import PagePool
from engine.kv.page_table import PageTable
from engine.model.attention import Batch, LayerRule
from engine.model.decoder import Decoder, StreamedLayer
from engine.model.library import AttentionCall, recorded_attention, set_batch
from engine.model.segment import Segment
from engine.recurrent.states import SequenceState
from engine.weights.family import text_config
from engine.weights.formats.joined import beside

log = logging.getLogger(__name__)

# The norm of a difference over that of the result. Products in bfloat16 round their inputs and
# results to 0.4 %; any other difference is far larger.
TOLERANCE = 0.02
SUM_ROUNDING = 2**-7  # of a hidden state in bfloat16, whose sums are rounded twice
_ROWS = 8
_DISTANCE = 16  # of positions, in models without a window
_ATTENTION = ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"qkv_proj", "o_proj"})
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = ({"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"})
_ACTIVATIONS = ("act_fn", "activation_fn")
_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}


def fuse(
    decoder: Decoder,
    cache: KVCache,
    operations: Operations,
    numbers: Collection[int] | None = None,
) -> None:
    """Replace modules of a decoder, whose weights are on its device, by fused ones.

    A log line says which modules of layers stay as they are.

    Args:
        cache: the decoder's, of which some slots are used during the call.
        operations: what the fused modules consist of.
        numbers: the layers; None: all, and what is outside of them. They were not fused before.

    Raises `ModelError` if the cache has no free page.
    """
    layers = [o for n, o in enumerate(decoder.layers) if numbers is None or n in numbers]
    with torch.no_grad(), _table(cache) as table:
        slots = cache.slots(table)[:_ROWS]
        calls, attention = _run_library(decoder, layers, cache.pool, slots, table.state)
        fuser = _Fuser(operations, calls, attention)
        for layer in layers:
            layer.replace_inner(fuser.fuse_layer(layer.inner))
        others = [*decoder.decoder.named_children()] if numbers is None else []
        for name, module in others:
            if (rule := fuser.norm_rule(module)) is not None:
                decoder.decoder.set_submodule(name, FusedNorm(operations, rule))
    if fuser.kept:
        log.info("the draft runs modules of the library: %s", ", ".join(sorted(fuser.kept)))


@contextmanager
def _table(cache: KVCache) -> Iterator[PageTable]:
    """Lend a table with slots for `_ROWS` tokens. Raises `ModelError` if there are none."""
    table = PageTable()
    try:
        if not cache.reserve(table, _ROWS):
            raise ModelError(f"the KV cache has no room for {_ROWS} tokens")
        yield table
    finally:
        cache.close(table)


@dataclass(frozen=True)
class _Call:
    """What a module was called with, and what it returned."""

    args: tuple[Any, ...]
    arguments: dict[str, Any]
    result: Any

    @property
    def rows(self) -> Tensor:
        """The hidden state, which is the first argument."""
        rows: Tensor = self.args[0] if self.args else self.arguments["hidden_states"]
        return rows

    @property
    def rotation(self) -> Tensor | None:
        """The cosines that attention was given, by name or after the hidden state."""
        later = self.args[1] if len(self.args) > 1 else None
        rotation = self.arguments.get("position_embeddings", later)
        return rotation[0] if isinstance(rotation, tuple) else None

    @property
    def output(self) -> Tensor:
        """The tensor that was returned, which may be the first of a tuple."""
        output: Tensor = _first(self.result)
        return output


_Calls = dict[nn.Module, _Call]


def _run_library(
    decoder: Decoder,
    chosen: Sequence[StreamedLayer],
    pool: PagePool,
    slots: Tensor,
    state: SequenceState | None,
) -> tuple[_Calls, dict[nn.Module, AttentionCall]]:
    """Run some rows through a decoder; return the last call of each module, and of attention.

    Args:
        chosen: the layers whose calls are recorded.
    """
    far = getattr(text_config(decoder.model.config), "sliding_window", None) or _DISTANCE
    positions = [0, 1, 2, far - 1, far, far + 1, 2 * far, 2 * far + 2]  # of `_ROWS` tokens
    count = len(slots)
    # Kernels of attention are tried with a mask; a state that changes at once takes none.
    mask = None
    if state is None:
        mask = torch.ones(count, count, dtype=torch.bool, device=decoder.device).tril()
    tokens = [index * (decoder.embedding.num_embeddings - 1) // count for index in range(count)]
    segment = Segment(
        first=0,
        count=count,
        start=0,
        slots=slots,
        positions=torch.tensor(positions, device=decoder.device),
        mask=mask,
        cancelled=Event(),
        state=state,
    )
    batch = Batch(pool, (segment,), range(count), strict=False)
    layers = [layer.inner for layer in chosen]
    modules = [*decoder.decoder.children(), *(m for layer in layers for m in layer.modules())]
    with recorded_attention(layers) as attention, _recorded(modules) as calls:
        decoder.forward(tokens, positions, batch)
    return calls, attention


@contextmanager
def _recorded(modules: list[nn.Module]) -> Iterator[_Calls]:
    """Record the last call of each of these modules within the block."""
    calls: _Calls = {}
    hooks = []

    def begin(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        # Layers overwrite the hidden state.
        calls[module] = _Call(
            tuple(map(_copied, args)), {k: _copied(v) for k, v in named.items()}, None
        )

    def end(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        calls[module] = replace(calls[module], result=_copied(result))

    for module in modules:
        hooks.append(module.register_forward_pre_hook(begin, with_kwargs=True))
        hooks.append(module.register_forward_hook(end))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


class _Fuser:
    """Builds replacements for modules, and returns those that give what the modules gave."""

    def __init__(
        self,
        operations: Operations,
        calls: _Calls,
        attention: dict[nn.Module, AttentionCall],
    ) -> None:
        self.kept: set[str] = set()  # classes of modules that could not be replaced
        self._operations = operations
        self._calls = calls
        self._attention = attention

    def fuse_layer(self, layer: nn.Module) -> nn.Module:
        """Return a layer that is fused as a whole, or the same layer with parts that are fused."""
        rules: dict[str, NormRule] = {}
        fused: dict[str, nn.Module] = {}
        for name, module in layer.named_children():
            replacement: nn.Module | None = self._attention_of(module) or self._mlp_of(module)
            if (rule := self.norm_rule(module)) is not None:
                rules[name], replacement = rule, FusedNorm(self._operations, rule)
            if replacement is not None:
                fused[name] = replacement
            elif [*module.parameters(), *module.buffers()]:
                self.kept.add(type(module).__name__)
        with_weights = {n for n, m in layer.named_children() if n in fused or [*m.parameters()]}
        if fused.keys() == with_weights == _LAYER:
            attention, mlp = fused["self_attn"], fused["mlp"]
            if isinstance(attention, FusedAttention) and isinstance(mlp, FusedMlp):
                norms = rules["input_layernorm"], rules["post_attention_layernorm"]
                whole = FusedLayer(self._operations, layer, norms, attention, mlp)
                if self._is_same_layer(layer, whole):
                    return whole
        self.kept.add(type(layer).__name__)
        for name, module in fused.items():
            layer.set_submodule(name, module)
        return layer

    def norm_rule(self, module: nn.Module) -> NormRule | None:
        """Return the rule that gives what a module gives, if it is a norm."""
        weight = getattr(module, "weight", None)
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(epsilon, float):
            return None
        if [*module.children()] or len([*module.parameters()]) != 1:
            return None
        for offset in (0.0, 1.0):
            rule = NormRule(weight.detach(), epsilon, offset)
            if self._is_same(module, FusedNorm(self._operations, rule)):
                return rule
        return None

    def _attention_of(self, module: nn.Module) -> FusedAttention | None:
        """Return the replacement of an attention module; None if there is none."""
        parts, call = dict(module.named_children()), self._attention.get(module)
        names = parts.keys() - _HEAD_NORMS
        rule = getattr(module, "rule", None)
        if call is None or names not in _ATTENTION or not isinstance(rule, LayerRule):
            return None
        if rule.is_shared or rule.chunk is not None or rule.query_scale is not None:
            return None
        width = call.query[-1]
        if {call.key[-1], call.value[-1]} != {width} or call.arguments.get("s_aux") is not None:
            return None
        norms = [self.norm_rule(parts[name]) for name in sorted(_HEAD_NORMS & parts.keys())]
        if any(norm is None or norm.weight.shape != (width,) for norm in norms):
            return None
        key_norm, query_norm = norms if len(norms) == 2 else (None, None)
        inputs = [
            parts[name] for name in ("q_proj", "k_proj", "v_proj", "qkv_proj") if name in parts
        ]
        rotation = self._calls[module].rotation
        heads = call.query[1] + call.key[1] + call.value[1]
        made = sum(self._calls[part].output.shape[-1] for part in inputs)
        if rotation is None or rotation.shape[-1] != width or made != heads * width:
            return None  # rotated in part or not at all, or with a gate
        attention = AttentionRule(
            layer=rule.layer,
            num_heads=call.query[1],
            num_kv_heads=call.key[1],
            width=width,
            scaling=call.arguments["scaling"],
            sliding_window=call.arguments.get("sliding_window"),
            softcap=call.arguments.get("softcap"),
            query_norm=query_norm,
            key_norm=key_norm,
        )
        fused = FusedAttention(self._operations, beside(inputs), parts["o_proj"], attention, rule)
        set_batch([fused], module.batch)
        return fused if self._is_same(module, fused) else None

    def _mlp_of(self, module: nn.Module) -> FusedMlp | None:
        """Return the replacement of an MLP; None if there is none."""
        parts = dict(module.named_children())
        activations = [parts.pop(name) for name in _ACTIVATIONS if name in parts]
        if parts.keys() not in _MLP or len(activations) != 1:
            return None
        if any(isinstance(part, nn.ModuleList) for part in parts.values()):
            return None  # layers of experts
        inputs = [parts[name] for name in ("gate_proj", "up_proj", "gate_up_proj") if name in parts]
        fused = FusedMlp(self._operations, beside(inputs), parts["down_proj"], activations[0])
        return fused if self._is_same(module, fused) else None

    def _is_same(self, module: nn.Module, other: nn.Module) -> bool:
        """Return whether another module gives what a module has given."""
        call = self._calls.get(module)
        if call is None:
            return False
        try:
            want, found = call.output, _first(other(*call.args, **call.arguments))
        except Exception as error:  # Triton raises errors of many classes
            why = printable(f"{type(error).__name__}: {error}", 300)
            log.warning("drafts keep %s of the library: %s", type(module).__name__, why)
            return False
        return found.shape == want.shape and _size(found - want) <= TOLERANCE * _size(want)

    def _is_same_layer(self, layer: nn.Module, other: nn.Module) -> bool:
        """Return whether another module gives what a layer has given."""
        call = self._calls[layer]
        before, want = call.rows, call.output
        found = other(before.clone(), *call.args[1:], **call.arguments)
        most = TOLERANCE * _size(want - before) + SUM_ROUNDING * _size(want)
        return found.shape == want.shape and _size(found - want) <= most


def _size(difference: Tensor) -> float:
    return float(torch.linalg.vector_norm(difference.float()))


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result
