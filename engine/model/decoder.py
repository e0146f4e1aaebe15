"""transformers' own model, its layers fed by a weight stream, its rows cut into tiles.

Each entry of its layer list is replaced by a `StreamedLayer` that borrows the weights once, runs
the inner layer over all rows in tiles (layer-major: a prompt of any length crosses the link once),
and gives them back.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.model.attention import Batch
from engine.model.experts import DeferredExperts, add_experts
from engine.model.library import Binder, defer_experts, place, replace_modules
from engine.model.rope import mark_long, original_length
from engine.spec import TILE
from engine.streaming.ring import Idle
from engine.weights.layout import LayerUnits, whole_layers
from engine.weights.safetensors import OtherTensor


class PassCancelled(Exception):
    """No live row is left: the pass unwinds at the layer border."""


class Weights(Protocol):
    """Where a decoder borrows its units: those of the layers in order, then the head."""

    def unit(
        self, index: int, idle: Idle | None = None
    ) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Borrow a unit for a block; `idle` may be called while its weights are on their way."""


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
            self.experts = defer_experts(inner, units.experts)
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
        if batch.resumable is None:
            return self._run(hidden, batch, arguments)
        return batch.resumable.run(partial(self._run, hidden, batch, arguments))

    def _run(self, hidden: Tensor, batch: Batch, arguments: Mapping[str, Any]) -> Tensor:
        if self.experts is None:
            self._run_tiles(hidden, batch, arguments)
        else:
            with self.experts.deferring(hidden.shape[1]):
                self._run_tiles(hidden, batch, arguments)
                hidden[0] += self._run_slices(self.experts, batch)
        return hidden

    def _run_tiles(self, hidden: Tensor, batch: Batch, arguments: Mapping[str, Any]) -> None:
        with self.weights.unit(self.units.first, batch.idle) as views:
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
                        self.experts.begin_tile(first)
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
            with self.weights.unit(unit, batch.idle) as views:
                if not batch.alive():
                    raise PassCancelled
                own = {name.removeprefix(prefix): view for name, view in views.items()}
                self._expert_binder.bind(own)
                add_experts(experts.inner, held, experts.routed, out, tile)
        return out


def _slice(argument: Any, first: int, last: int, rows: int) -> Any:
    """Cut an argument to the tile's rows if it is shaped by rows ([1, R, ...])."""
    if isinstance(argument, Tensor):
        shaped = argument.dim() >= 2 and argument.shape[0] == 1 and argument.shape[1] == rows
        return argument[:, first:last] if shaped else argument
    if isinstance(argument, tuple):
        return tuple(_slice(item, first, last, rows) for item in argument)
    return argument


class Decoder:
    """Runs rows through all layers, and the head over the rows that need logits."""

    def __init__(
        self,
        model: Any,
        weights: Weights,
        tensors: Mapping[str, OtherTensor],
        *,
        device: torch.device,
        strict: bool,
        tile: int | None = None,
        layers: Sequence[LayerUnits] | None = None,
        on_border: Callable[[], None] = lambda: None,
    ) -> None:
        """Build the decoder over a model that has no weights yet.

        Args:
            tensors: the model's tensors outside layers and head, by full name.
            layers: which units are each layer's; None: each is one.
            on_border: called before each unit and each tile.
        """
        self.model = model
        self.weights = weights
        self.device = device
        self.strict = strict
        self.tile = TILE if strict else tile
        self.on_border = on_border
        self.original_length = original_length(model.config)
        self.decoder = model.get_decoder()
        self.output = model.get_output_embeddings()
        self.embedding = model.get_input_embeddings()
        self._output_binder = Binder(self.output)
        self._stored_rows = place(model, tensors, device)
        self._embedding_binder = Binder(self.embedding)
        modules = self.decoder.layers
        layers = layers or whole_layers(len(modules))
        streamed = [
            StreamedLayer(inner, units, weights, self.tile, on_border)
            for inner, units in zip(modules, layers, strict=True)
        ]
        self.head_unit = layers[-1].units.stop
        replace_modules(model, streamed, self.original_length)

    def is_long(self, num_tokens: int) -> bool:
        """Whether a sequence of so many tokens uses the long rope frequencies."""
        return self.original_length is not None and num_tokens > self.original_length

    def forward(self, tokens: Sequence[int], positions: Sequence[int], batch: Batch) -> Tensor:
        """Return the hidden states [R, D] of all rows, R padded to tiles under strict numerics.

        Raises `PassCancelled` when every sequence of the batch was cancelled.
        """
        padding = -len(tokens) % TILE if self.strict else 0
        hidden = self.embed([*tokens, *[0] * padding])
        # Pageable memory has been read when the call returns: nobody waits for the device.
        position_ids = torch.tensor([[*positions, *[0] * padding]])
        if self.original_length is not None:
            mark_long(position_ids, batch.segments)
        return self.run(
            hidden[None].to(self.device, non_blocking=True),
            position_ids.to(self.device, non_blocking=True),
            batch,
        )

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Return the embedded rows [R, D], on the host, where the embedding stays.

        Raises `ModelError` if they are read from a file that was changed.
        """
        indices: Sequence[int] = tokens
        if self._stored_rows is not None:
            places: dict[int, int] = {}  # of each token, once, among the rows that are read
            indices = [places.setdefault(token, len(places)) for token in tokens]
            self._embedding_binder.bind({"weight": self._stored_rows.read(list(places))})
        return self.embedding(torch.tensor(indices))  # type: ignore[no-any-return]  # the model is Any

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
    def head(self, idle: Idle | None = None) -> Iterator[Callable[[Tensor], Tensor]]:
        """Borrow the head: a function from hidden [rows <= 64, D] to logits [rows, V].

        `idle` may be called while its weights are on their way, as `Batch.idle`.
        """
        self.on_border()
        with self.weights.unit(self.head_unit, idle) as views:
            self._output_binder.bind(views)
            yield self._logits

    def _logits(self, hidden: Tensor) -> Tensor:
        rows = len(hidden)
        if self.strict:
            hidden = F.pad(hidden, (0, 0, 0, TILE - rows))
        output = self.model(inputs_embeds=hidden[None], use_cache=False)
        return output.logits[0, :rows]  # type: ignore[no-any-return]  # the model is Any
