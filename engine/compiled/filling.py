"""Tensors are filled by compiled code, their rows divided among threads."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from engine.compiled.compiler import is_available
from engine.compiled.storing import KINDS

Fill = Callable[[int, int, Any, int], None]

_LEAST_VALUES = 1 << 17  # for a thread: it is started in 0.05 ms and expands these in 0.1 ms
_PIECE_VALUES = 1 << 16  # copied at a time where a tensor has other strides


def can_fill(out: Tensor) -> bool:
    """Return whether compiled code can fill a tensor of this device and type here."""
    return out.device.type == "cpu" and out.dtype in KINDS and is_available()


def fill_rows(out: Tensor, size: int, fill: Fill, first: int = 0) -> None:
    """Fill a tensor of any strides, several rows in parallel.

    It uses as many threads as torch does for its operations. Neither they nor the strides change a
    bit, because `fill` computes each item by itself.

    Args:
        out: a tensor that `can_fill` accepts.
        size: the values of an item; it divides the last dimension of `out`.
        fill: writes the items from its first to its second argument into its third one, which is
            the memory (uint8) of just these. The fourth one is their type for `storing.write`.
        first: the number of the first item of `out`.
    """
    if not out.numel():
        return
    if out.is_contiguous():
        out = out.view(-1, out.shape[-1])
    elif out.dim() > 2:
        for index, part in enumerate(out):
            fill_rows(part, size, fill, first + index * part.numel() // size)
        return
    rows, kind = out if out.dim() > 1 else out.unsqueeze(0), KINDS[out.dtype]
    columns, is_whole = rows.shape[1], rows.is_contiguous()
    step = len(rows) if is_whole else max(1, _PIECE_VALUES // columns)

    def work(start: int, stop: int) -> None:
        for begin in range(start, stop, step):
            end = min(begin + step, stop)
            own = rows[begin:end]
            memory = own if is_whole else torch.empty(own.shape, dtype=own.dtype)
            start_item, end_item = (first + edge * columns // size for edge in (begin, end))
            fill(start_item, end_item, memory.view(-1).view(torch.uint8).numpy(), kind)
            if not is_whole:
                own.copy_(memory)

    _in_parts(len(rows), len(rows) * columns // _LEAST_VALUES, work)


def _in_parts(rows: int, most: int, work: Callable[[int, int], None]) -> None:
    """Call `work(start, stop)` for up to `most` parts of range(rows), each in a thread.

    The caller's thread takes the first part.
    """
    threads = max(1, min(torch.get_num_threads(), most, rows))
    own, *others = pairwise(rows * part // threads for part in range(threads + 1))
    running = [_pool().submit(work, *part) for part in others]
    try:
        work(*own)
    finally:
        wait(running)  # they write to the caller's memory
    for part in running:
        part.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="compiled")
