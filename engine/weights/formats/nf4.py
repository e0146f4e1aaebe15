"""NF4 weights: 4-bit codes of normal quantiles in blocks that share one absolute maximum.

The only file that imports bitsandbytes, and it does so on first use.
Source: Dettmers et al., QLoRA, arXiv 2305.14314, section 3.
"""

import functools
import importlib.util
import json
import logging
from collections.abc import Iterator, Mapping
from types import ModuleType

import torch
from torch import Tensor, nn

from engine.errors import ModelError
from engine.weights.layout import UnitLayout, lay_out

BLOCK = 64  # weights that share one absolute maximum
PACKED = ".nf4"  # field suffix: uint8 [..., in / 2], the first weight of a byte in its high half
ABSMAX = ".absmax"  # field suffix: float32 [..., in / block]
_ROW_MULTIPLE = 32  # the fused CPU product works on blocks of 32 rows
_CHUNK_WEIGHTS = 1 << 20  # what is quantized or expanded at once: its temporaries stay in cache

# bitsandbytes.functional.create_normal_map, as float32
_CODE = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@functools.cache
def _bitsandbytes() -> ModuleType:
    # on import it warns that an optional package is missing which we do not want
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import bitsandbytes
        import bitsandbytes.functional
    except ImportError as error:
        raise ModelError(
            f"nf4 needs the package bitsandbytes, which cannot be imported: {error}. "
            "Install it, or remove `quantize: nf4`"
        ) from error
    module: ModuleType = bitsandbytes
    return module


def is_available() -> bool:
    """Whether bitsandbytes is installed; it is not imported."""
    return importlib.util.find_spec("bitsandbytes") is not None


def can_quantize(shape: tuple[int, ...]) -> bool:
    """Whether a weight of this shape (rows last but one) is kept in nf4; else it stays dense.

    bitsandbytes' CPU expansion is silently wrong where a row is no whole number of blocks.
    """
    return len(shape) >= 2 and shape[-1] % BLOCK == 0


def packed_tensors(
    name: str, shape: tuple[int, ...], block: int = BLOCK
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The two fields that stand for the dense tensor `name` of `shape`."""
    *rows, columns = shape
    return {
        name + PACKED: (torch.uint8, (*rows, columns // 2)),
        name + ABSMAX: (torch.float32, (*rows, columns // block)),
    }


def packed_nbytes(in_features: int, out_features: int) -> int:
    """Bytes of one weight's codes and maxima."""
    return out_features * (in_features // 2 + in_features // BLOCK * 4)


def quantize(weight: Tensor, packed: Tensor, absmax: Tensor) -> None:
    """Quantize `weight` [..., in] (float) into `packed` and `absmax` of `packed_tensors`."""
    functional = _bitsandbytes().functional
    columns = weight.shape[-1]
    dense = weight.reshape(-1, columns)
    codes, scales = packed.view(-1, columns // 2), absmax.view(-1, columns // BLOCK)
    for rows in _chunks(dense.shape[0], columns):
        code, state = functional.quantize_4bit(
            dense[rows].contiguous(), blocksize=BLOCK, quant_type="nf4", compress_statistics=False
        )
        codes[rows] = code.view(-1, columns // 2)
        scales[rows] = state.absmax.view(-1, columns // BLOCK)


def dequantize(packed: Tensor, absmax: Tensor, out: Tensor) -> None:
    """Expand codes [..., in / 2] and maxima [..., in / block] into `out` [..., in]."""
    functional = _bitsandbytes().functional  # codes as [n, 1]: it transposes what has one row
    columns = out.shape[-1]
    block = columns // absmax.shape[-1]
    dense = out.view(-1, columns)
    codes, scales = packed.view(-1, columns // 2), absmax.view(-1, absmax.shape[-1])
    if out.device.type != "cpu":
        functional.dequantize_4bit(
            codes.view(-1, 1), absmax=scales.view(-1), out=dense, blocksize=block, quant_type="nf4"
        )
        return
    for rows in _chunks(dense.shape[0], columns):  # there is no `out` kernel for CPU
        state = functional.QuantState(
            scales[rows].view(-1),
            shape=dense[rows].shape,
            dtype=out.dtype,
            blocksize=block,
            quant_type="nf4",
        )
        dense[rows] = functional.dequantize_4bit(codes[rows].view(-1, 1), state)


def dequantize_any(packed: Tensor, absmax: Tensor, out: Tensor, block: int) -> None:
    """Expand a stored tensor whose rows are no whole number of blocks: blocks run across rows."""
    code = torch.tensor(_CODE)
    flat = packed.view(-1)
    values = torch.stack([code[(flat >> 4).int()], code[(flat & 15).int()]], dim=-1).view(-1)
    scales = absmax.view(-1).repeat_interleave(block)[: out.numel()]
    out.copy_(values[: out.numel()].mul_(scales).view(out.shape))


def nested_absmax(stored: Mapping[str, Tensor], state: Mapping[str, object]) -> Tensor:
    """Float32 maxima of a double-quantized checkpoint tensor.

    `stored` has `absmax` (uint8), `nested_absmax`, `nested_quant_map`; `state` is the tensor's
    quant_state. Source: QLoRA, section 3, "Double Quantization".
    """
    block = int(str(state["nested_blocksize"]))
    maxima = stored["nested_absmax"].float().repeat_interleave(block)
    codes = stored["absmax"].view(-1)
    values = stored["nested_quant_map"].float()[codes.int()] * maxima[: codes.numel()]
    return values + float(str(state["nested_offset"]))


def parse_state(raw: Tensor, name: str) -> dict[str, object]:
    """The quant_state of a stored tensor: JSON in a uint8 tensor. Raises `ModelError`."""
    try:
        state = json.loads(bytes(raw.view(-1).tolist()))
        blocksize, shape = int(state["blocksize"]), [int(size) for size in state["shape"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{name}: unreadable bitsandbytes quant_state ({error})") from error
    return {**state, "blocksize": blocksize, "shape": shape}


def is_packed(unit: UnitLayout) -> bool:
    """Whether any field of the unit waits for `expand`."""
    return any(field.name.endswith(PACKED) for field in unit.fields)


def dense_layout(unit: UnitLayout, dtype: torch.dtype) -> UnitLayout:
    """The scratch slab that `expand` fills: the dense form of the unit's packed fields only."""
    tensors = {
        field.name.removesuffix(PACKED): (dtype, (*field.shape[:-1], field.shape[-1] * 2))
        for field in unit.fields
        if field.name.endswith(PACKED)
    }
    return lay_out(unit.name, tensors)


def expand(views: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The unit's tensors with every packed one expanded into its place in `out`.

    `views` are the unit's own fields, `out` the views of a slab laid out by `dense_layout`, on the
    same device. Dense fields are passed through, not copied.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in views.items():
        if name.endswith(PACKED):
            dense = name.removesuffix(PACKED)
            dequantize(tensor, views[dense + ABSMAX], out[dense])
            tensors[dense] = out[dense]
        elif not name.endswith(ABSMAX):
            tensors[name] = tensor
    return tensors


class Nf4Linear(nn.Module):
    """A linear layer whose weight is nf4; on CPU bitsandbytes' fused product runs it."""

    def __init__(self, packed: Tensor, absmax: Tensor, bias: Tensor | None) -> None:
        """`packed` [out, in / 2], `absmax` [out, in / 64], `bias` [out], all on the device."""
        super().__init__()
        library = _bitsandbytes()
        out_features, in_features = packed.shape[0], packed.shape[1] * 2
        state = library.functional.QuantState(
            absmax.reshape(-1),
            shape=torch.Size((out_features, in_features)),
            code=library.functional.get_4bit_type("nf4", device=packed.device),
            dtype=torch.bfloat16,
            blocksize=BLOCK,
            quant_type="nf4",
        )
        self.inner = library.nn.Linear4bit(in_features, out_features, bias=False, device="meta")
        self.inner.weight = library.nn.Params4bit(
            packed.reshape(-1, 1),
            requires_grad=False,
            quant_state=state,
            blocksize=BLOCK,
            compress_statistics=False,
            quant_type="nf4",
            bnb_quantized=True,
        )
        self.inner.eval()
        self.register_buffer("bias", None if bias is None else bias.to(torch.bfloat16))
        self.bias: Tensor | None

    @staticmethod
    def supports(in_features: int, out_features: int) -> bool:
        """Shapes that bitsandbytes computes right: whole blocks, and whole row blocks on CPU."""
        return in_features % BLOCK == 0 and out_features % _ROW_MULTIPLE == 0

    def forward(self, rows: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the dtype of `rows`; computed in bfloat16."""
        with torch.no_grad():
            result: Tensor = self.inner(rows.to(torch.bfloat16))
            if self.bias is not None:
                result = result + self.bias
        return result.to(rows.dtype)


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _CHUNK_WEIGHTS // columns)
    for begin in range(0, rows, step):
        yield slice(begin, min(begin + step, rows))
