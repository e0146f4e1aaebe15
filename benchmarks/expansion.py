"""Measure how fast packed weights are expanded on one core: by compiled code, by torch, by gguf.

    python -m benchmarks.expansion [--json]

Each form of packed weights is expanded to bfloat16, in turn by compiled code, by the operations of
torch that are used without numba, and, for the blocks of GGUF, by the numpy functions of the
package gguf, which give float32. GB/s are bytes of bfloat16 per second of processor time of one
thread, which other load on the machine lengthens less than wall time; figures are medians over the
rounds. The compiled code is compiled before.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.command import make_parser, print_figures
from benchmarks.report_format import Bar, Figures, Table
from benchmarks.runs import describe_machine
from engine.compiled.compiler import switched_off
from engine.weights.formats import awq, groups, mxfp4, scaled_codes
from engine.weights.gguf_blocks import expand_into
from engine.weights.gguf_file import TYPES

ROWS, COLUMNS = 512, 4096
GBPS_AT_LEAST = 1.0
COMPILED, TORCH, PACKAGE = "compiled", "torch", "package gguf"


@dataclass(frozen=True)
class Form:
    """A form of packed weights: the functions that expand a matrix of it."""

    expand: Callable[[], None]
    by_package: Callable[[], object] | None = None


def main() -> None:
    options = make_parser(__doc__, takes_model=False).parse_args()
    torch.set_num_threads(1)
    print_figures(measure(options.rounds), options)


def measure(rounds: int) -> Figures:
    """Measure all forms; return the figures."""
    torch.manual_seed(0)
    out = torch.empty(ROWS, COLUMNS, dtype=torch.bfloat16)
    rows, bars = [], []
    for name, form in (block_forms(out) | group_forms(out)).items():
        gbps = measure_form(form, rounds)
        fast, slow, package = (gbps.get(way, float("nan")) for way in (COMPILED, TORCH, PACKAGE))
        rows.append([name, fast, slow, package, fast / slow, fast / package])
        bars.append(Bar(f"{name}, compiled", fast, ">=", GBPS_AT_LEAST, "GB/s"))
    columns = [f"{way}, GB/s" for way in (COMPILED, TORCH, PACKAGE)]
    over = [f"{COMPILED} / {way}" for way in (TORCH, PACKAGE)]
    return Figures(
        name="expansion",
        title="Expansion of packed weights on one core",
        values={"rows": ROWS, "columns": COLUMNS},
        tables=[Table("Bytes of bfloat16 per second", ["form", *columns, *over], rows)],
        bars=bars,
        machine=describe_machine(),
    )


def measure_form(form: Form, rounds: int) -> dict[str, float]:
    """Return the GB/s of each way of expanding a form."""
    ways: dict[str, Callable[[], object]] = {COMPILED: form.expand, TORCH: form.expand}
    if form.by_package:
        ways[PACKAGE] = form.by_package
    form.expand()  # is compiled now
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, call in ways.items():
            if way == TORCH:
                with switched_off():
                    seconds[way].append(processor_seconds(call))
            else:
                seconds[way].append(processor_seconds(call))
    nbytes = ROWS * COLUMNS * torch.bfloat16.itemsize
    return {way: nbytes / statistics.median(found) / 1e9 for way, found in seconds.items()}


def processor_seconds(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def block_forms(out: Tensor) -> dict[str, Form]:
    """Return the forms of GGUF's blocks that expand to `out` [rows, columns], on its device."""
    forms = {}
    rows, columns = out.shape
    for type_ in TYPES.values():
        if type_.is_plain:
            continue
        nbytes = columns // type_.size * type_.nbytes
        blocks = torch.randint(256, (rows, nbytes), dtype=torch.uint8, device=out.device)
        forms[type_.name] = Form(
            partial(expand_into, type_.name, blocks, out),
            partial(_by_package, type_.name, blocks),
        )
    return forms


def _by_package(name: str, blocks: Tensor) -> object:
    import gguf  # machines with a GPU need not have it
    import numpy as np

    with np.errstate(all="ignore"):  # some of the random scales are NaN
        return gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[name])


def group_forms(out: Tensor) -> dict[str, Form]:
    """Return the forms of codes that share scales and expand to `out`, on its device."""
    (rows, columns), device = out.shape, out.device
    words = torch.randint(-(1 << 31), 1 << 31, (columns, rows // 8), device=device)
    words = words.to(torch.int32)
    sizes = (1, columns, rows // 32)
    blocks = torch.randint(256, (*sizes, 16), dtype=torch.uint8, device=device)
    exponents = torch.randint(100, 150, sizes, dtype=torch.uint8, device=device)
    experts = torch.empty(mxfp4.expanded_shape(blocks.shape), dtype=out.dtype, device=device)
    with_zeros = _scaled(scaled_codes.Form("uint4", has_zeros=True), (1, 128), out)

    def expand_awq() -> None:
        awq.transpose(words)
        with_zeros()

    return {
        "int4, groups of 32": Form(_scaled(scaled_codes.Form("uint4"), (1, 32), out)),
        "int4, groups of 128 (compressed-tensors)": Form(
            _scaled(scaled_codes.Form("uint4"), (1, 128), out)
        ),
        "int4, groups of 128 with zeros (AWQ, GPTQ)": Form(with_zeros),
        "int4, groups in any order (GPTQ, desc_act)": Form(
            _scaled(scaled_codes.Form("uint4", has_zeros=True, has_order=True), (1, 128), out)
        ),
        "int4, groups of 128 (AWQ, with the transposition when it is read)": Form(expand_awq),
        "int8, a scale for each row": Form(_scaled(scaled_codes.Form("int8"), (1, columns), out)),
        "FP8, blocks of 128": Form(_scaled(scaled_codes.Form("e4m3"), (128, 128), out)),
        "nvfp4": Form(_scaled(scaled_codes.Form("e2m1", has_divisor=True), (1, 16), out)),
        "MXFP4 experts, transposed": Form(partial(mxfp4.expand, blocks, exponents, experts)),
    }


def _scaled(form: scaled_codes.Form, block: groups.Block, out: Tensor) -> Callable[[], None]:
    """Return the expansion of a weight of this form with random codes."""
    dtype = torch.float8_e4m3fn if form.has_divisor else torch.float16
    rows, columns = out.shape
    layout = scaled_codes.ScaledLayout(form, (rows, columns), block, dtype)
    fields = dict[str, Tensor]()
    for suffix, (kind, shape) in layout.fields.items():
        fields[suffix] = torch.rand(shape, device=out.device).to(kind)
        if suffix not in (scaled_codes.SCALES, scaled_codes.DIVISOR):
            nbytes = fields[suffix].view(torch.uint8)
            nbytes.random_(256)
    if form.has_order:
        order = torch.randperm(columns, device=out.device) // block[1]
        fields[scaled_codes.ORDER].copy_(order)
    return partial(scaled_codes.expand, form, *fields.values(), out)


if __name__ == "__main__":
    main()
