"""Weights in lossless codes: how fast the device decodes them, and the link with and without.

The decoder must be much faster than the link, and is bound by the memory of the device: it reads
the coded weights and their 4-bit copies, and writes the weights. The link is measured as the ring
uses it, with units in the shape of a 7 B layer's largest weight, and without computing.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.first_gpu_run.engine_settings import SIMULATED_GBPS
from benchmarks.first_gpu_run.lab import CannotRun, Lab, gbps
from benchmarks.first_gpu_run.record import Results
from engine.spec import Tier
from engine.streaming.coded import DecodedUnits
from engine.streaming.device import choose_device
from engine.streaming.ring import LayerStream
from engine.triton_kernels import weight_decoder
from engine.weights.coding import coded
from engine.weights.coding.cells import Substitute
from engine.weights.coding.escapes import coded_bytes
from engine.weights.coding.units import encode_unit
from engine.weights.formats import int4, nf4
from engine.weights.layout import UnitLayout, UnitReader, lay_out

SHAPE = (18_944, 3584)
CODED_ROWS = 2368  # that are coded: without numba, a CPU codes only 0.05 GB of weights a second
GROUPS = (32, 64)
WARPS = (2, 4, 8)
UNITS, SLOTS, PASSES = 12, 4, 6


def run(lab: Lab, out: Results) -> None:
    """Code some weights, and measure their decoding, and the link with coded and plain units."""
    if not lab.is_dry and not weight_decoder.is_usable(lab.device):
        raise CannotRun("Triton's kernels do not run here; the log says why")
    rows, columns = lab.choose((CODED_ROWS, SHAPE[1]), (64, 128))
    weight = (torch.randn(rows, columns) * 0.02).bfloat16()
    link, memory = lab.link_bandwidth(), lab.memory_bandwidth()
    copies: dict[str, Substitute | None] = {"exponents": None}
    copies |= {f"groups of {group}": make_copy(weight, group) for group in GROUPS}
    copies["nf4"] = make_nf4_copy(weight)
    for name, copy in copies.items():
        lab.check()
        fields = coded.encode(weight, copy)
        if fields is None:
            raise ValueError("the weights were not coded")
        decoder = Decoder(lab, weight, fields, copy)
        out[f"bits a weight, {name}"] = round(8 * coded_bytes(fields) / weight.numel(), 3)
        for warps in lab.choose(WARPS, (weight_decoder.WARPS,)):
            with patch.object(weight_decoder, "WARPS", warps):
                seconds = lab.device_seconds(decoder.works)
            out[f"{name}, {warps} warps"] = {
                "gbps": gbps(weight.nbytes, seconds),
                "of_reading": round(seconds / (decoder.moved_bytes / memory), 3),
                "of_travelling": round(seconds / (coded_bytes(fields) / link), 3),
                "wrong_weights": decoder.wrong_weights(),
            }
    out["link"] = measure_link(lab, weight, make_copy(weight, GROUPS[0]))


def make_copy(weight: Tensor, group: int) -> Substitute:
    """Return the int4 copy of a weight, in the order of rows."""
    fields = int4.packed_tensors("", tuple(weight.shape), group)
    pairs, scales = (torch.empty(shape, dtype=dtype) for dtype, shape in fields.values())
    int4.quantize(weight, pairs, scales)
    return Substitute(pairs, scales)


def make_nf4_copy(weight: Tensor) -> Substitute:
    """Return the nf4 copy of a weight."""
    fields = nf4.packed_tensors("", tuple(weight.shape))
    pairs, scales = (torch.empty(shape, dtype=dtype) for dtype, shape in fields.values())
    nf4.quantize(weight.float(), pairs, scales)
    return Substitute(pairs, scales)


def on_device(copy: Substitute, device: torch.device) -> Substitute:
    """Return a copy of the copy on a device."""
    return Substitute(copy.pairs.to(device), copy.scales.to(device))


class Decoder:
    """Coded weights on the device, several times, so that no cache holds what is read.

    Attributes:
        works: each decodes one of them.
        moved_bytes: those that one of the works reads and writes.
    """

    def __init__(
        self, lab: Lab, weight: Tensor, fields: Mapping[str, Tensor], copy: Substitute | None
    ) -> None:
        self._wanted = weight
        self._outs: list[Tensor] = []
        self.works = []
        self.moved_bytes = weight.nbytes + coded_bytes(fields)
        if copy is not None:
            self.moved_bytes += copy.pairs.nbytes + copy.scales.nbytes
        for _ in range(lab.copies(self.moved_bytes)):
            own = {name: field.to(lab.device) for name, field in fields.items()}
            kept = None if copy is None else on_device(copy, lab.device)
            found = torch.zeros_like(weight, device=lab.device)
            self._outs.append(found)
            self.works.append(partial(coded.decode, own, kept, found))

    def wrong_weights(self) -> int:
        """Return how many of the weights that were decoded differ from the right ones."""
        wanted = self._wanted.view(torch.int16)
        return sum(int((own.cpu().view(torch.int16) != wanted).sum()) for own in self._outs)


class SameUnits(UnitReader):
    """Units that all have the same bytes."""

    def __init__(self, layout: UnitLayout, memory: Tensor) -> None:
        self.layouts: Sequence[UnitLayout] = [layout] * UNITS
        self._memory = memory

    def read(self, index: int, buffer: Tensor) -> None:
        nbytes = self.layouts[index].nbytes
        buffer[:nbytes] = self._memory[:nbytes]


def measure_link(lab: Lab, weight: Tensor, copy: Substitute) -> dict[str, float]:
    """Return the speed at which units arrive in slots from RAM, plain and coded, in plain bytes."""
    names = [f"{number}.weight" for number in range(lab.choose(SHAPE[0] // CODED_ROWS, 2))]
    layout = lay_out("layer", {name: (weight.dtype, tuple(weight.shape)) for name in names})
    memory = torch.zeros(layout.nbytes, dtype=torch.uint8)
    for view in layout.views(memory).values():
        view.copy_(weight)
    made, code = encode_unit(layout, memory.clone(), dict.fromkeys(names, copy))
    kept = dict.fromkeys(names, on_device(copy, lab.device))
    plain = SameUnits(layout, memory)
    readers: dict[str, UnitReader] = {
        "plain": plain,
        "coded": DecodedUnits(SameUnits(made, code), plain.layouts, lambda _: kept),
    }
    found: dict[str, float] = {}
    for name, reader in readers.items():
        lab.check()
        seconds = _seconds_of_a_pass(lab, reader)
        found[f"{name}_gbps"] = gbps(UNITS * layout.nbytes, seconds)
    found["coded_over_plain"] = round(found["coded_gbps"] / found["plain_gbps"], 3)
    return found


def _seconds_of_a_pass(lab: Lab, reader: UnitReader) -> float:
    device = choose_device(str(lab.device), SIMULATED_GBPS if lab.is_dry else None)
    tiers: list[Tier] = ["ram"] * UNITS
    with closing(LayerStream(reader, tiers, device=device, slots=SLOTS)) as stream:
        began = 0.0
        passes = lab.choose(PASSES, 1)
        for number in range(1 + passes):
            if number == 1:  # the first one warms up
                began = time.perf_counter()
            for unit in range(UNITS):
                with stream.unit(unit):
                    pass
        return (time.perf_counter() - began) / passes
