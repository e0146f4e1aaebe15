"""The index of a packed folder: the key, and the layouts and checksums of all units, as JSON."""

import hashlib
import json
import zlib
from collections.abc import Sequence
from typing import Any

import torch

from engine.errors import ModelError
from engine.streaming.disk import split_pieces
from engine.weights.layout import Field, UnitLayout
from engine.weights.open_file import OpenFile

LAYOUT_VERSION = 2  # of index.json, units and pieces; entries of another version are packed again


def format_index(key: str, units: Sequence[tuple[UnitLayout, list[int]]]) -> str:
    """Return the text of an index of units, each with the checksums of its pieces."""
    entries = [{**_format_layout(layout), "crc32": sums} for layout, sums in units]
    index = {
        "version": LAYOUT_VERSION,
        "key": key,
        "units": entries,
        "crc32": _index_checksum(key, entries),
    }
    return json.dumps(index)


def parse_index(file: OpenFile) -> tuple[str, list[UnitLayout], list[list[int]]]:
    """Return the key, and the layouts and checksums of all units. Raises `ModelError`."""
    try:
        text = bytearray(file.nbytes)
        file.read(memoryview(text), 0)
        index = json.loads(text)
        if index["version"] != LAYOUT_VERSION:
            raise ModelError(f"{file.path}: packed for another model or version")
        key, units = str(index["key"]), index["units"]
        if index["crc32"] != _index_checksum(key, units):
            raise ValueError("its own checksum is wrong")
        layouts = [_parse_layout(unit) for unit in units]
        checksums = [list(map(int, unit["crc32"])) for unit in units]
        for layout, sums in zip(layouts, checksums, strict=True):
            if len(sums) != len(split_pieces(layout.nbytes)):
                raise ValueError(f"{layout.name}: not one checksum for each piece")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file.path}: corrupt ({error!r}). Remove {file.path.parent}") from error
    return key, layouts, checksums


def digest_of(checksums: Sequence[Sequence[int]]) -> str:
    """Return a hash of the checksums of all units: other bytes have another one."""
    return hashlib.sha256(json.dumps(checksums).encode()).hexdigest()[:16]


def _index_checksum(key: str, units: list[dict[str, Any]]) -> int:
    return zlib.crc32(json.dumps([key, units]).encode())


def _format_layout(layout: UnitLayout) -> dict[str, Any]:
    fields = [
        [field.name, str(field.dtype).removeprefix("torch."), list(field.shape), field.offset]
        for field in layout.fields
    ]
    return {"name": layout.name, "nbytes": layout.nbytes, "fields": fields}


def _parse_layout(unit: dict[str, Any]) -> UnitLayout:
    fields = tuple(
        Field(name, getattr(torch, dtype), tuple(shape), offset)
        for name, dtype, shape, offset in unit["fields"]
    )
    return UnitLayout(unit["name"], fields, unit["nbytes"])
