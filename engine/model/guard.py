"""A check that the decoder gives the library's logits for a family, before any weights are loaded.

A small model of the same structure with random weights runs through our decoder and through the
library's own forward. If the logits differ by more than rounding, or either fails, the family is
refused with that reason. So there is no list of families that work.
"""

import gc
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import torch
import transformers
from torch import Tensor

from engine.cache_files import cache_root, replace_file
from engine.errors import EngineError, ModelError, printable
from engine.files import exists, read_object
from engine.kv.page_pool import PagePool
from engine.model.attention import Batch
from engine.model.decoder import Decoder
from engine.model.library import build_on_meta
from engine.model.reduced import reduce_depth, reduce_width
from engine.model.reference import Reference
from engine.model.segment import Segment
from engine.spec import TILE
from engine.streaming.device import choose_device
from engine.streaming.ring import OnWait
from engine.weights.family import kv_shape, make_config, text_config, text_key
from engine.weights.outline import unit_modules

FOLDER = "checked-families"  # of the cache: one file for each structure that was checked
TOLERANCE = 1e-3  # of the largest logit: far above rounding, far below any other difference
SEEDS = (0, 1)  # rounding may send a row to another expert, but hardly with both
ROWS = (1, TILE + 1, 2 * TILE + 2)  # of a prompt: less than a tile, two tiles, three tiles
_PREFIX = 40  # cached tokens, which a tree and a longer prompt follow
_OTHER = 47  # tokens of another sequence of the same pass
_PARENTS = (-1, -1, 0, 0, 1, 2)  # of each node of a tree; -1: the last token of the prefix
_PAGES = 4  # of the KV cache, for all of these tokens
_LONGEST_REASON = 300
# Keys of a configuration that change no code.
_NAMES = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def check_decoder(config: Any, where: Path) -> None:
    """Raise `ModelError` unless the decoder gives the library's logits for this configuration.

    The result is kept on disk for each structure, each version of the library and of this package.

    Args:
        config: the configuration of the whole model.
        where: the config.json that the error names.
    """
    small = [small_values(config, narrow=narrow) for narrow in (True, False)]
    path = cache_root() / FOLDER / f"{_key(small[0])}.json"
    fault = _read(path)
    if fault is None:
        fault = _find_fault(small)
        _write(path, fault)
    if fault:
        raise ModelError(
            f"{where}: model_type {config.model_type!r}: this server's decoder does not give the "
            f"library's logits: {fault}. Use a model of another family"
        )


def small_values(config: Any, *, narrow: bool) -> dict[str, Any]:
    """Return the values of a small model of the same structure.

    Args:
        narrow: whether widths are reduced too, and not only the depth.

    Raises `ModelError` if the configuration does not say how many layers there are or how wide.
    """
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    text = text_config(config)
    place = text_key(config)
    names: Mapping[str, str] = text.attribute_map
    layers, hidden = (names.get(key, key) for key in ("num_hidden_layers", "hidden_size"))
    whole = values if place is None else values[place]
    for key in (layers, hidden):
        if key not in whole:
            raise ModelError(f"config.json: model_type {config.model_type!r} has no {key}")
    own = reduce_depth(whole, layers)
    if narrow:
        own = reduce_width(own, hidden)
    for unused in _NAMES:
        values.pop(unused, None)
        own.pop(unused, None)
    return own if place is None else {**values, place: own}


def _find_fault(small: Sequence[dict[str, Any]]) -> str:
    """Return how our decoder differs from the library's forward; "" if it does not.

    The first of the small models that the library can run is used.
    """
    fault = ""
    for values in small:
        try:
            config = make_config(values)
            reference = Reference(config, SEEDS[0])
            reference.logits(reference.tokens(ROWS[-1]))
        except Exception as error:  # the library, given sizes that it may not be made for
            fault = (
                f"the library itself cannot run a small model of this structure ({_said(error)})"
            )
            continue
        try:
            return _difference(config, reference) and _difference(
                config, Reference(config, SEEDS[1])
            )
        except EngineError:
            raise
        except Exception as error:  # modules that do not work with our decoder raise anything
            return _said(error)
        finally:
            gc.collect()  # model and decoder refer to each other
    return fault


def _said(error: Exception) -> str:
    reason = printable(" ".join(str(error).split()), _LONGEST_REASON)
    return f"{type(error).__name__}: {reason}"


def _difference(config: Any, reference: Reference) -> str:
    """Return where our logits differ from the library's by more than rounding; "" if nowhere."""
    ours = _Ours(config, reference)
    prompt, other = reference.tokens(ROWS[-1]), reference.tokens(_OTHER, seed=1)
    want = {count: reference.logits(prompt[:count]) for count in ROWS}
    for count in ROWS:
        found = ours.logits([ours.rows(prompt[:count])])
        if fault := _compare(f"{count} rows", found, want[count]):
            return fault
    found = ours.logits([ours.rows(prompt, start=_PREFIX)])
    if fault := _compare("a prompt whose beginning is cached", found, want[ROWS[-1]][_PREFIX:]):
        return fault
    found = ours.logits([ours.rows(prompt[:_PREFIX]), ours.rows(other, first_slot=ROWS[-1])])
    both = torch.cat([want[ROWS[-1]][:_PREFIX], reference.logits(other)])
    if fault := _compare("two sequences", found, both):
        return fault
    nodes = reference.tokens(len(_PARENTS), seed=2)
    paths = [_path(node) for node in range(len(_PARENTS))]
    wanted = [reference.logits([*prompt[:_PREFIX], *(nodes[i] for i in p)])[-1] for p in paths]
    return _compare("a tree", ours.logits([ours.tree(nodes, paths)]), torch.stack(wanted))


def _path(node: int) -> list[int]:
    """Return the nodes from the root of the tree to a node."""
    parent = _PARENTS[node]
    return [node] if parent < 0 else [*_path(parent), node]


def _compare(what: str, found: Tensor, want: Tensor) -> str:
    """Return how the logits [rows, V] of a case differ; "" if they differ by rounding only."""
    largest, difference = want.abs().max().item(), (found - want).abs().max().item()
    if difference <= TOLERANCE * largest:  # False for NaN
        return ""
    return f"with {what}, logits up to {largest:.3g} differ by {difference:.3g}"


class _Ours:
    """Our decoder with the weights of a reference, and room for some sequences."""

    def __init__(self, config: Any, reference: Reference) -> None:
        model = build_on_meta(config, torch.float32, strict=True)
        weights = reference.weights()
        layers, head = unit_modules(model)
        units = [
            {field: weights.pop(f"{path}.{field}") for field in module.state_dict()}
            for path, module in [*layers, head]
        ]
        device = choose_device("cpu")
        self._decoder = Decoder(
            model, _Units(units), weights, device=device.torch_device, strict=True
        )
        self._pool = PagePool.of_shape(kv_shape(config), _PAGES, torch.float32, device)

    def rows(self, tokens: Sequence[int], *, start: int = 0, first_slot: int = 0) -> "_Rows":
        """Return the rows of a sequence after its first `start` tokens, which were run before."""
        slots = torch.arange(first_slot, first_slot + len(tokens))
        return _Rows(tokens[start:], range(start, len(tokens)), slots, None)

    def tree(self, nodes: Sequence[int], paths: Sequence[Sequence[int]]) -> "_Rows":
        """Return the rows of a tree after the prefix. Each node sees the nodes of its path."""
        mask = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
        for node, path in enumerate(paths):
            mask[node, list(path)] = True
        own = torch.arange(len(nodes)) + ROWS[-1] + _OTHER
        positions = [_PREFIX + len(path) - 1 for path in paths]
        return _Rows(nodes, positions, torch.cat([torch.arange(_PREFIX), own]), mask)

    def logits(self, parts: Sequence["_Rows"]) -> Tensor:
        """Return the logits [rows, V] of the rows of some sequences, which run in one pass."""
        segments, first = [], 0
        for part in parts:
            is_long = self._decoder.is_long(max(part.positions) + 1)
            segments.append(part.segment(first, is_long=is_long))
            first += len(part.tokens)
        tokens = [token for part in parts for token in part.tokens]
        positions = [position for part in parts for position in part.positions]
        batch = Batch(self._pool, tuple(segments), range(first + -first % TILE), strict=True)
        with torch.no_grad():
            hidden = self._decoder.forward(tokens, positions, batch)[:first]
            with self._decoder.head() as head:
                return torch.cat([head(tile) for tile in torch.split(hidden, TILE)])


@dataclass(frozen=True)
class _Rows:
    """Rows of one sequence: their tokens, positions and slots, and what they see in a tree."""

    tokens: Sequence[int]
    positions: Sequence[int]
    slots: Tensor  # of the sequence's prefix and of these rows
    mask: Tensor | None

    def segment(self, first: int, *, is_long: bool) -> Segment:
        """Return the segment of these rows, the first of which is row `first` of the pass."""
        return Segment(
            first=first,
            count=len(self.tokens),
            start=len(self.slots) - len(self.tokens),
            slots=self.slots,
            positions=torch.tensor(list(self.positions)),
            mask=self.mask,
            cancelled=Event(),
            is_long=is_long,
        )


class _Units:
    """A lender of weights that are all in memory."""

    def __init__(self, units: Sequence[Mapping[str, Tensor]]) -> None:
        self._units = units

    def unit(
        self, index: int, on_wait: OnWait | None = None
    ) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Return the tensors of a unit, which need not be loaded."""
        return nullcontext(self._units[index])


def _key(values: Mapping[str, Any]) -> str:
    """Return a digest of everything that a result depends on."""
    parts = [values, transformers.__version__, torch.__version__, _code()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@cache
def _code() -> str:
    """Return a digest of the source code of this package, which is what is checked."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> str | None:
    """Return the stored fault, "" for none; None if there is no stored result."""
    if not exists(path):
        return None
    with suppress(ModelError):  # damaged: it is found again
        fault = read_object(path).get("fault")
        return fault if isinstance(fault, str) else None
    return None


def _write(path: Path, fault: str) -> None:
    """Store a result. A cache that cannot be written costs the check at each load."""
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, memoryview(json.dumps({"fault": fault}).encode()))
