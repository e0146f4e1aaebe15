"""Tensors are filled by compiled code, their rows divided among threads."""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.compiled.compiler import is_available, kernel
from engine.compiled.storing import KINDS

Fill = Callable[[int, int, Any, int], None]

_LEAST_VALUES = 1 << 17  # for a thread, which starts in 0.03 ms and expands these in 0.1 ms
_THREADS = torch.get_num_threads()  # at the start
_PARTS = 8  # of a matrix for each thread
_TILE = 16  # rows that are transposed together: 64 at a time took twice as long
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
                _copy(memory, own)

    in_parts(len(rows), columns, work)


def in_parts(
    rows: int, columns: int, work: Callable[[int, int], None], *, is_weight: bool = False
) -> None:
    """Call `work(start, stop)` for parts of the rows of a matrix, in several threads.

    A thread that ends a part takes the next one. So the caller's thread does more of them where the
    others begin late, because other programs use their cores.

    Args:
        is_weight: whether all threads are used, even if torch has fewer for the products of a small
            model: coding a weight takes longer than such a product.
    """
    most = rows * columns // _LEAST_VALUES
    threads = min(max(torch.get_num_threads(), _THREADS if is_weight else 1), most, rows)
    if threads < 2:
        work(0, rows)
        return
    count = min(_PARTS * threads, most, rows)
    left = deque(pairwise(rows * part // count for part in range(count + 1)))

    def work_on() -> None:
        while left:
            try:
                part = left.popleft()
            except IndexError:  # another thread took the last one
                return
            work(*part)

    others = [_pool().submit(work_on) for _ in range(threads - 1)]
    try:
        work_on()
    finally:
        left.clear()
        begun = [thread for thread in others if not thread.cancel()]
        wait(begun)  # they write to the caller's memory
    for thread in begun:
        thread.result()


def _copy(source: Tensor, out: Tensor) -> None:
    """Copy a contiguous matrix to one of other strides.

    torch takes 4 times as long for a transposed part of a matrix.
    """
    if out.stride(1) == 1:
        out.copy_(source)
        return
    integer, copy = _COPIES[out.element_size()]
    copy(source.view(integer).numpy(), out.view(integer).numpy())


def _copy_numbers(source: Any, out: Any) -> None:
    for first in range(0, len(source), _TILE):
        rows = min(_TILE, len(source) - first)
        for column in range(source.shape[1]):
            for row in range(rows):
                at = np.uint64(first + row), np.uint64(column)
                out[at] = source[at]


_COPIES = {
    2: (torch.int16, kernel("void(i2[:, ::1], i2[:, :])", "copy_of_two_bytes")(_copy_numbers)),
    4: (torch.int32, kernel("void(i4[:, ::1], i4[:, :])", "copy_of_four_bytes")(_copy_numbers)),
}


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="compiled")
