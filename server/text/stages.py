"""The step that a worker is in, stored where its host can read it after the worker was killed."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class Stage(IntEnum):
    """The steps of text work that may take long or end a worker."""

    READING = 0
    TEMPLATE = 1
    TOKENIZER = 2
    GRAMMAR = 3


_current: bytearray | mmap.mmap = bytearray(1)


def use_shared(memory: mmap.mmap) -> None:
    """Store the stage in the first byte of `memory` from now on; a worker shares it with its host.

    The memory is a module global because the code that sets a stage lies deep below the worker and
    does not know about processes.
    """
    global _current
    _current = memory


@contextmanager
def doing(stage: Stage) -> Iterator[None]:
    """Set the stage to `stage` for the block.

    If the block raises, the stage stays, so that the error can name the step that failed.
    """
    _current[0] = stage
    yield
    _current[0] = Stage.READING


def reset() -> None:
    """Set the stage for the beginning of a new call."""
    _current[0] = Stage.READING


def current() -> Stage:
    """Return the stage that was set last."""
    return Stage(_current[0])
