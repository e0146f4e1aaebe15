"""The importance of the input channels of linear layers, measured in a draft that writes a text.

The 4-bit copies of a model write some text from the start of a chat, at temperature 1, and the mean
square of each input channel of each linear layer is taken meanwhile. Scales that are fitted by it
(`engine.weights.formats.weighted`) bring the copies nearer to the target. The text of the copies is
as good for this as that of the target (measured), and no weight has to travel for it.

Only written tokens count: a draft never computes the start of a chat, because it reads those keys
and values from the target's cache. All of them count alike: each row is divided by its root mean
square, so that a few tokens with large inputs do not decide.

Of the rows, an expert of a mixture gets those that are routed to it. They may be few, so the mean
over all experts of the layer counts beside them; an expert without any row has that mean.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import Event
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import ModelError
from engine.kv.cache import KVCache
from engine.kv.page_table import PageTable
from engine.messages import LoadProgress, ReportProgress
from engine.model.attention import Batch
from engine.model.decoder import Decoder
from engine.model.segment import Segment
from engine.weights.formats.linear import ExpertLayers
from engine.weights.layout import UnitLayout, UnitReader, lay_out

IMPORTANCE_VERSION = 2  # raised when importance is measured differently
NUM_TEXTS = 4  # written together: a step of so few rows takes hardly longer than one of one row
TEXT_TOKENS = 96  # written in each
EXPERT_ROWS = 8  # rows of an expert for which the mean over all experts counts
LONGEST_START = 128  # tokens of a chat's start that are used, the last ones
_SEED = 0
_TINY = 1e-30  # a mean square of a row below this one counts as this one
_INFINITE = "the 4-bit copies compute infinite numbers"

# The layers of each unit, by the names of their weights. All experts of a layer are one entry.
Linears = Sequence[Mapping[str, nn.Module]]
Measured = Sequence[Mapping[str, Tensor]]  # the importance [in] or [E, in] of each of them


def describe_importance() -> str:
    """Return a text that names how importance is measured, for the key of its cache entry."""
    return f"importance {IMPORTANCE_VERSION}"


class ImportanceUnits(UnitReader):
    """A reader of importance, in units as the target has them, that is measured at the first read.

    Args:
        layouts: those of `importance_layouts`.
        measure: returns the importance of each unit's linear weights, by name.
    """

    def __init__(self, layouts: Sequence[UnitLayout], measure: Callable[[], Measured]) -> None:
        self.layouts = layouts
        self._measure = measure
        self._measured: Measured | None = None

    def read(self, index: int, buffer: Tensor) -> None:
        """Fill `buffer` with unit `index`. One thread may call this."""
        if self._measured is None:
            self._measured = self._measure()
        measured = self._measured[index]
        for name, view in self.layouts[index].views(buffer).items():
            if name in measured:
                view.copy_(measured[name])
            else:
                view.zero_()  # of a fused weight without 4-bit copies


def importance_layouts(
    units: Sequence[UnitLayout], shapes: Sequence[Mapping[str, tuple[int, ...]]]
) -> list[UnitLayout]:
    """Return the layouts, in float32, of the importance of each unit's weights.

    Args:
        shapes: by the names of the weights, [in] or, of the fused weights of experts, [E, in].
    """
    return [
        lay_out(unit.name, {name: (torch.float32, shape) for name, shape in own.items()})
        for unit, own in zip(units, shapes, strict=True)
    ]


def measure_importance(
    decoder: Decoder,
    cache: KVCache,
    linears: Linears,
    start: Sequence[int],
    progress: ReportProgress,
) -> list[dict[str, Tensor]]:
    """Return the mean square of each input channel of `linears` while `decoder` writes texts.

    Each row is divided by its root mean square before. The rows of `start` do not count.

    Args:
        cache: nothing else uses it meanwhile; it is left empty.
        linears: layers of the decoder, by unit and name; those of all experts together.
        start: the tokens with which every text begins.

    Raises `ModelError` if the cache is too small or the model computes infinite numbers.
    """
    squares = _write_texts(decoder, cache, linears, start[-LONGEST_START:], progress)
    means = [{name: _importance(parts).cpu() for name, parts in own.items()} for own in squares]
    if not all(mean.isfinite().all() for own in means for mean in own.values()):
        raise ModelError(_INFINITE)
    return means


class _MeanSquare:
    """The mean square of each input channel of a layer, which calls it before each product.

    Each row is divided by its root mean square before.
    """

    def __init__(self) -> None:
        self.total: Tensor = torch.zeros(())
        self.rows = 0

    def __call__(self, layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        squares = arguments[0].flatten(0, -2).float().square()
        squares /= squares.mean(-1, keepdim=True).clamp(min=_TINY)
        self.total = squares.sum(0) + self.total.to(squares.device)
        self.rows += len(squares)


def _importance(squares: _MeanSquare | Sequence[_MeanSquare]) -> Tensor:
    """Return the mean square [in] of a layer's inputs, or those [E, in] of all experts."""
    if isinstance(squares, _MeanSquare):
        return squares.total / max(squares.rows, 1)
    device = max(squares, key=lambda own: own.rows).total.device
    whole = sum((own.total.to(device) for own in squares), torch.zeros((), device=device))
    shared = whole / max(sum(own.rows for own in squares), 1) * EXPERT_ROWS
    means = [(own.total.to(device) + shared) / (own.rows + EXPERT_ROWS) for own in squares]
    return torch.stack(means)


@contextmanager
def _mean_squares(
    linears: Linears,
) -> Iterator[list[dict[str, _MeanSquare | list[_MeanSquare]]]]:
    """Measure the inputs of layers within the block; yield their mean squares, by unit and name."""
    squares: list[dict[str, _MeanSquare | list[_MeanSquare]]] = []
    with ExitStack() as stack:

        def measure(layer: nn.Module) -> _MeanSquare:
            square = _MeanSquare()
            stack.callback(layer.register_forward_pre_hook(square).remove)
            return square

        for own in linears:
            found: dict[str, _MeanSquare | list[_MeanSquare]] = {}
            for name, layer in own.items():
                if isinstance(layer, ExpertLayers):
                    stack.enter_context(layer.apart())
                    found[name] = [*map(measure, layer)]
                else:
                    found[name] = measure(layer)
            squares.append(found)
        yield squares


def _write_texts(
    decoder: Decoder,
    cache: KVCache,
    linears: Linears,
    start: Sequence[int],
    progress: ReportProgress,
) -> list[dict[str, _MeanSquare | list[_MeanSquare]]]:
    """Let the decoder write texts together, each after `start`, at temperature 1.

    Return the mean squares of the inputs of `linears` over the written tokens. Raises `ModelError`
    if `cache` has no room for a single text.
    """
    generator = torch.Generator().manual_seed(_SEED)
    tables: list[PageTable] = []
    try:
        for _ in range(NUM_TEXTS):
            table = PageTable()
            if cache.reserve(table, len(start) + TEXT_TOKENS):
                tables.append(table)
        if not tables:
            raise ModelError("the KV cache has no room for a text")
        for table in tables:  # one by one: all together could be more rows than the plan allows for
            logits = _run(decoder, cache, [table], [start])
        chosen = _draw(logits.expand(len(tables), -1), generator)
        with _mean_squares(linears) as squares:
            for done in range(1, TEXT_TOKENS + 1):
                logits = _run(decoder, cache, tables, [[token] for token in chosen])
                chosen = _draw(logits, generator)
                what = "measuring inputs for the 4-bit copies"
                progress(LoadProgress(what, done, TEXT_TOKENS, "tokens"))
    finally:
        for table in tables:
            cache.close(table)
    return squares


def _run(
    decoder: Decoder,
    cache: KVCache,
    tables: Sequence[PageTable],
    tokens: Sequence[Sequence[int]],
) -> Tensor:
    """Run the next tokens of each text and return the logits [texts, V] after the last of them."""
    segments: list[Segment] = []
    positions: list[int] = []
    for table, own in zip(tables, tokens, strict=True):
        where = range(table.length, table.length + len(own))
        segments.append(
            Segment(
                first=len(positions),
                count=len(own),
                start=table.length,
                slots=cache.slots(table)[: where.stop],
                positions=torch.tensor(where, device=decoder.device),
                mask=None,
                cancelled=Event(),
                state=table.state,
            )
        )
        positions += where
    batch = Batch(cache.pool, tuple(segments), range(len(positions)), decoder.strict)
    hidden = decoder.forward([token for own in tokens for token in own], positions, batch)
    for table, own in zip(tables, tokens, strict=True):
        cache.append_rows(table, range(len(own)))
    last = torch.tensor([segment.first + segment.count - 1 for segment in segments])
    with decoder.head() as head:
        return head(hidden[last.to(hidden.device)])


def _draw(logits: Tensor, generator: torch.Generator) -> list[int]:
    """Return a token for each row of logits, drawn at temperature 1.

    Raises `ModelError` if they are no numbers.
    """
    probabilities = logits.float().softmax(-1).cpu()
    if probabilities.isnan().any():
        raise ModelError(_INFINITE)
    drawn: list[int] = torch.multinomial(probabilities, 1, generator=generator).flatten().tolist()
    return drawn
