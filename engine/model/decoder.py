"""A transformers model whose layers borrow streamed weights and run their rows in tiles.

Each layer of the model is replaced by a `StreamedLayer`. It borrows the weights once per pass, runs
the original layer over all rows of the pass, tile by tile, and returns the weights. So the weights
cross the link once for a prompt of any length. Parts of a large layer are borrowed while it runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.model.attention import Batch
from engine.model.binder import Binder
from engine.model.borrowed import BorrowedParts, PassCancelled, Weights
from engine.model.elementwise import WholeBlocks, calls_functions
from engine.model.experts import DeferredExperts, add_experts, defer_experts
from engine.model.library import (
    attention_modules,
    place_tensors,
    replace_modules,
    set_batch,
    token_tables,
)
from engine.model.recurrent import find_mixers
from engine.model.rope import mark_long, original_length
from engine.model.token_table import TokenTable
from engine.spec import TILE
from engine.streaming.ring import OnWait
from engine.transfer import upload_all
from engine.weights.family import text_config
from engine.weights.layout import LayerUnits, whole_layers
from engine.weights.outline import decoder_layers, text_decoder
from engine.weights.safetensors import OtherTensor


class StreamedLayer(nn.Module):
    """A layer that borrows its weights from a weight stream while it runs."""

    def __init__(
        self,
        number: int,
        inner: nn.Module,
        units: LayerUnits,
        weights: Weights,
        tile: int | None,
        on_pass_progress: Callable[[], None],
    ) -> None:
        super().__init__()
        self.inner = inner
        self.number = number if find_mixers(inner) else None  # where it has a recurrent state
        self.units = units
        self.weights = weights
        self.tile = tile
        self.on_pass_progress = on_pass_progress
        self.experts: DeferredExperts | None = None
        if units.slices:
            self.experts = defer_experts(inner, units.experts)
            self._expert_binder = Binder(self.experts.inner)
        self._parts = BorrowedParts(inner, units.parts, weights)
        self._attentions = attention_modules(inner)
        self._calls_functions = calls_functions(inner)
        # What some families' layers return beside the hidden states, which nothing uses.
        self._others: tuple[None, ...] | None = None

    def replace_inner(self, module: nn.Module) -> None:
        """Run another module, which has its weights, in place of the layer."""
        self.inner = module
        self._parts = BorrowedParts(module, self.units.parts, self.weights)
        self._attentions = attention_modules(module)
        self._calls_functions = calls_functions(module)

    def unbind(self) -> None:
        """Forget the weights that were borrowed last, so that their memory can be freed."""
        self._parts.unbind()
        if self.experts is not None:
            self._expert_binder.unbind()

    def __getattr__(self, name: str) -> Any:
        # Models read attributes of their layers (attention types and the like).
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(
        self, hidden: Tensor, *others: Any, batch: Batch | None = None, **arguments: Any
    ) -> Any:
        """Run the layer over `hidden` [..., R, D], which may be overwritten, and return the result.

        Where the library's layer returns a tuple, the hidden states are the first of one.

        `hidden` is [1, R, D], or [n, 1, R, D] in a model with several hidden states for each row.
        Tiles can be overwritten one by one, since a row reads the hidden state of no other row; it
        sees other rows by their keys and values in the KV cache.

        Raises `PassCancelled` if all clients have left, and `OutOfTime` if the batch is resumable
        and its deadline is too near. Raises `NotImplementedError` if the model does not pass the
        batch on.
        """
        if batch is None:
            raise NotImplementedError(
                "its attention is code of its own, which cannot use this server's KV cache"
            )
        if batch.resumable is not None and "shared_kv_states" in arguments:
            # A piece of the forward does not run the layers again that have filled it.
            arguments["shared_kv_states"] = batch.resumable.shared_kv
        run = partial(self._run, hidden, batch, others, arguments)
        output = run() if batch.resumable is None else batch.resumable.run(run)
        return output if self._others is None else (output, *self._others)

    def _run(
        self, hidden: Tensor, batch: Batch, others: tuple[Any, ...], arguments: Mapping[str, Any]
    ) -> Tensor:
        if self.experts is None:
            return self._run_tiles(hidden, batch, others, arguments)
        with self.experts.defer_rows(hidden.shape[-2]):
            hidden = self._run_tiles(hidden, batch, others, arguments)
            hidden[0] += self._run_slices(self.experts, batch)
        return hidden

    def _run_tiles(
        self, hidden: Tensor, batch: Batch, others: tuple[Any, ...], arguments: Mapping[str, Any]
    ) -> Tensor:
        """Borrow the layer's own units and run the layer over all tiles that have live rows.

        Return the layer's output: of several tiles in `hidden`, and of one where the layer put it.
        """
        with self._parts.borrow(batch):
            rows = hidden.shape[-2]
            tile, has_run = self.tile or rows, False
            for first in range(0, rows, tile):
                self.on_pass_progress()
                last = min(first + tile, rows)
                part = batch.select_tile(first, last)
                if self.number is not None:
                    part = replace(part, layer=self.number)
                if part.has_live_rows():
                    has_run = True
                    if self.experts is not None:
                        self.experts.begin_tile(first)
                    args, named = others, arguments
                    if rows > tile:
                        args = _slice_rows(others, first, last, rows)
                        named = {k: _slice_rows(v, first, last, rows) for k, v in arguments.items()}
                    set_batch(self._attentions, part)
                    with self._elementwise(batch):
                        output = self.inner(hidden[..., first:last, :], *args, batch=part, **named)
                    if isinstance(output, tuple):
                        output, self._others = output[0], (None,) * (len(output) - 1)
                    if rows <= tile:
                        return output  # type: ignore[no-any-return]  # modules return anything
                    hidden[..., first:last, :] = output
            if not has_run:  # what the layer returns beside them may not be known yet
                raise PassCancelled
            return hidden

    def _elementwise(self, batch: Batch) -> AbstractContextManager[object]:
        """Return the context for the layer's own code under these numerics."""
        return WholeBlocks() if batch.strict and self._calls_functions else nullcontext()

    def _run_slices(self, experts: DeferredExperts, batch: Batch) -> Tensor:
        """Return the output of the experts for all rows of the pass, [R, D], slice by slice."""
        if experts.routed is None:
            raise PassCancelled  # every tile was skipped
        out = torch.zeros_like(experts.routed.hidden)
        tile = None if batch.strict else self.tile or len(out)
        prefix = f"{self.units.experts}."
        units = self.units.units[self.units.num_parts :]
        for unit, expert_ids in zip(units, self.units.slices, strict=True):
            self.on_pass_progress()
            with self.weights.unit(unit, batch.on_wait) as views:
                if not batch.has_live_rows():
                    raise PassCancelled
                tensors = {name.removeprefix(prefix): view for name, view in views.items()}
                self._expert_binder.bind(tensors)
                add_experts(experts.inner, expert_ids, experts.routed, out, tile)
        return out


def _slice_rows(argument: Any, first: int, last: int, rows: int) -> Any:
    """Return the part of a layer argument for rows `first` to `last` - 1.

    Tensors of shape [1, R, ...] are sliced, also inside tuples, and those of shape [n, 1, R, ...]
    (positions and rotations of mrope). Other arguments are returned as they are.
    """
    if isinstance(argument, Tensor):
        if argument.shape[:2] == (1, rows):
            return argument[:, first:last]
        return argument[:, :, first:last] if argument.shape[1:3] == (1, rows) else argument
    if isinstance(argument, tuple):
        return tuple(_slice_rows(item, first, last, rows) for item in argument)
    return argument


class Decoder:
    """A model that runs rows through its layers and computes logits of the rows that need them."""

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
        on_pass_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Build the decoder over a model that has no weights yet.

        Args:
            model: the model as `build_on_meta` returns it; its layers are replaced.
            weights: lends the units of the layers and the head.
            tensors: the model's tensors outside of layers and head, by full name.
            device: where layers and head run.
            strict: whether a row's result must not depend on the other rows (strict numerics).
            tile: the number of rows that run through a layer at a time; None: all of them. Strict
                numerics always use `TILE`.
            layers: the units of each layer; None: each layer is one unit.
            on_pass_progress: called before each unit and each tile.
        """
        self.model = model
        self.weights = weights
        self.device = device
        self.strict = strict
        self.tile = TILE if strict else tile
        self.on_pass_progress = on_pass_progress
        self.original_length = original_length(text_config(model.config))
        self.decoder = text_decoder(model)
        self.output = model.get_output_embeddings()
        self.embedding = model.get_input_embeddings()
        self._output_binder = Binder(self.output)
        stored = place_tensors(model, tensors, device)
        tables = zip(token_tables(model), stored, strict=True)
        self._tables = [TokenTable(module, rows) for module, rows in tables]
        modules = decoder_layers(model)
        layers = layers or whole_layers(len(modules))
        # Families keep their layers under different names.
        self.layers = [
            StreamedLayer(number, inner, units, weights, self.tile, on_pass_progress)
            for number, (inner, units) in enumerate(zip(modules, layers, strict=True))
        ]
        self.head_unit = layers[-1].units.stop
        replace_modules(model, self.layers, self.original_length)

    @property
    def has_recurrent_layers(self) -> bool:
        """Whether some layers have a recurrent state."""
        return any(layer.number is not None for layer in self.layers)

    def is_long(self, num_tokens: int) -> bool:
        """Return True if a sequence of `num_tokens` tokens uses the long rope frequencies."""
        return self.original_length is not None and num_tokens > self.original_length

    def forward(self, tokens: Sequence[int], positions: Sequence[int], batch: Batch) -> Tensor:
        """Return the hidden states [R, D] of all rows after the last layer.

        Under strict numerics the rows are padded to a multiple of `TILE`, and so is R.

        Args:
            tokens, positions: the token id of each row and its position in its sequence.
            batch: what the rows see.

        Raises `PassCancelled` if the client of every sequence has left.
        """
        padding = -len(tokens) % TILE if self.strict else 0
        inputs = self.embed([*tokens, *[0] * padding])
        position_ids = torch.tensor([[*positions, *[0] * padding]])
        if self.original_length is not None:
            mark_long(position_ids, batch.segments)
        *rows, position_ids = upload_all([*inputs, position_ids], self.device)
        return self.run(rows, position_ids, batch)

    def unbind(self) -> None:
        """Forget all weights that were borrowed, between passes, so that they can be freed."""
        for layer in self.layers:
            layer.unbind()
        self._output_binder.unbind()

    def embed(self, tokens: Sequence[int]) -> list[Tensor]:
        """Return the rows of all token tables for tokens, on the host, where the tables stay.

        They are the embeddings [R, D] and, where layers have inputs of their own, those of all
        layers [R, L * P]. Raises `ModelError` if rows are read from a file that was changed.
        """
        return [table.look_up(tokens) for table in self._tables]

    def run(self, inputs: Sequence[Tensor], position_ids: Tensor, batch: Batch) -> Tensor:
        """Return the hidden states [R, D] of embedded rows after the last layer.

        Args:
            inputs: what `embed` returned, on the device; the embeddings are overwritten.
            position_ids: the positions [1, R], on the device.
            batch: what the rows see.

        Raises `PassCancelled` as `forward` does.
        """
        embedded, *of_layers = inputs
        arguments: dict[str, Tensor] = {}
        for rows in of_layers:
            width = self.decoder.hidden_size_per_layer_input
            arguments["per_layer_inputs"] = rows.view(1, len(rows), -1, width)
        output = self.decoder(
            inputs_embeds=embedded[None].contiguous(),
            **arguments,
            position_ids=position_ids,
            attention_mask=None,
            use_cache=False,
            batch=batch,
        )
        return output.last_hidden_state[0]  # type: ignore[no-any-return]  # the model is Any

    @contextmanager
    def head(self, on_wait: OnWait | None = None) -> Iterator[Callable[[Tensor], Tensor]]:
        """Borrow the head's weights and yield a function that computes logits.

        The function returns the logits [rows, V] of hidden states [rows, D], at most 64 rows at a
        time. `on_wait` may be called while the weights are being copied.
        """
        self.on_pass_progress()
        with self.weights.unit(self.head_unit, on_wait) as views:
            self._output_binder.bind(views)
            yield self._logits

    def _logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [rows, V] of hidden states [rows, D], with the head's weights bound."""
        rows = len(hidden)
        if self.strict:
            hidden = F.pad(hidden, (0, 0, 0, TILE - rows))
        output = self.model(inputs_embeds=hidden[None], use_cache=False)
        return output.logits[0, :rows]  # type: ignore[no-any-return]  # the model is Any
