"""Measure the lossless codes of weights: bits per weight, and the speed of encoder and decoder.

    python -m benchmarks.coding [--json] [--model FOLDER]

The weights are those of the demo's target, or of another checkpoint in safetensors files, and
normally distributed ones in the shapes of a layer of a 1.5 B model. GB/s are bytes of bfloat16 per
second of processor time of one thread, which other load on the machine lengthens less than wall
time. Where gcc is installed, the loop of the decoder in lockstep in C, with the same vectors, runs
in turn with it. A processor that looks up all lanes of a vector at once uses another decoder.
"""

import ctypes
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from math import nan
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.command import make_parser, print_figures
from benchmarks.expansion import processor_seconds
from benchmarks.report_format import Bar, Figures, Table
from benchmarks.runs import describe_machine
from engine.compiled import cell_lockstep, cells as compiled_cells
from engine.weights.coding import cells, coded, exponents
from engine.weights.coding.cells import Substitute
from engine.weights.coding.escapes import PLACES, coded_bytes
from engine.weights.formats import int4, nf4

DEMO = Path(__file__).parents[1] / "configs" / "demo" / "target"
FORMS = ("int4, groups of 32", "int4, groups of 64", "nf4", "no copy")
SHAPES = ((2048, 2048), (512, 2048), (5504, 2048), (2048, 5504))  # (out, in) of a 1.5 B model
TIMED = (1024, 2048)  # the weight that is encoded and decoded on the clock
LEAST_WEIGHTS = 1 << 14
MOST_BITS, MOST_BITS_ALONE = 7.9, 12.2
LEAST_GBPS, LEAST_OF_C = 1.0, 0.8
TRAINED, NORMAL = "trained", "normal, 1.5 B"

C_SOURCE = r"""
#include <stdint.h>
#include <string.h>
typedef int32_t words __attribute__((vector_size(64)));
typedef float floats __attribute__((vector_size(64)));
typedef uint8_t bytes __attribute__((vector_size(16)));
typedef struct { words first, jump, width; } cell;

static inline words all(int32_t value) { return value - (words){}; }
static inline words select(words yes, words one, words other) { return yes & one | ~yes & other; }
static inline words shift(words value, int by) {
    typedef uint32_t natural __attribute__((vector_size(64)));
    return (words)((natural)value >> by);
}

static inline cell find(words code, floats scale, floats zero) {
    floats centre = __builtin_convertvector(code, floats);
    floats low = centre - 8.5f, high = centre - 7.5f;
    low = (floats)select(code == 0, (words)((floats){} - 9.5f), (words)low);
    high = (floats)select(code == 15, (words)((floats){} + 8.5f), (words)high);
    words one = shift((words)(low * scale + zero), 16);
    words other = shift((words)(high * scale + zero), 16);
    words rising = one < other;
    words least = select(rising, one, other), greatest = select(rising, other, one);
    words span = greatest - least, wide = span > 2047;
    words bits = shift((words)__builtin_convertvector(span, floats), 23) - 126;
    words around = greatest > 0x7FFF & least < 0x8000;
    cell found;
    found.width = select(wide, all(11), bits & ~(bits < 0));
    found.first = select(wide, select(around, least - 1023, greatest - 2047), least);
    found.jump = wide & around & (span - 1024);
    return found;
}

static void transpose_bytes(const uint8_t *in, long step, uint8_t *out) {
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 16; column++)
            out[column * 16 + row] = in[row * step + column];
}

void decode(const uint8_t *pairs, const uint32_t *scales, const uint8_t *stream,
            const uint32_t *starts, uint32_t *out, long rows, long half, long groups) {
    long size = 2 * half / groups, segments = (2 * half + 1023) / 1024;
    uint8_t codes[256] __attribute__((aligned(64)));
    uint32_t tile[256] __attribute__((aligned(64)));
    for (long row = 0; row < rows; row += 16) {
        words offset = {};
        floats scale = {}, zero = {};
        const uint8_t *base = stream + starts[row * segments];
        for (long begin = 0; begin < 2 * half; begin += 32) {
            if (begin % 1024 == 0)
                for (int lane = 0; lane < 16; lane++)
                    offset[lane] = 8 * (starts[(row + lane) * segments + begin / 1024]
                                        - starts[row * segments]);
            if (begin % size == 0)
                for (int lane = 0; lane < 16; lane++) {
                    uint32_t both = scales[begin / size * rows + row + lane];
                    uint32_t parts[2] = {both << 16, both & 0xFFFF0000};
                    float found[2];
                    memcpy(found, parts, 8);
                    scale[lane] = found[0], zero[lane] = found[1];
                }
            transpose_bytes(pairs + row * half + begin / 2, half, codes);
            for (int pair = 0; pair < 16; pair++) {
                bytes both;
                memcpy(&both, codes + 16 * pair, 16);
                words code = __builtin_convertvector(both, words), window, byte = shift(offset, 3);
                cell one = find(shift(code, 4), scale, zero), two = find(code & 15, scale, zero);
                for (int lane = 0; lane < 16; lane++) {
                    int32_t word;
                    memcpy(&word, base + byte[lane], 4);
                    window[lane] = word;
                }
                typedef uint32_t natural __attribute__((vector_size(64)));
                window = (words)((natural)window >> (natural)(offset & 7));
                words index = window & ((all(1) << one.width) - 1);
                words first = one.first + index + (index > 1023 & one.jump);
                first &= ~(index == 0 & one.jump > 0);
                window = (words)((natural)window >> (natural)one.width);
                index = window & ((all(1) << two.width) - 1);
                words second = two.first + index + (index > 1023 & two.jump);
                second &= ~(index == 0 & two.jump > 0);
                offset += one.width + two.width;
                words joined = first & 0xFFFF | second << 16;
                memcpy(tile + 16 * pair, &joined, 64);
            }
            for (int lane = 0; lane < 16; lane++)
                for (int pair = 0; pair < 16; pair++)
                    out[(row + lane) * half + begin / 2 + pair] = tile[16 * pair + lane];
        }
    }
}
"""


def main() -> None:
    options = make_parser(__doc__).parse_args()
    torch.set_num_threads(1)
    print_figures(measure(options.model or DEMO, options.rounds), options)


def measure(folder: Path, rounds: int) -> Figures:
    """Measure bits and speeds; return the figures."""
    torch.manual_seed(0)
    sources: dict[str, Callable[[], Iterator[Tensor]]] = {
        TRAINED: partial(checkpoint_weights, folder),
        NORMAL: lambda: ((torch.randn(shape) * 0.02).bfloat16() for shape in SHAPES),
    }
    bits, bars = [], []
    for form in FORMS:
        row: list[object] = [form]
        for source, weights in sources.items():
            found, escapes = bits_per_weight(weights(), form)
            row += [found, 100 * escapes]
            most = MOST_BITS_ALONE if form == FORMS[-1] else MOST_BITS
            bars.append(Bar(f"{source}, {form}", found, "<=", most, "bits a weight"))
        bits.append(row)
    speeds = []
    for form in FORMS:
        encoding, decoding, in_lockstep, in_c = speeds_of(form, rounds)
        share = in_lockstep / in_c
        speeds.append([form, encoding, decoding, in_lockstep, in_c, share])
        bars.append(Bar(f"decoder, {form}", decoding, ">=", LEAST_GBPS, "GB/s"))
        if in_c == in_c:  # not NaN: gcc is there
            bars.append(Bar(f"lockstep over C, {form}", share, ">=", LEAST_OF_C, ""))
    columns = [f"{source}, {what}" for source in sources for what in ("bits a weight", "escapes %")]
    gbps = ["encoder, GB/s", "decoder, GB/s", "lockstep, GB/s", "C, GB/s", "lockstep / C"]
    return Figures(
        name="coding",
        title="Lossless codes of weights, on one core",
        values={"rows": TIMED[0], "columns": TIMED[1]},
        tables=[
            Table("Bits of a bfloat16 weight", ["4-bit copy", *columns], bits),
            Table("Bytes of bfloat16 per second", ["4-bit copy", *gbps], speeds),
        ],
        bars=bars,
        machine=describe_machine(),
    )


def checkpoint_weights(folder: Path) -> Iterator[Tensor]:
    """Yield the matrices of a checkpoint whose copies have whole groups."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # the file is no dictionary
                weight = file.get_tensor(name)
                large = weight.dim() == 2 and weight.numel() >= LEAST_WEIGHTS
                if large and weight.shape[1] % 64 == 0 and "embed" not in name:
                    yield weight.bfloat16()


def bits_per_weight(weights: Iterator[Tensor], form: str) -> tuple[float, float]:
    """Return the bits of a coded weight, and the share of escapes."""
    nbytes = total = escapes = 0
    for weight in weights:
        fields = coded.encode(weight, copy_of(weight, form))
        nbytes += coded_bytes(fields) if fields else weight.nbytes
        escapes += len(fields[PLACES]) if fields else 0
        total += weight.numel()
    return 8 * nbytes / total, escapes / total


def copy_of(weight: Tensor, form: str) -> Substitute | None:
    """Return the 4-bit copy of a weight, of one of `FORMS`."""
    if form == FORMS[-1]:
        return None
    is_nf4 = form == "nf4"
    shape = (weight.shape[0], weight.shape[1])
    specs = (
        nf4.packed_tensors("", shape) if is_nf4 else int4.packed_tensors("", shape, _group(form))
    )
    pairs, scales = (torch.empty(size, dtype=dtype) for dtype, size in specs.values())
    copy = Substitute(pairs, scales)
    (nf4 if is_nf4 else int4).quantize(weight, copy.pairs, copy.scales)
    return copy


def speeds_of(form: str, rounds: int) -> tuple[float, float, float, float]:
    """Return the GB/s of the encoder, the decoder, and that in lockstep, by numba and in C.

    The last two are NaN where there is no copy, and the last one where the copy is not int4, or
    there is no gcc.
    """
    weight = (torch.randn(TIMED) * 0.02).bfloat16()
    copy, out = copy_of(weight, form), torch.empty_like(weight)
    if copy is None:
        fields = exponents.encode(weight) or {}
        encode: Callable[[], object] = partial(exponents.encode, weight)
    else:
        fields, encode = cells.encode(weight, copy), partial(cells.encode, weight, copy)
    decode = partial(coded.decode, fields, copy, out)
    calls: list[Callable[[], object]] = [encode, decode]
    if copy is not None:
        calls.append(partial(call_in_lockstep, decode))
    if copy is not None and copy.is_int4 and (function := compile_c()) is not None:
        again = torch.empty_like(weight)
        in_c = partial(decode_in_c, function, fields, copy, again)
        in_c()
        places = fields[PLACES].long()
        again.view(-1)[places] = weight.view(-1)[places]
        assert torch.equal(again, weight), "the loop in C is another one"
        calls.append(in_c)
    seconds: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()  # is compiled now
    for _ in range(10 * rounds):
        for call, own in zip(calls, seconds, strict=True):
            own.append(processor_seconds(call))
    found = [weight.nbytes / statistics.median(own) / 1e9 for own in seconds]
    encoding, decoding, in_lockstep, of_c, *_ = *found, nan, nan
    return encoding, decoding, in_lockstep, of_c


def call_in_lockstep(decode: Callable[[], object]) -> None:
    """Decode by the decoder for processors that look up the lanes one after the other."""
    with patch.object(compiled_cells, "decoder", lambda: cell_lockstep):
        decode()


def compile_c() -> ctypes.CDLL | None:
    """Return the decoder in C; None without gcc."""
    if shutil.which("gcc") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "decode.c"), Path(folder, "decode.so")
        source.write_text(C_SOURCE)
        options = ["-O3", "-march=native", "-ffp-contract=off", "-w", "-shared", "-fPIC"]
        subprocess.run(["gcc", *options, source, "-o", library], check=True)
        return ctypes.CDLL(str(library))


def decode_in_c(
    function: ctypes.CDLL, fields: dict[str, Tensor], copy: Substitute, out: Tensor
) -> None:
    """Decode a weight, without its escapes, by the function in C."""
    tensors = (copy.pairs, copy.scales, fields[cells.STREAM], fields[cells.STARTS], out)
    sizes = (*copy.pairs.shape, len(copy.scales))
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors)
    function.decode(*pointers, *(ctypes.c_long(size) for size in sizes))


def _group(form: str) -> int:
    return int(form.rpartition(" ")[2])


if __name__ == "__main__":
    main()
