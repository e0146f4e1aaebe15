"""Calls of libraries with values from the files of a model repository."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from engine.errors import EngineError, ModelError, printable, shown

LONGEST_REASON = 400  # characters of a library's message; some list all names that they know
BLAME_SECONDS = 3.0


@contextmanager
def library_call(where: object, blame: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turn any exception that a library raises in the block into a `ModelError`.

    The block passes values of a file to a library, which may raise anything for them (a
    ZeroDivisionError, a TypeError, a RuntimeError of torch). An `EngineError` is not changed.

    Args:
        where: the file that the values are from, whose text begins the error.
        blame: returns "key: value: " for the value that the library refuses, "" if that is unclear.
    """
    try:
        yield
    except EngineError:
        raise
    except BaseException as error:
        # A panic of the tokenizers' Rust code is no Exception, and its class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = printable(" ".join(str(error).split()) or "no reason given", LONGEST_REASON)
        raise ModelError(
            f"{where}: {blame()}cannot be used: {type(error).__name__}: {reason}"
        ) from error


def find_key(
    values: Mapping[str, Any],
    call: Callable[[dict[str, Any]], object],
    name: Callable[[str], str] = str,
) -> str:
    """Return "key: value: " for the value that makes a call fail; the call works without it.

    The library's exceptions seldom name the key. Return "" if no single value is the cause, or if
    it was not found within `BLAME_SECONDS`.

    Args:
        values: the values by their keys.
        call: the call of the library with some of the values.
        name: returns the name of a key in messages.
    """
    until = time.monotonic() + BLAME_SECONDS
    if _works(call, values):  # it is something else that failed
        return ""
    for key in values:
        if time.monotonic() > until:
            break
        if _works(call, {other: value for other, value in values.items() if other != key}):
            return f"{name(key)}: {shown(values[key])}: "
    return ""


def _works(call: Callable[[dict[str, Any]], object], values: Mapping[str, Any]) -> bool:
    try:
        call(dict(values))
    except Exception:  # a call of a library, as in `library_call`
        return False
    return True
