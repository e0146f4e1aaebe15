"""What a worker is doing, kept where its host can read it after the worker was killed."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class Stage(IntEnum):
    """The steps of text work that may take long, or end a worker."""

    READING = 0
    TEMPLATE = 1
    TOKENIZER = 2
    GRAMMAR = 3


_current: bytearray | mmap.mmap = bytearray(1)


def use_shared(memory: mmap.mmap) -> None:
    """Note the stage in the first byte of `memory` from now on: the host shares it with a worker.

    A global, since what notes its stage lies deep below and knows nothing of processes.
    """
    global _current
    _current = memory


@contextmanager
def doing(stage: Stage) -> Iterator[None]:
    """Note that the block is this stage. The note stays if the block raises: it says where."""
    _current[0] = stage
    yield
    _current[0] = Stage.READING


def reset() -> None:
    """Note that a new call begins."""
    _current[0] = Stage.READING


def current() -> Stage:
    """Return the stage that was noted last."""
    return Stage(_current[0])
