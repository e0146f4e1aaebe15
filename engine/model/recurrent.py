"""The seam to the recurrent layers of transformers, whose code is used unchanged otherwise.

A modeling module of the library finds its convolution and its recurrence in its own globals.
`replace_functions` replaces these by functions that hand the rows of a tile to `engine.recurrent`
if the model was called with a batch; without one, they are the library's plain functions. They are
never those of other packages (fla, mamba-ssm, causal-conv1d, kernels of the hub).
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.model.attention import Batch
from engine.recurrent.shape import LayerShape
from engine.weights.family import text_config
from engine.weights.outline import decoder_layers

_ACTIVATIONS = {None: False, "silu": True, "swish": True}


class ShapeTracer:
    """In place of a batch: it notes the shape of a layer, which runs without values."""

    def __init__(self) -> None:
        self.shape: LayerShape | None = None

    def convolve(
        self, rows: Tensor, weight: Tensor, bias: Tensor | None, *, is_activated: bool
    ) -> Tensor:
        """Note the shape of the convolution of a layer."""
        assert self.shape is None, "a layer has several convolutions"
        channels, taps = weight.shape
        self.shape = LayerShape(channels, taps, is_activated)
        return rows

    def scan(
        self, query: Tensor, key: Tensor, value: Tensor, gates: Tensor, **kind: bool
    ) -> Tensor:
        """Note the shape of the recurrence of a layer."""
        _, heads, width = value.shape
        assert self.shape is not None and self.shape.heads == 0, "it has no convolution of its own"
        assert query.shape == key.shape, "queries and keys have other shapes"
        depth = key.shape[2]
        # transformers 5.17 repeats keys and queries for all heads that they serve.
        key_heads, rest = divmod(self.shape.channels - heads * width, 2 * depth)
        is_split = rest == 0 and key_heads > 0 and key.shape[1] % key_heads == 0
        assert is_split, "its recurrence has inputs beside the convolution's"
        self.shape = replace(
            self.shape,
            heads=heads,
            key_heads=key_heads,
            depth=depth,
            width=width,
            decays=gates.shape[1] // heads - 1,
            **kind,
        )
        return value


class _TileRows:
    """The rows of a tile in a recurrent layer, with the methods of `ShapeTracer`."""

    def __init__(self, batch: Batch) -> None:
        assert batch.layer is not None, "the layer has no number"
        state = batch.segments[0].state
        assert state is not None, "the cache has no states"
        self._layer = batch.layer
        self._memory = state.pool.layers[batch.layer]
        self._visit = batch.visit(self._memory.shape.taps)
        self._count = sum(len(batch.place(segment)[0]) for segment in batch.segments)

    def convolve(
        self, rows: Tensor, weight: Tensor, bias: Tensor | None, *, is_activated: bool
    ) -> Tensor:
        """Return the convolutions [T, C] of the rows of the tile [T, C]."""
        assert self._memory.shape.is_activated == is_activated, "the layer has changed"
        self._memory.set_filter(weight, bias)
        return self._pad(self._visit.convolve(self._layer, rows[: self._count]), len(rows))

    def scan(
        self, query: Tensor, key: Tensor, value: Tensor, gates: Tensor, **kind: bool
    ) -> Tensor:
        """Return the output [T, H, width] of the recurrence of the rows of the tile, float32."""
        step, own = key.shape[1] // self._memory.shape.key_heads, slice(self._count)
        queries, keys = query[own, ::step], key[own, ::step]
        found = self._visit.scan(self._layer, queries, keys, value[own], gates[own])
        return self._pad(found, len(value))

    def _pad(self, found: Tensor, rows: int) -> Tensor:
        """Return the output of rows, and zeros for those after the last sequence."""
        return torch.cat([found, found.new_zeros(rows - len(found), *found.shape[1:])])


def recurrent_shapes(model: Any) -> Mapping[int, LayerShape]:
    """Return the shapes of the recurrent layers of a model without weights, by their numbers.

    Each layer with a convolution runs once, without values, to find them.
    """
    found: dict[int, LayerShape] = {}
    width = text_config(model.config).hidden_size
    for number, layer in enumerate(decoder_layers(model)):
        for mixer in find_mixers(layer):
            tracer = ShapeTracer()
            dtype = next(mixer.parameters()).dtype
            with torch.no_grad():
                mixer(torch.empty(1, 2, width, dtype=dtype, device="meta"), batch=tracer)
            if tracer.shape is not None:
                assert number not in found, "a layer has two recurrences"
                found[number] = tracer.shape
    return found


def find_mixers(layer: nn.Module) -> list[nn.Module]:
    """Return the modules of a layer that have a convolution."""
    return [m for m in layer.modules() if any(isinstance(c, nn.Conv1d) for c in m.children())]


class _Seam:
    """A function in a module of the library, which calls our own if there is a batch."""

    def __init__(self, original: Callable[..., Any], own: Callable[..., Any]) -> None:
        # The library wraps its plain function to prefer that of another package.
        self._original = getattr(original, "__wrapped__", original)
        self._own = own

    def __call__(self, *inputs: Any, batch: Any = None, **named: Any) -> Any:
        batch = batch or _batch.get()
        if batch is None:
            return self._original(*inputs, **named)
        if isinstance(batch, ShapeTracer):
            return self._own(batch, *inputs, **named)
        with torch._C.DisableTorchFunction():  # of `WholeBlocks`: nothing here needs it
            return self._own(_TileRows(batch), *inputs, **named)


# The batch of a module that runs, where its code does not hand its arguments on.
_batch: ContextVar[Any] = ContextVar("_batch", default=None)


def replace_functions(model: nn.Module) -> None:
    """Replace the convolutions and recurrences in the modules of the library that a model uses."""
    for mixer in find_mixers(model):
        kinds = {one.kind for one in inspect.signature(mixer.forward).parameters.values()}
        if inspect.Parameter.VAR_KEYWORD not in kinds:  # LFM2 in transformers 5.17
            mixer.forward = partial(_with_batch, mixer, mixer.forward)
    names = {type(module).__module__ for module in model.modules()}
    for module in [sys.modules[name] for name in names if name.startswith("transformers.models.")]:
        _replace(module)


def _with_batch(
    mixer: Any, forward: Callable[..., Any], *inputs: Any, batch: Any = None, **named: Any
) -> Any:
    """Run a module while the functions that it calls find the batch, or that of `set_batch`."""
    token = _batch.set(batch or mixer.batch)
    try:
        return forward(*inputs, **named)
    finally:
        _batch.reset(token)


def _replace(module: ModuleType) -> None:
    for name, own in _FUNCTIONS.items():
        original = getattr(module, name, None)
        if original is not None and not isinstance(original, _Seam):
            setattr(module, name, _Seam(original, own))


def _causal_conv1d(
    tile: Any,
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **_: Any,
) -> Tensor:
    """Return the convolutions [1, C, T] of the rows of a tile."""
    assert activation in _ACTIVATIONS, f"a convolution with {activation}"
    is_activated = _ACTIVATIONS[activation]
    found: Tensor = tile.convolve(hidden_states[0].T, weight, bias, is_activated=is_activated)
    return found.T[None]


def _delta_rule(
    tile: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    initial_state: None = None,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the output [1, T, H, width] of the gated delta rule.

    Decays `g` are [1, T, H], or [1, T, H, depth] in Kimi delta attention.
    """
    assert initial_state is None, "the library has a state of its own"
    gates = torch.cat([g[0].float().exp().flatten(1), beta[0].float()], dim=-1)
    found: Tensor = tile.scan(
        query[0], key[0], value[0], gates, is_corrected=True, is_normalized=use_qk_l2norm_in_kernel
    )
    return found[None].to(query.dtype), None


def _mamba2(
    tile: Any,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,  # the library's names
    B: Tensor,
    C: Tensor,
    chunk_size: int = 0,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: None = None,
    *,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    z: None = None,
    return_final_states: bool = False,
    **_: Any,
) -> Tensor:
    """Return the output [1, T, H, width] of the recurrence of Mamba 2, float32."""
    assert initial_states is None and z is None and not return_final_states
    step = dt[0].contiguous() if dt_bias is None else dt[0] + dt_bias.to(dt.dtype)
    # A tile has whole blocks of values of each head, so all of them go through vectors.
    step = (F.softplus(step) if dt_softplus else step).clamp(*dt_limit).float()
    gates = torch.cat([(A.float() * step).exp(), step], dim=-1)
    rows = hidden_states[0]
    found: Tensor = tile.scan(C[0], B[0], rows, gates)
    if D is not None:
        found = found + D[:, None] * rows.float()
    return found[None]


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _causal_conv1d,
    "chunk_kimi_delta_attention": _delta_rule,
    "mamba2_chunk_scan": _mamba2,
    "torch_chunk_gated_delta_rule": _delta_rule,
}
