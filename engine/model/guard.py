"""A check that the decoder gives the library's logits for a family, before any weights are loaded.

A small model of the same structure with random weights runs through our decoder and through the
library's own forward. If the logits differ by more than rounding, or either fails, the family is
refused with that reason. It is refused too if the logits of a token depend on the rows beside it,
with one thread or several. So there is no list of families that work.
"""

import gc
import hashlib
import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from engine.cache_files import cache_root, replace_file
from engine.compiled import attention, formulas, recurrence, vectors
from engine.errors import EngineError, ModelError, printable
from engine.files import exists, read_object
from engine.kv import page_pool
from engine.kv.page_pool import PagePool
from engine.model.attention import Batch
from engine.model.decoder import Decoder
from engine.model.guard_cases import PAGES, ROWS, SEQUENCES, Case, Rows, make_cases
from engine.model.library import build_on_meta
from engine.model.recurrent import recurrent_shapes
from engine.model.reduced import change_text, reduce_depth, reduce_width
from engine.model.reference import Reference
from engine.recurrent import states as recurrent_states
from engine.recurrent.states import SequenceState, StatePool
from engine.spec import TILE
from engine.streaming.device import choose_device
from engine.streaming.ring import OnWait
from engine.weights import family
from engine.weights.config_place import config_place
from engine.weights.family import is_multimodal, kv_shape, make_config
from engine.weights.outline import unit_modules

FOLDER = "checked-families"  # of the cache: one file for each structure that was checked
TOLERANCE = 1e-3  # of the largest logit: far above rounding, far below any other difference
SEEDS = (0, 1)  # rounding may send a row to another expert, but hardly with both
THREADS = (1, 3)  # with more than one, PyTorch cuts elementwise operations into pieces
_STEPS = 3  # tokens that the library decodes with its own cache
_LONGEST_REASON = 300
# Keys of a configuration that change no code. How weights are stored does not: they are expanded.
_NAMES = (
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"),
    *("quantization_config", "compression_config", "quantization"),
)


def check_decoder(config: Any, folder: Path) -> None:
    """Raise `ModelError` unless the decoder gives the library's logits for this configuration.

    The result is kept on disk for each structure, each version of the library and of this package.

    Args:
        config: the configuration of the whole model.
        folder: the folder of the configuration, for messages.
    """
    where = config_place(folder)
    with where.naming():
        small = [small_values(config, narrow=narrow) for narrow in (True, False)]
        path = cache_root() / FOLDER / f"{_key(small[0])}.json"
        fault = _read(path)
        if fault is None:
            fault = _find_fault(small)
            _write(path, fault)
    if fault:
        raise where.error(
            "model_type",
            f" {config.model_type!r}: this server's decoder does not give the library's logits: "
            f"{fault}. Use a model of another family",
        )


def small_values(config: Any, *, narrow: bool) -> dict[str, Any]:
    """Return the values of a small model of the same structure.

    Args:
        narrow: whether widths are reduced too, and not only the depth.

    Raises `ModelError` if the configuration does not say how many layers there are or how wide.
    """

    def reduce(values: dict[str, Any], layers: str, hidden: str) -> dict[str, Any]:
        own = reduce_depth(values, layers)
        own = reduce_width(own, hidden) if narrow else own
        return {key: value for key, value in own.items() if key not in _NAMES}

    values = change_text(config, reduce)
    return {key: value for key, value in values.items() if key not in _NAMES}


def _find_fault(small: Sequence[dict[str, Any]]) -> str:
    """Return how our decoder differs from the library's forward; "" if it does not.

    The first of the small models that the library can run is used.
    """
    fault = ""
    for values, has_side in product(small, (False, True)):
        try:
            config = make_config(values)
            if has_side and not is_multimodal(config):
                continue
            reference = Reference(config, SEEDS[0], has_side=has_side)
            reference.logits(reference.tokens(ROWS[-1]))
        except Exception as error:  # the library, given sizes that it may not be made for
            fault = (
                f"the library itself cannot run a small model of this structure ({_said(error)})"
            )
            continue
        try:
            return _difference(config, reference) and _difference(
                config, Reference(config, SEEDS[1], has_side=has_side)
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
    if not reason:
        last = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"in {last.name} of {Path(last.filename).name}"
    return f"{type(error).__name__}: {reason}"


def _difference(config: Any, reference: Reference) -> str:
    """Return where our logits differ from the library's by more than rounding; "" if nowhere."""
    tokens = reference.tokens(ROWS[1] + _STEPS)
    want = reference.logits(tokens)[-_STEPS:]
    # Nemotron-H bounds the steps of its recurrence, but not where it decodes single tokens.
    for at_once in (1, _STEPS):
        fault = _compare("with its cache", reference.decode(tokens, _STEPS, at_once), want)
        if not fault:
            break
    if fault:
        return f"the library's own logits depend on whether it keeps keys and values: {fault}"
    cases, ours = make_cases(reference), _Ours(config, reference)
    threads = torch.get_num_threads()
    try:
        for count in THREADS:
            torch.set_num_threads(count)
            if fault := _find_difference(cases, ours):
                return fault
    finally:
        torch.set_num_threads(threads)
    return ""


def _find_difference(cases: Sequence[Case], ours: "_Ours") -> str:
    """Return where our logits differ from the library's, or from our own of the same token.

    Return "" if they do nowhere.
    """
    known: dict[tuple[int, ...], Tensor] = {}  # the logits after a text, of the first case with it
    for case in cases:
        found = ours.logits(case.parts)
        if fault := _compare(f"with {case.name}", found, case.want):
            return fault
        for text, logits in zip(ours.texts(case.parts), found, strict=True):
            if not torch.equal(known.setdefault(text, logits), logits):
                return (
                    f"with {case.name} and {torch.get_num_threads()} threads, the logits of a "
                    "token depend on the rows beside it"
                )
    return ""


def _compare(what: str, found: Tensor, want: Tensor) -> str:
    """Return how the logits [rows, V] of a case differ; "" if they differ by rounding only."""
    largest, difference = want.abs().max().item(), (found - want).abs().max().item()
    if difference <= TOLERANCE * largest:  # False for NaN
        return ""
    return f"{what}, logits up to {largest:.3g} differ by {difference:.3g}"


class _Ours:
    """Our decoder with the weights of a reference, and a KV cache for the cases."""

    def __init__(self, config: Any, reference: Reference) -> None:
        model = build_on_meta(config, torch.float32, strict=True)
        stored = reference.weights()
        weights = {name: stored[name] for name in model.state_dict()}
        layers, head = unit_modules(model)
        units = [
            {field: weights.pop(f"{path}.{field}") for field in module.state_dict()}
            for path, module in [*layers, head]
        ]
        shapes = recurrent_shapes(model)
        device = choose_device("cpu")
        self._decoder = Decoder(
            model, _Units(units), weights, device=device.torch_device, strict=True
        )
        self._pool = PagePool.of_shape(kv_shape(config), PAGES, torch.float32, device)
        self._states = StatePool(
            shapes,
            num_states=SEQUENCES,
            num_stashes=SEQUENCES,
            stash_rows=TILE,
            dtype=torch.float32,
            device=device.torch_device,
        )

    def texts(self, parts: Sequence[Rows]) -> Iterator[tuple[int, ...]]:
        """Yield the tokens up to each row of some sequences, after the kind of its rope."""
        for part in parts:
            is_long = self._is_long(part)
            for text in part.texts:
                yield (int(is_long), *text)

    def logits(self, parts: Sequence[Rows]) -> Tensor:
        """Return the logits [rows, V] of the rows of some sequences, which run in one pass."""
        states = [self._open(part) for part in parts]
        try:
            return self._run(parts, states)
        finally:
            for state in states:
                self._states.close(state)

    def _open(self, part: Rows) -> SequenceState:
        """Return the states before some rows, for which the rows before them run again."""
        if part.before is None:
            state = self._states.open()
            assert state is not None
            return state
        state = self._open(part.before)
        if self._states.layers:
            self._run([part.before], [state])
            state.extend(part.kept)
        return state

    def _run(self, parts: Sequence[Rows], states: Sequence[SequenceState]) -> Tensor:
        segments, first = [], 0
        for part, state in zip(parts, states, strict=True):
            segments.append(part.segment(first, state, is_long=self._is_long(part)))
            first += len(part.tokens)
        tokens = [token for part in parts for token in part.tokens]
        positions = [position for part in parts for position in part.positions]
        batch = Batch(self._pool, tuple(segments), range(first + -first % TILE), strict=True)
        with torch.no_grad():
            hidden = self._decoder.forward(tokens, positions, batch)[:first]
            with self._decoder.head() as head:
                return torch.cat([head(tile) for tile in torch.split(hidden, TILE)])

    def _is_long(self, part: Rows) -> bool:
        return self._decoder.is_long(max(map(len, part.texts)))


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
    parts = [values, transformers.__version__, torch.__version__, code_digest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@cache
def code_digest() -> str:
    """Return a digest of the source code of what is checked: this package, KV cache, kernels."""
    digest = hashlib.sha256()
    others = [
        Path(str(module.__file__))
        for module in (family, page_pool, attention, formulas, recurrence, vectors)
    ]
    others += sorted(Path(str(recurrent_states.__file__)).parent.glob("*.py"))
    for path in [*sorted(Path(__file__).parent.glob("*.py")), *others]:
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
