"""transformers' own model, its layers fed by a weight stream, its rows cut into tiles.

The model is built on the `meta` device and keeps its own `forward`: embedding scale, rope, soft
caps and logit scales stay the library's business. Each entry of its layer list is replaced by a
`StreamedLayer` that borrows the weights once, runs the inner layer over all rows in tiles
(layer-major: a prompt of any length crosses the link once), and gives them back.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.modeling_outputs import MoeModelOutputWithPast

from engine.model.attention import ATTENTION, Batch, attend
from engine.model.experts import EXPERTS, DeferredExperts, add_experts, apply_experts
from engine.model.rope import LengthGroupedRotary, original_length
from engine.spec import TILE
from engine.weights.layout import LayerUnits, whole_layers


class PassCancelled(Exception):
    """No live row is left: the pass unwinds at the layer border."""


class Weights(Protocol):
    """Where a decoder borrows its units: those of the layers in order, then the head."""

    def unit(self, index: int) -> AbstractContextManager[Mapping[str, Tensor]]: ...


class StreamedLayer(nn.Module):
    """A layer whose weights are there only while it runs."""

    def __init__(
        self,
        inner: nn.Module,
        units: LayerUnits,
        weights: Weights,
        tile: int | None,
        on_border: Callable[[], None],
    ) -> None:
        super().__init__()
        self.inner = inner
        self.units = units
        self.weights = weights
        self.tile = tile
        self.on_border = on_border
        self.experts: DeferredExperts | None = None
        if units.slices:
            self.experts = DeferredExperts(inner.get_submodule(units.experts))
            inner.set_submodule(units.experts, self.experts)
            self._expert_binder = Binder(self.experts.inner)
        self._binder = Binder(inner)

    def __getattr__(self, name: str) -> Any:
        # Models read attributes of their layers (attention types and the like).
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, hidden: Tensor, *, batch: Batch, **arguments: Any) -> Tensor:
        """hidden [1, R, D], overwritten tile by tile: a row's layer needs no other row's hidden.

        Raises `PassCancelled`, and `OutOfTime` where the batch is resumable.
        """
        resumable = batch.resumable
        if resumable is None:
            return self._run(hidden, batch, arguments)
        if resumable.has_run():
            assert resumable.hidden is not None
            return resumable.hidden
        resumable.enter()
        hidden = self._run(hidden, batch, arguments)
        resumable.leave(hidden)
        return hidden

    def _run(self, hidden: Tensor, batch: Batch, arguments: Mapping[str, Any]) -> Tensor:
        if self.experts is None:
            self._run_tiles(hidden, batch, arguments)
        else:
            with self.experts.deferring(hidden.shape[1]):
                self._run_tiles(hidden, batch, arguments)
                hidden[0] += self._run_slices(self.experts, batch)
        return hidden

    def _run_tiles(self, hidden: Tensor, batch: Batch, arguments: Mapping[str, Any]) -> None:
        with self.weights.unit(self.units.first) as views:
            if not batch.alive():
                raise PassCancelled
            self._binder.bind(views)
            rows = hidden.shape[1]
            tile = self.tile or rows
            for first in range(0, rows, tile):
                self.on_border()
                last = min(first + tile, rows)
                part = batch.tile(first, last)
                if part.alive():
                    if self.experts is not None:
                        self.experts.first = first
                    own = arguments
                    if rows > tile:
                        own = {k: _slice(v, first, last, rows) for k, v in arguments.items()}
                    hidden[:, first:last] = self.inner(hidden[:, first:last], batch=part, **own)

    def _run_slices(self, experts: DeferredExperts, batch: Batch) -> Tensor:
        """What the experts make of the rows that wait for them, [R, D]."""
        if experts.routed is None:
            raise PassCancelled  # every tile was skipped
        out = torch.zeros_like(experts.routed.hidden)
        tile = None if batch.strict else self.tile or len(out)
        prefix = f"{self.units.experts}."
        for unit, held in zip(self.units.units[1:], self.units.slices, strict=True):
            self.on_border()
            with self.weights.unit(unit) as views:
                if not batch.alive():
                    raise PassCancelled
                own = {name.removeprefix(prefix): view for name, view in views.items()}
                self._expert_binder.bind(own)
                add_experts(experts.inner, held, experts.routed, out, tile)
        return out


class Binder:
    """Points a module's parameters and buffers at tensors, pass after pass.

    Where each of them is kept is looked up once, and borrowed weights are not wrapped into
    parameters: both would take more of a pass's host time than the choice of its tokens.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._holders: dict[str, tuple[dict[str, Any], str]] = {}

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        """Tensors named by their path."""
        for path, tensor in tensors.items():
            holder, name = self._holders.get(path) or self._find(path)
            holder[name] = tensor

    def _find(self, path: str) -> tuple[dict[str, Any], str]:
        owner, _, name = path.rpartition(".")
        module = self._module.get_submodule(owner)
        holder: dict[str, Any] = module._parameters
        if name in module._buffers:
            holder = module._buffers
        self._holders[path] = holder, name
        return holder, name


def bind(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Point a module's parameters and buffers at these tensors, named by their path, for good."""
    Binder(module).bind({p: nn.Parameter(t, requires_grad=False) for p, t in tensors.items()})


def _slice(argument: Any, first: int, last: int, rows: int) -> Any:
    """Cut an argument to the tile's rows if it is shaped by rows ([1, R, ...])."""
    if isinstance(argument, Tensor):
        shaped = argument.dim() >= 2 and argument.shape[0] == 1 and argument.shape[1] == rows
        return argument[:, first:last] if shaped else argument
    if isinstance(argument, tuple):
        return tuple(_slice(item, first, last, rows) for item in argument)
    return argument


class _PassThrough(nn.Module):
    """Stands in for the decoder when the model's own forward computes the head alone."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=inputs_embeds)


def build_on_meta(config: Any, dtype: torch.dtype, *, strict: bool) -> Any:
    """The library's causal model of this configuration, without weights."""
    from transformers import AutoModelForCausalLM
    from transformers.integrations.moe import ExpertsInterface

    AttentionInterface.register(ATTENTION, attend)
    ExpertsInterface.register(EXPERTS, apply_experts)
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config, dtype=dtype)
    model.config._attn_implementation = ATTENTION
    if strict:
        model.config._experts_implementation = EXPERTS
    return model.eval()


class Decoder:
    """Runs rows through all layers, and the head over the rows that need logits."""

    def __init__(
        self,
        model: Any,
        weights: Weights,
        tensors: Mapping[str, Tensor],
        *,
        device: torch.device,
        strict: bool,
        tile: int | None = None,
        layers: Sequence[LayerUnits] | None = None,
    ) -> None:
        """`tensors` are the model's tensors outside layers and head, by full name.

        The embedding stays on the host, where its rows are gathered; the rest goes to `device`.
        `layers` tell which units are each layer's; None: each is one.
        """
        self.model = model
        self.weights = weights
        self.device = device
        self.strict = strict
        self.tile = TILE if strict else tile
        self.on_border: Callable[[], None] = lambda: None  # called at each unit and tile
        self.original_length = original_length(model.config)
        self.decoder = model.get_decoder()
        self.output = model.get_output_embeddings()
        self._output_binder = Binder(self.output)
        self._place(tensors)
        modules = self.decoder.layers
        layers = layers or whole_layers(len(modules))
        for index, (inner, units) in enumerate(zip(modules, layers, strict=True)):
            modules[index] = StreamedLayer(inner, units, weights, self.tile, self._border)
        self.head_unit = layers[-1].units.stop
        if self.original_length is not None:
            self.decoder.rotary_emb = LengthGroupedRotary(
                self.decoder.rotary_emb, self.original_length
            )
        setattr(model, model.base_model_prefix, _PassThrough())

    def _place(self, tensors: Mapping[str, Tensor]) -> None:
        model, embedding = self.model, self.model.get_input_embeddings()
        for module in model.modules():
            if module._non_persistent_buffers_set:
                on_host = module is embedding
                for name in module._non_persistent_buffers_set:
                    buffer = module._buffers[name]
                    where = torch.device("cpu") if on_host else self.device
                    module._buffers[name] = torch.empty_like(buffer, device=where)
                model._init_weights(module)
        names = {id(p): n for n, p in model.named_parameters()}
        host_name = names[id(embedding.weight)]
        bind(
            model,
            {n: t if n == host_name else t.to(self.device) for n, t in tensors.items()},
        )
        self.embedding = embedding

    def _border(self) -> None:
        self.on_border()

    def is_long(self, num_tokens: int) -> bool:
        """Whether a sequence of so many tokens uses the long rope frequencies."""
        return self.original_length is not None and num_tokens > self.original_length

    def forward(
        self, tokens: Sequence[int], positions: Sequence[int], long: Sequence[bool], batch: Batch
    ) -> Tensor:
        """Hidden states [R, D] of all rows, R padded to whole tiles under strict numerics.

        Raises `PassCancelled` when every sequence of the batch was cancelled.
        """
        padding = -len(tokens) % TILE if self.strict else 0
        hidden = self.embed([*tokens, *[0] * padding])
        # Pageable memory has been read when the call returns: nobody waits for the device.
        position_ids = torch.tensor([[*positions, *[0] * padding]])
        if isinstance(self.decoder.rotary_emb, LengthGroupedRotary):
            flags = torch.tensor([*long, *[False] * padding])
            self.decoder.rotary_emb.long_rows = flags.to(self.device, non_blocking=True)
        return self.run(
            hidden[None].to(self.device, non_blocking=True),
            position_ids.to(self.device, non_blocking=True),
            batch,
        )

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """The embedded rows [R, D], on the host, where the embedding stays."""
        return self.embedding(torch.tensor(tokens))  # type: ignore[no-any-return]  # the model is Any

    def run(self, hidden: Tensor, position_ids: Tensor, batch: Batch) -> Tensor:
        """Hidden states [R, D] from embedded rows [1, R, D], overwritten, at positions [1, R].

        Both are on the device. Raises `PassCancelled` as `forward` does.
        """
        output = self.decoder(
            inputs_embeds=hidden.contiguous(),
            position_ids=position_ids,
            attention_mask=None,
            use_cache=False,
            batch=batch,
        )
        return output.last_hidden_state[0]  # type: ignore[no-any-return]  # the model is Any

    @contextmanager
    def head(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Borrow the head: a function from hidden [rows <= 64, D] to logits [rows, V]."""
        self.on_border()
        with self.weights.unit(self.head_unit) as views:
            self._output_binder.bind(views)
            yield self._logits

    def _logits(self, hidden: Tensor) -> Tensor:
        rows = len(hidden)
        if self.strict:
            hidden = F.pad(hidden, (0, 0, 0, TILE - rows))
        output = self.model(inputs_embeds=hidden[None], use_cache=False)
        return output.logits[0, :rows]  # type: ignore[no-any-return]  # the model is Any
