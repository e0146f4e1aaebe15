"""The numbers and sizes that options take, with their bounds."""

import argparse
import re
from collections.abc import Callable
from typing import TypeVar

from server.config.files import parse_size
from server.schemas.plans import MAX_SIZE, MIN_SIZE

Number = TypeVar("Number", int, float)
NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", re.ASCII)  # `float` takes more than this


def size(text: str) -> int:
    """Return the bytes of an option such as "8GiB"."""
    try:
        found = int(str(parse_size(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not MIN_SIZE <= found <= MAX_SIZE:
        bounds = 'must be from 1 MiB to 1 PiB; write for example "8GiB"'
        raise argparse.ArgumentTypeError(f"{text!r} {bounds}")
    return found


def number(kind: Callable[[str], Number], least: float, most: float) -> Callable[[str], Number]:
    """Return a function that reads an option's number, and refuses those outside the bounds."""

    def read(text: str) -> Number:
        try:
            value = kind(text) if NUMBER.fullmatch(text) else None
        except ValueError:  # a fraction where a whole number is wanted
            value = None
        if value is None:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} must be from {least:g} to {most:g}")
        return value

    return read
