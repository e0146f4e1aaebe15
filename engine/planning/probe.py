"""Measurements of how fast the machine computes a model, in about a second before it is loaded.

Only the first layer and the head are timed, because layers are alike: a pass takes the time of a
layer for each of them, and the head's. Of models with recurrent layers, one of each kind is timed.
The tokens of a pass differ from each other, so that they choose different experts of a mixture.
"""

import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from threading import Event
from typing import Any

import torch
from torch import Tensor, nn

from engine.drafting.method import DraftNeeds
from engine.drafting.model.substitutes import linear_paths
from engine.kv.page_pool import PAGE, PagePool
from engine.kv.page_table import PageTable
from engine.library_call import library_call
from engine.model.attention import Batch
from engine.model.decoder import Decoder
from engine.model.library import build_on_meta
from engine.model.recurrent import recurrent_shapes
from engine.model.reduced import change_text, keep_layers
from engine.model.segment import Segment
from engine.planning.blueprint import FAST_TILE, Blueprint
from engine.planning.footprint import activation_bytes
from engine.planning.machine import name_shortage
from engine.planning.threads import (
    choose_strict_threads,
    choose_threads,
    use_threads_that_keep_bits,
)
from engine.recurrent.states import SequenceState, StatePool
from engine.spec import TILE
from engine.streaming.device import Device
from engine.streaming.pinned import allocate_pages
from engine.streaming.ring import OnWait
from engine.timing import StepTimes, time_runs
from engine.weights.config_place import config_place
from engine.weights.expert_weights import ExpertWeights, find_experts
from engine.weights.family import attention_layers, kv_shape, make_config, text_config
from engine.weights.formats.joined import sibling_paths
from engine.weights.formats.linear import Kernel, best_kernel, linear, stored_tensors
from engine.weights.formats.tensor_cores import compute_dtype
from engine.weights.layout import Fields, lay_out, round_up
from engine.weights.outline import Outline, decoder_layers
from engine.weights.stored_format import Packing, Shape, packings

LARGEST_LAYER = 512 << 20  # bytes; a larger layer is not allocated only to be timed
LARGEST_TRIAL = 896 << 20  # bytes of a layer, the head, and what passes over them take
ROWS = (64, 128, 256, 512)  # of the passes that are timed
EXPERT_ROWS = (1, 4, 16, *ROWS)  # of mixtures, where more rows multiply with more experts
CONTEXT = 4096  # tokens that the rows of one more pass attend to, to time attention
SECONDS = 0.6  # for timing passes at most; larger passes are not timed then
RUNS = 3  # of one size: the fastest counts, because other processes use the machine too
PROBE_WEIGHTS = 16 << 20  # weights that are expanded, or in products; more are timed by a slice
DEVICE_PROBE_WEIGHTS = 128 << 20  # of a product on a GPU, which fewer would not keep busy
CACHED_BYTES = 128 << 20  # more than a GPU's second-level cache holds
ROWS_TOGETHER = 256  # rows of a packed weight that may share scales
_FILL = 0x3C  # every byte of the weights: 0.01 in bfloat16 and float32, 1.06 in float16


@dataclass(frozen=True)
class MeasuredPass:
    """The times of a pass that does not wait for weights; empty if none was timed."""

    # Seconds by rows, without attention over long contexts.
    rows: StepTimes = field(default_factory=StepTimes)
    # Seconds of attention for each pair of a row and a token that it attends to.
    pair_seconds: float = 0.0


def pass_times(blueprint: Blueprint, device: Device) -> MeasuredPass:
    """Return the measured times of a pass, empty if a layer is too large to be allocated now.

    Raises `ModelError` if the layer cannot be run, for example because numbers in config.json
    contradict each other, or other programs use the device's memory.
    """
    if blueprint.strict and not device.is_asynchronous:
        use_threads_that_keep_bits(blueprint.dtype)
    try:
        with (
            library_call(config_place(blueprint.folder)),
            name_shortage(device, "measuring its speed"),
        ):
            return _measure(blueprint, device)
    finally:
        gc.collect()  # model and decoder refer to each other and would hold the layer's memory


def _measure(blueprint: Blueprint, device: Device) -> MeasuredPass:
    # Layers are alike, but for recurrent ones among those with attention.
    kept = sorted({0, attention_layers(blueprint.config)[0]}) if blueprint.recurrent else [0]
    with torch.inference_mode():
        values = change_text(
            blueprint.whole_config, lambda own, layers, _: keep_layers(own, kept, layers)
        )
        whole = make_config(values)
        config = text_config(whole)
        model = build_on_meta(whole, blueprint.dtype, strict=blueprint.strict)
        outline = Outline(model, blueprint.dtype, None, {})
        sizes = [layout.nbytes for layout in outline.layouts]
        if (
            max(sizes) > LARGEST_LAYER
            or sum(sizes) + _work_bytes(blueprint, device) > LARGEST_TRIAL
        ):
            return MeasuredPass()
        states = _new_state(model, blueprint.dtype, device)
        decoder = Decoder(
            model,
            _ConstantWeights(outline, device, find_experts(decoder_layers(model))),
            _other_tensors(model, outline),
            device=device.torch_device,
            strict=blueprint.strict,
            tile=FAST_TILE,
        )
        return _time_passes(decoder, config, blueprint, device, states)


def _new_state(model: Any, dtype: torch.dtype, device: Device) -> SequenceState:
    """Return the states of a sequence in the recurrent layers of a model without weights."""
    pool = StatePool(
        recurrent_shapes(model),
        num_states=1,
        num_stashes=1,
        stash_rows=TILE,
        dtype=dtype,
        device=device.torch_device,
    )
    state = pool.open()
    assert state is not None, "there is room for one"
    return state


def _work_bytes(blueprint: Blueprint, device: Device) -> int:
    """Return the bytes of the timed passes without weights: activations, and KV of one layer."""
    demand = blueprint.demand(DraftNeeds(scratch_rows=0), packed=False)
    demand = replace(demand, tile=min(demand.tile, ROWS[-1]))
    context = CONTEXT + ROWS[0]
    kv = context * demand.kv_bytes_per_token // kv_shape(blueprint.config).num_layers
    own = device.has_own_memory
    return activation_bytes(demand, ROWS[-1], context, has_own_memory=own) + kv


def _time_passes(
    decoder: Decoder, config: Any, blueprint: Blueprint, device: Device, states: SequenceState
) -> MeasuredPass:
    # A model with learned positions has none beyond its context.
    longest = min(CONTEXT + ROWS[0], blueprint.context_length) // PAGE * PAGE
    pages = max(longest, ROWS[0]) // PAGE
    dtype = blueprint.dtype
    layers = blueprint.config.num_hidden_layers / config.num_hidden_layers
    attending = len(attention_layers(blueprint.config)) / max(len(attention_layers(config)), 1)
    pool = PagePool.of_shape(kv_shape(config), pages, dtype, device)
    slots = PageTable(pages=list(range(pages))).slots(device.torch_device)
    times = StepTimes()

    def forward(rows: int, context: int = 0) -> Callable[[], Tensor]:
        where = range(context, context + rows)
        positions = torch.tensor(where, device=device.torch_device)
        segment = Segment(
            first=0,
            count=rows,
            start=context,
            slots=slots[: where.stop],
            positions=positions,
            mask=None,
            cancelled=Event(),
            state=states,
        )
        batch = Batch(pool, (segment,), range(rows), decoder.strict)

        def run() -> Tensor:
            states.begin_at(context)
            return decoder.forward(
                [row % blueprint.vocab_size for row in range(rows)], where, batch
            )

        return run

    if not device.is_asynchronous:  # the threads of this process do the computing
        step = forward(ROWS[0])
        step()  # the first one loads compiled code, which takes longer than any other
        if decoder.strict:
            values = blueprint.whole_config.to_dict()
            choose_strict_threads(lambda: fastest(step, device), blueprint.dtype, values)
        else:
            choose_threads(lambda: fastest(step, device))
    until = time.perf_counter() + SECONDS
    with decoder.head() as head:
        shape_of_state = (TILE, blueprint.hidden_size)
        state = torch.full(shape_of_state, 0.01, dtype=dtype, device=device.torch_device)
        of_head = fastest(lambda: head(state), device)
    short = fastest(forward(ROWS[0]), device)
    context = pages * PAGE - ROWS[0]
    attention = fastest(forward(ROWS[0], context), device) - short if context else 0.0
    times.observe(ROWS[0], layers * short + of_head)
    for rows in EXPERT_ROWS if blueprint.experts.count else ROWS:
        if rows > pages * PAGE or time.perf_counter() > until:
            break
        if rows != ROWS[0]:
            times.observe(rows, layers * fastest(forward(rows), device) + of_head)
    return MeasuredPass(times, attending * max(attention, 0.0) / (ROWS[0] * max(context, 1)))


def substitute_times(blueprint: Blueprint, device: Device, width: int) -> StepTimes:
    """Return the times of a draft step, by rows, of 4-bit copies of the target's layers.

    Products are timed as the draft runs them: in its kernel, with layers of the same input joined,
    and as a graph where the device has graphs. Rows are expected to choose experts at random.

    Args:
        width: the rows of a draft step of one sequence.
    """
    layers, untyped = [*decoder_layers(blueprint.model)], blueprint.model
    shapes = [_joined_shapes(own) for own in (*layers, untyped.get_output_embeddings())]
    kernel = best_kernel([*shapes[0]], blueprint.spec.draft.group, device.torch_device)
    seconds = dict.fromkeys(sorted({1, width, 8 * width}), 0.0)
    mixtures = blueprint.demand(DraftNeeds(scratch_rows=0), packed=False).experts
    with torch.inference_mode():
        for shape, count in sum(shapes, Counter[tuple[int, int]]()).items():
            product = _Product(shape, count, blueprint, device, kernel)
            for rows in seconds:
                seconds[rows] += count * product.seconds(rows)
        for shape, count in _expert_shapes(layers).items():
            assert mixtures is not None, "layers have experts"
            product = _Product(shape, count * mixtures.count, blueprint, device, kernel)
            for rows in seconds:
                chosen = mixtures.expected(rows)
                of_each = round(rows * mixtures.chosen / chosen)
                seconds[rows] += count * chosen * product.seconds(of_each)
    times = StepTimes()
    for rows, total in seconds.items():
        times.observe(rows, total)
    return times


def _joined_shapes(unit: nn.Module) -> Counter[tuple[int, int]]:
    """Return how many products of each shape (out, in) a draft runs in a unit, without experts."""
    paths = linear_paths(unit)
    linears: dict[str, Any] = {path: unit.get_submodule(path) for path in paths}
    groups = sibling_paths(paths)
    alone = [(path,) for path in paths if path not in set(chain.from_iterable(groups))]
    return Counter(
        (sum(linears[path].out_features for path in own), linears[own[0]].in_features)
        for own in [*groups, *alone]
    )


def _expert_shapes(layers: Sequence[nn.Module]) -> Counter[tuple[int, int]]:
    """Return how many fused weights, by the shape (out, in) of an expert's, layers have."""
    return Counter(
        (second, first) if is_turned else (first, second)
        for layer in layers
        for name, is_turned in find_experts([layer]).stacks.items()
        for _, first, second in [layer.get_parameter(name).shape]
    )


class _Product:
    """A 4-bit product of a draft, or some rows of its weight, in order to time it.

    Args:
        shape: of the weight, (out, in).
        count: the weights of this shape in the draft.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        count: int,
        blueprint: Blueprint,
        device: Device,
        kernel: Kernel,
    ) -> None:
        self._device = device
        here, group = device.torch_device, blueprint.spec.draft.group
        out_features, self._in_features = shape
        most = DEVICE_PROBE_WEIGHTS if device.has_own_memory else PROBE_WEIGHTS // 4
        part = min(out_features, max(most // self._in_features // 64, 1) * 64)
        self._dtype = compute_dtype(here)
        spec = (self._dtype, (part, self._in_features))
        stored = stored_tensors("weight", spec, group, here, kernel)
        fields = {name: torch.zeros(size, dtype=kind) for name, (kind, size) in stored.items()}
        nbytes = sum(field.nbytes for field in fields.values())
        # The weights of a large model do not stay in a GPU's cache from one step to the next.
        copies = min(-(-CACHED_BYTES // nbytes), count) if device.has_own_memory else 1
        self._copies = [linear(fields, "", here) for _ in range(copies)]
        self._share = out_features / part / copies

    def seconds(self, rows: int) -> float:
        """Return the seconds of the whole product of this number of rows."""
        size, here = (rows, self._in_features), self._device.torch_device
        inputs = torch.full(size, 0.01, dtype=self._dtype, device=here)

        def run() -> Tensor:
            for product in self._copies:
                result: Tensor = product(inputs)
            return result

        capture = self._device.capture()
        step = run if capture is None else capture(run)
        return self._share * fastest(step, self._device)


def expanding_times(blueprint: Blueprint, device: Device) -> dict[str, float]:
    """Return the seconds in which packed weights expand to one dense byte, by packing's suffix.

    Some rows of the first weight of each packing are timed.
    """
    known, found = packings(), dict[str, float]()
    wanted = set(blueprint.expansions)
    for part in chain.from_iterable(blueprint.outlines[True].parts):
        fields = part.stored or part.quantized
        suffix = next(iter(fields), "")
        if suffix in wanted - found.keys():
            packing = known[suffix]
            found[suffix] = _expanding_seconds(packing, fields, part.shape, blueprint.dtype, device)
    return found


def _expanding_seconds(
    packing: Packing, fields: Fields, shape: Shape, dtype: torch.dtype, device: Device
) -> float:
    """Return the seconds in which some rows, or experts, of a weight expand to one dense byte."""
    # Rows that share a scale stay together.
    most = max(PROBE_WEIGHTS // math.prod(shape[1:]), 1)
    most = min(most if len(shape) > 2 else round_up(most, ROWS_TOGETHER), shape[0])

    def some(size: Shape) -> Shape:
        return (-(-size[0] * most // shape[0]), *size[1:])

    here = device.torch_device
    specs = {suffix: (kind, some(size)) for suffix, (kind, size) in fields.items()}
    layout = lay_out("", specs)
    views = layout.views(torch.full((layout.nbytes,), _FILL, dtype=torch.uint8, device=here))
    packed = [views[suffix] for suffix in packing.suffixes]
    size = packing.dense_shape(specs[packing.suffixes[0]][1])
    with torch.inference_mode():
        out = torch.empty(size, dtype=dtype, device=here)
        packing.expand(*packed, out)  # the first call may compile code, which takes seconds
        return fastest(lambda: packing.expand(*packed, out), device) / out.nbytes


def fastest(step: Callable[[], object], device: Device) -> float:
    """Return the seconds of the fastest of some runs, without the first, which warms up.

    A step so slow that the warm-up does not matter runs only once.
    """

    def run() -> None:
        step()
        device.synchronize()

    (first,) = time_runs(run, 1)
    if first > SECONDS / 2:  # so slow that the warm-up is a small part of it
        return first
    return min(time_runs(run, RUNS))


class _ConstantWeights:
    """The weights of a layer and a head on the device: random ones of routers, all others equal."""

    def __init__(self, outline: Outline, device: Device, experts: ExpertWeights) -> None:
        self._views = [
            layout.views(allocate_pages(layout.nbytes).fill_(_FILL).to(device.torch_device))
            for layout in outline.layouts
        ]
        for views in self._views:
            for name in experts.others & views.keys():
                views[name].normal_()

    def unit(
        self, index: int, on_wait: OnWait | None = None
    ) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Return the tensors of a unit, which need not be loaded."""
        return nullcontext(self._views[index])


def _other_tensors(model: Any, outline: Outline) -> dict[str, Tensor]:
    """Return embedding and norms by name. Rows of the embedding differ, and share memory."""
    return {
        name: torch.randn(sum(shape)).mul_(0.01).to(dtype).as_strided(shape, (1,) * len(shape))
        for name, (dtype, shape) in outline.other_tensors.items()
    }
