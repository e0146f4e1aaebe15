"""Find out whether a product gives a row the same bits in all circumstances.

    python -m benchmarks.row_bits --device cuda:0 --json

Strict numerics rest on this property of the device's libraries: in a product of 64 rows, the bits
of a row depend neither on its place nor on the other rows, nor on where the weight and the rows lie
in memory (a library may choose a kernel by their alignment), nor on the library's workspace, the
stream, a CUDA graph, or what runs beside. Each product of a 7 B model runs in each circumstance,
and the rows whose bits are not those of the first run are counted. The exit code is 1 if there is
one.
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for streams and graphs.

import argparse
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

Multiply = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # of rows, weight and bias
Work = Callable[[], Tensor]

ROWS = 64
OFFSETS = (16, 64, 256, 512)  # bytes from an aligned address: units begin at any multiple of 64
NUM_KEPT = 8  # rows that stay while all others change
# Products of Qwen2.5 7B, (outputs, inputs).
SHAPES: Mapping[str, tuple[int, int]] = {
    "query": (3584, 3584),
    "key": (512, 3584),
    "gate": (18944, 3584),
    "down": (3584, 18944),
    "head": (152064, 3584),
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LARGEST_FLOAT32 = 1 << 28  # weights: the head is not multiplied in float32
_BUSY_SIZE = 2048  # of the square products that run beside


@dataclass(frozen=True)
class RowBits:
    """The rows of a product whose bits changed, by circumstance."""

    product: str
    changed: Mapping[str, int]

    @property
    def holds(self) -> bool:
        """Return whether no row changed in any circumstance."""
        return not any(self.changed.values())

    def __str__(self) -> str:
        """Return a line that names the circumstances in which rows changed, and the others."""
        same = [name for name, count in self.changed.items() if not count]
        parts = [f"{name}: {count} rows changed" for name, count in self.changed.items() if count]
        return f"{self.product}: " + "; ".join([*parts, f"the same bits in: {', '.join(same)}"])


def measure(
    multiply: Multiply, product: str, weight: Tensor, bias: Tensor | None, rows: int = ROWS
) -> RowBits:
    """Return in which circumstances the rows of a product change their bits.

    Args:
        multiply: the product, of rows [rows, in], `weight` [out, in] and `bias` [out] on a device.
        product: its name.
    """
    made = torch.Generator(weight.device).manual_seed(1)
    inputs = _random(made, rows, weight.shape[1], weight.dtype)
    run = partial(multiply, inputs, weight, bias)
    first = run().clone()
    changed = {"again": _count_changed(run(), first)}
    for number in range(3):
        order = torch.randperm(rows, generator=made, device=weight.device)
        moved = multiply(inputs[order].contiguous(), weight, bias)
        changed[f"other places {number}"] = _count_changed(moved, first[order])
    kept = torch.randperm(rows, generator=made, device=weight.device)[:NUM_KEPT]
    for name, scale in (("random", 1.0), ("zero", 0.0), ("large", 1e3)):
        others = _random(made, rows, weight.shape[1], weight.dtype) * scale
        others[kept] = inputs[kept]
        replaced = multiply(others, weight, bias)[kept]
        changed[f"other rows {name}"] = _count_changed(replaced, first[kept])
    for offset in OFFSETS:
        elsewhere = _copy_at(weight, offset)
        changed[f"weight {offset} B further"] = _count_changed(
            multiply(inputs, elsewhere, bias), first
        )
        del elsewhere
        shifted = _copy_at(inputs, offset)
        changed[f"rows {offset} B further"] = _count_changed(multiply(shifted, weight, bias), first)
    around = _around_cuda if weight.is_cuda else _around_cpu
    for name, result in around(run, weight.device):
        changed[name] = _count_changed(result, first)
    return RowBits(product, changed)


def _random(generator: torch.Generator, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    values = torch.randn(rows, width, generator=generator, device=generator.device)
    return values.to(dtype)


def _count_changed(result: Tensor, wanted: Tensor) -> int:
    """Return how many rows of two results are not equal bit for bit."""
    kind = {2: torch.int16, 4: torch.int32}[result.element_size()]
    different = result.contiguous().view(kind) != wanted.contiguous().view(kind)
    return int(different.any(-1).sum())


def _copy_at(tensor: Tensor, offset: int) -> Tensor:
    """Return a copy that begins `offset` bytes after the beginning of an allocation.

    It is a view of bytes, as a unit in a slot of the ring.
    """
    room = torch.empty(tensor.nbytes + offset, dtype=torch.uint8, device=tensor.device)
    return room[offset:].view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _around_cpu(run: Work, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Yield the results of the product while other threads compute."""
    with _busy_thread():
        yield "beside other work", run()


@contextmanager
def _busy_thread() -> Iterator[None]:
    """Let a thread multiply matrices within the block."""
    ended, square = threading.Event(), torch.rand(256, 256)

    def multiply() -> None:
        while not ended.is_set():
            square @ square

    thread = threading.Thread(target=multiply)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _around_cuda(run: Work, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Yield the results of the product on other streams, beside other work, and in a graph."""
    square = torch.rand(_BUSY_SIZE, _BUSY_SIZE, device=device).bfloat16()
    for priority in (0, -1):
        stream = torch.cuda.Stream(device, priority=priority)
        stream.wait_stream(torch.cuda.current_stream(device))
        yield f"another stream, priority {priority}", _run_on(stream, run)
        beside = torch.cuda.Stream(device)
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            for _ in range(20):
                square @ square
        yield f"beside other work, priority {priority}", _run_on(stream, run)
    torch._C._cuda_clearCublasWorkspaces()
    yield "a new workspace", run()
    # The workspace is allocated anew beside memory that was freed, so it lies elsewhere.
    held = [torch.empty(size << 20, dtype=torch.uint8, device=device) for size in (1, 7, 33)]
    torch._C._cuda_clearCublasWorkspaces()
    del held
    yield "a workspace elsewhere", run()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    with torch.cuda.graph(graph, stream=stream):
        result = run()
    graph.replay()
    torch.cuda.synchronize(device)
    yield "in a graph", result
    with torch.cuda.stream(stream):
        for _ in range(20):
            square @ square
    result.zero_()
    graph.replay()
    torch.cuda.synchronize(device)
    yield "in a graph beside other work", result


def _run_on(stream: torch.cuda.Stream, run: Work) -> Tensor:
    with torch.cuda.stream(stream):
        result = run()
    torch.cuda.synchronize(stream.device)
    return result


def products(
    device: torch.device,
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Yield the name, the weight and the bias of each product, with and without a bias."""
    made = torch.Generator(device).manual_seed(0)
    for dtype in dtypes:
        for name, (outputs, inputs) in shapes.items():
            if dtype == torch.float32 and outputs * inputs > LARGEST_FLOAT32:
                continue
            weight = torch.empty(outputs, inputs, dtype=dtype, device=device)
            weight.normal_(std=0.02, generator=made)
            bias = torch.empty(outputs, dtype=dtype, device=device).normal_(generator=made)
            kind = str(dtype).removeprefix("torch.")
            yield f"{name}, {kind}", weight, None
            yield f"{name}, {kind}, with bias", weight, bias


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the product as the layers of a model compute it, with one sequence of rows."""
    return F.linear(rows[None], weight, bias)[0]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.row_bits", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--device", default="cuda:0", help="where the products run")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of each product")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    with torch.inference_mode():
        found = [
            measure(linear, name, weight, bias, args.rows)
            for name, weight, bias in products(torch.device(args.device))
        ]
    if args.json:
        print(json.dumps([asdict(own) for own in found], indent=2))
    else:
        print("\n".join(map(str, found)))
    return int(not all(own.holds for own in found))


if __name__ == "__main__":
    raise SystemExit(main())
