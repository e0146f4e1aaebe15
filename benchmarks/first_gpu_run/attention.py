"""Attention of a 7 B layer: the engine's own, as it chooses its kernel, and ways of the library.

The engine's attention is called as its layers call it, so a new kernel of the engine is measured
without a change here. The time is compared with that of reading the keys and values once.
"""

import time
from functools import partial
from threading import Event
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.first_gpu_run.lab import MIB, Lab, gbps, ms, relative_error, us
from benchmarks.first_gpu_run.record import Results
from engine.kv.page_pool import PAGE, PagePool
from engine.model.attention import Batch, LayerRule, attend
from engine.model.segment import Segment
from engine.streaming.device import choose_device

ROWS = (1, 6, 64)
KEYS = (512, 2048, 8192, 16_384)
REPEATS = 4
BACKENDS = {-1: "error", 0: "math", 1: "flash", 2: "efficient", 3: "cudnn", 4: "overrideable"}


def run(lab: Lab, out: Results) -> None:
    """Measure the engine's attention first, then the ways in which the library may be called."""
    bandwidth = lab.memory_bandwidth()
    sizes = [(rows, keys) for keys in lab.choose(KEYS, (96,)) for rows in lab.choose(ROWS, (1, 6))]
    for strict in (True, False):
        cells: dict[str, Any] = {}
        for rows, keys in sizes:
            lab.check()
            cells[f"{rows} rows, {keys} keys"] = _measure_engine(lab, rows, keys, strict, bandwidth)
            out[f"engine, {'strict' if strict else 'fast'}"] = cells
    for has_cudnn in (True, False):
        if not lab.is_dry:
            torch.backends.cuda.enable_cudnn_sdp(has_cudnn)
        _measure_library(lab, out, sizes, "" if has_cudnn else ", without cuDNN")


class _Layer(nn.Module):
    """An attention module, of which `attend` reads only the rule."""

    def __init__(self) -> None:
        super().__init__()
        self.rule = LayerRule(0)


class _Tree:
    """A tree of rows after a prefix of one sequence, in the pages of a KV cache."""

    def __init__(self, lab: Lab, rows: int, keys: int) -> None:
        kv_heads, self.group, self.width = lab.choose((4, 7, 128), (2, 3, 16))
        start, pages = keys - rows, -(-keys // PAGE)
        name = "cpu" if lab.is_dry else str(lab.device)
        pool = PagePool(1, pages, kv_heads, self.width, torch.bfloat16, choose_device(name))
        pool.memory.copy_(lab.random(*pool.memory.shape))
        shuffled = torch.randperm(pages, device=lab.device)[:, None] * PAGE
        slots = (shuffled + torch.arange(PAGE, device=lab.device)).flatten()[:keys]
        # Row n follows row (n - 1) // 2: each sees its ancestors, and its position is its depth.
        visible = torch.eye(rows, dtype=torch.bool)
        depths = [0] * rows
        for row in range(1, rows):
            parent = (row - 1) // 2
            visible[row] |= visible[parent]
            depths[row] = depths[parent] + 1
        self.segment = Segment(
            first=0,
            count=rows,
            start=start,
            slots=slots,
            positions=torch.tensor(depths, device=lab.device) + start,
            mask=visible.to(lab.device),
            cancelled=Event(),
        )
        self.pool = pool
        self._layer = _Layer()
        self.query = lab.random(1, kv_heads * self.group, rows, self.width)
        self.key, self.value = (lab.random(1, kv_heads, rows, self.width) for _ in range(2))

    @property
    def nbytes(self) -> int:
        """Return the bytes of the keys and values that the tree sees."""
        return 2 * len(self.segment.slots) * self.pool.keys.shape[2] * self.width * 2

    def batch(self, *, strict: bool) -> Batch:
        """Return the batch of the tree's rows, which all layers of a pass share."""
        return Batch(self.pool, (self.segment,), range(self.segment.count), strict)

    def attend(self, batch: Batch) -> Tensor:
        """Return the engine's attention [1, rows, H, D]."""
        scaling = self.width**-0.5
        found: Tensor = attend(
            self._layer, self.query, self.key, self.value, None, scaling, batch=batch
        )[0]
        return found

    def dense(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return query [H, rows, D], keys and values [Hkv, n, D], and the mask [rows, n]."""
        keys, values = (
            memory[0][self.segment.slots].transpose(0, 1).contiguous()
            for memory in (self.pool.keys, self.pool.values)
        )
        own = cast(Tensor, self.segment.mask)
        mask = F.pad(own, (self.segment.start, 0), value=True)
        return self.query[0], keys, values, mask

    def exact(self) -> Tensor:
        """Return the attention [H, rows, D] in float64."""
        query, keys, values, mask = (own.double() for own in self.dense())
        keys, values = (own.repeat_interleave(self.group, 0) for own in (keys, values))
        scores = query @ keys.transpose(1, 2) * self.width**-0.5
        exact: Tensor = scores.masked_fill(mask == 0, -torch.inf).softmax(-1) @ values
        return exact


def _measure_engine(
    lab: Lab, rows: int, keys: int, strict: bool, bandwidth: float
) -> dict[str, Any]:
    tree = _Tree(lab, rows, keys)
    work = partial(tree.attend, tree.batch(strict=strict))
    work()  # compiles, and writes the rows' own keys, which the exact result needs
    error = relative_error(work()[0].transpose(0, 1), tree.exact())
    peak = lab.peak_bytes(work)
    taken = lab.event_seconds(lambda: [work() for _ in range(REPEATS)]) / REPEATS
    return {
        "us": us(taken),
        "of_reading": round(taken * bandwidth / tree.nbytes, 2),
        "peak_mib": None if peak is None else round(peak / MIB, 2),
        "error": error,
    }


def _measure_library(lab: Lab, out: Results, sizes: list[tuple[int, int]], note: str) -> None:
    for rows, keys in sizes:
        tree = _Tree(lab, rows, keys)
        exact = tree.exact()
        for way, tensors in _ways(*tree.dense()).items():
            lab.check()
            cells = out.get(f"library, {way}{note}", {})
            cells[f"{rows} rows, {keys} keys"] = _measure_way(lab, tensors, exact, tree.nbytes)
            out[f"library, {way}{note}"] = cells
    fresh: dict[str, list[float]] = {}
    for way in ("grouped heads", "folded rows"):
        for keys in lab.choose((3001, 3065, 3130), (40, 41, 42)):
            tensors = _ways(*_Tree(lab, 6, keys + bool(note)).dense())[way]
            lab.synchronize()
            began = time.perf_counter()
            _fused(tensors)
            lab.synchronize()
            fresh.setdefault(way, []).append(ms(time.perf_counter() - began))
    out[f"first call at a new length, ms{note}"] = fresh


def _ways(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """Return query, key, value and mask as each way gives them to the library."""
    group, (rows, width) = len(query) // len(key), query.shape[1:]
    folded = query.reshape(len(key), group * rows, width)[None]
    as_float = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
    as_float.masked_fill_(~mask, -torch.inf)
    return {
        "grouped heads": (query[None], key[None], value[None], mask),
        "folded rows": (folded, key[None], value[None], mask.repeat(group, 1)),
        "folded rows, float mask": (folded, key[None], value[None], as_float.repeat(group, 1)),
    }


def _fused(tensors: tuple[Tensor, ...]) -> Tensor:
    query, key, value, mask = tensors
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)


def _measure_way(
    lab: Lab, tensors: tuple[Tensor, ...], exact: Tensor, nbytes: int
) -> dict[str, Any]:
    query, key, value, mask = tensors
    try:
        chosen = torch._fused_sdp_choice(
            query, key, value, mask, 0.0, False, enable_gqa=query.shape[1] != key.shape[1]
        )
        found = _fused(tensors)
        peak = lab.peak_bytes(lambda: _fused(tensors))
        seconds = lab.device_seconds([lambda: _fused(tensors)] * REPEATS, times=3)
    except RuntimeError as error:  # no kernel takes these shapes, or memory is too little
        return {"error": str(error)[:200]}
    return {
        "backend": BACKENDS.get(int(chosen), str(chosen)),
        "us": us(seconds),
        "gbps": gbps(nbytes, seconds),
        "peak_mib": None if peak is None else round(peak / MIB, 2),
        "error": relative_error(found.reshape(exact.shape), exact),
    }
