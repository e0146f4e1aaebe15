"""NF4 weights: 4-bit codes of normal quantiles, in blocks that share one absolute maximum.

This is the only file that imports bitsandbytes, which it does on first use.
Source: Dettmers et al., QLoRA, arXiv 2305.14314, section 3.
"""

import functools
import importlib.util
import logging
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor, nn

from engine.errors import ModelError
from engine.weights.formats.tensor_cores import compute_dtype
from engine.weights.formats.weighted import fit_scale, group_weights
from engine.weights.layout import Fields, TensorSpec
from engine.weights.stored_format import Packing, Quantization

BLOCK = 64  # weights that share one absolute maximum
PACKED = ".nf4"  # field suffix: uint8 [..., in / 2], the first weight of a byte in its high half
ABSMAX = ".absmax"  # field suffix: float32 [..., in / block]
_ROW_MULTIPLE = 32  # the fused CPU product works on blocks of 32 rows
_HALF_CELLS = 2048  # cells of a table from a value, between 0 and 1, to its code
_TINY = 1e-8  # the scale of blocks whose weights are all zero
_CHUNK_WEIGHTS = 1 << 20  # weights quantized or expanded at a time: temporaries fit the CPU cache


@functools.cache
def _bitsandbytes() -> ModuleType:
    """Return the package bitsandbytes. Raises `ModelError` if it cannot be imported."""
    # On import it warns of a missing optional package, which is not needed here.
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
    """Return whether bitsandbytes is installed, without importing it."""
    return importlib.util.find_spec("bitsandbytes") is not None


def packed_tensors(name: str, shape: tuple[int, ...], block: int = BLOCK) -> dict[str, TensorSpec]:
    """Return the two packed fields of the tensor `name` of this shape."""
    *rows, columns = shape
    return {
        name + PACKED: (torch.uint8, (*rows, columns // 2)),
        name + ABSMAX: (torch.float32, (*rows, columns // block)),
    }


def packed_fields(shape: tuple[int, ...], block: int = BLOCK) -> Fields:
    """Return the packed fields of a weight of this shape; none if it stays dense.

    It stays dense if its rows are not whole blocks: bitsandbytes expands such weights wrongly on
    the CPU, without an error.
    """
    is_whole = len(shape) >= 2 and shape[-1] % block == 0
    return packed_tensors("", shape, block) if is_whole else {}


def quantize(
    weight: Tensor, packed: Tensor, absmax: Tensor, importance: Tensor | None = None
) -> None:
    """Quantize a float `weight` [..., in] into the fields of `packed_tensors`.

    Args:
        importance: the mean square of each input channel [in], by which a block's scale is fitted;
            None: the scale is the block's absolute maximum.
    """
    functional = _bitsandbytes().functional
    columns = weight.shape[-1]
    dense = weight.reshape(-1, columns)
    codes, scales = packed.view(-1, columns // 2), absmax.view(-1, columns // BLOCK)
    if importance is not None:
        _quantize_fitted(dense, codes, scales, importance)
        return
    for rows, own_codes, own_scales in _pieces(dense, codes, scales):
        code, state = functional.quantize_4bit(
            rows.contiguous(), blocksize=BLOCK, quant_type="nf4", compress_statistics=False
        )
        own_codes.copy_(code.view(own_codes.shape))
        own_scales.copy_(state.absmax.view(own_scales.shape))


def _quantize_fitted(dense: Tensor, codes: Tensor, scales: Tensor, importance: Tensor) -> None:
    """Quantize a weight [rows, in] with scales that are fitted by the channels' importance."""
    book = _bitsandbytes().functional.get_4bit_type("nf4", device=dense.device)
    # A table by the value is ten times as fast as a search among the borders between the codes. It
    # is wrong only for values nearer to a border than half a cell, for which two codes are as good.
    cells = torch.arange(2 * _HALF_CELLS + 1, device=dense.device) / _HALF_CELLS - 1
    code_of = torch.bucketize(cells, (book[1:] + book[:-1]) / 2)
    level_of = book[code_of]
    weights = group_weights(importance.to(dense.device), BLOCK)

    def to_cells(values: Tensor, scale: Tensor) -> Tensor:
        found = (values * (_HALF_CELLS / scale)).add_(_HALF_CELLS + 0.5)
        return found.clamp_(0, 2 * _HALF_CELLS).int()

    def to_levels(values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        levels: Tensor = level_of[to_cells(values, scale)]
        return levels

    for rows, own_codes, own_scales in _pieces(dense, codes, scales):
        blocks = rows.float().view(len(rows), -1, BLOCK)
        scale = blocks.abs().amax(-1, keepdim=True).clamp_(min=_TINY)
        scale = fit_scale(blocks, weights, scale, to_levels)
        code = code_of[to_cells(blocks, scale)].byte().flatten(1)
        own_codes.copy_((code[:, ::2] << 4) | code[:, 1::2])
        own_scales.copy_(scale.squeeze(-1))


def dequantize(packed: Tensor, absmax: Tensor, out: Tensor) -> None:
    """Expand codes [..., in / 2] and maxima [..., in / block] into `out` [..., in]."""
    functional = _bitsandbytes().functional
    columns = out.shape[-1]
    block = columns // absmax.shape[-1]
    dense = out.view(-1, columns)
    codes, scales = packed.view(-1, columns // 2), absmax.view(-1, absmax.shape[-1])
    # Codes are passed as [n, 1], because bitsandbytes transposes codes of a single row.
    if out.device.type != "cpu":  # the CPU kernel has no argument `out`
        functional.dequantize_4bit(
            codes.view(-1, 1), absmax=scales.view(-1), out=dense, blocksize=block, quant_type="nf4"
        )
        return
    for rows, own_codes, own_scales in _pieces(dense, codes, scales):
        state = functional.QuantState(
            own_scales.view(-1),
            shape=rows.shape,
            dtype=out.dtype,
            blocksize=block,
            quant_type="nf4",
        )
        rows.copy_(functional.dequantize_4bit(own_codes.view(-1, 1), state))


class Nf4Linear(nn.Module):
    """A linear layer with an nf4 weight. On a CPU, bitsandbytes runs it as a fused product."""

    def __init__(self, packed: Tensor, absmax: Tensor, bias: Tensor | None) -> None:
        """Create the layer of `packed` [out, in / 2], `absmax` [out, in / 64] and `bias` [out]."""
        super().__init__()
        library = _bitsandbytes()
        out_features, in_features = packed.shape[0], packed.shape[1] * 2
        self._dtype = compute_dtype(packed.device)
        state = library.functional.QuantState(
            absmax.reshape(-1),
            shape=torch.Size((out_features, in_features)),
            code=library.functional.get_4bit_type("nf4", device=packed.device),
            dtype=self._dtype,
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
        self.register_buffer("bias", None if bias is None else bias.to(self._dtype))
        self.bias: Tensor | None

    @property
    def codes(self) -> Tensor:
        """Return the codes [out, in / 2] where they are kept.

        On a CPU they have an order of their own after the first product.
        """
        found: Tensor = self.inner.weight.data
        return found.view(self.inner.out_features, -1)

    @property
    def absmax(self) -> Tensor:
        """Return the absolute maxima of the blocks [out, in / 64] where they are kept."""
        found: Tensor = self.inner.weight.quant_state.absmax
        return found.view(self.inner.out_features, -1)

    @staticmethod
    def supports(in_features: int, out_features: int) -> bool:
        """Return whether bitsandbytes computes this shape correctly on every device."""
        return in_features % BLOCK == 0 and out_features % _ROW_MULTIPLE == 0

    def forward(self, rows: Tensor) -> Tensor:
        """Return the layer's output [..., out], computed in 16 bits, in the dtype of `rows`."""
        with torch.no_grad():
            result: Tensor = self.inner(rows.to(self._dtype))
            if self.bias is not None:
                result = result + self.bias
        return result.to(rows.dtype)


def _pieces(dense: Tensor, *packed: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield a dense weight and its fields in pieces of some rows."""
    step = max(1, _CHUNK_WEIGHTS // dense.shape[-1])
    return zip(*(torch.split(tensor, step) for tensor in (dense, *packed)), strict=True)


PACKINGS = (
    Packing(
        title="nf4",
        suffixes=(PACKED, ABSMAX),
        dense_shape=lambda codes: (*codes[:-1], codes[-1] * 2),
        expand=dequantize,
    ),
)
QUANTIZATION = Quantization(fields=packed_fields, quantize=quantize)
