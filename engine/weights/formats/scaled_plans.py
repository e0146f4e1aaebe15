"""Packed weights with scales, planned from config.json alone: which modules have them."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from transformers import PreTrainedModel

from engine.errors import shown
from engine.weights.config_place import ConfigError
from engine.weights.formats.scaled_codes import ScaledLayout, merged
from engine.weights.layout import Fields
from engine.weights.mapping import linear_modules
from engine.weights.outline import unit_modules
from engine.weights.stored_format import Shape

# Only patterns of these parts are tried, because others can take exponential time: characters,
# classes, groups without repetition, and a few repetitions of one character.
_SAFE = re.compile(r"\(\?:|(?:\\[.dwDW]|\[[\w.-]+\]|[\w.^$|()-])(?:[*+?](?![*+?]))?")
_REPEATED = re.compile(r"(?<!\()[*+?]")
_LONGEST, _MOST_REPEATED = 200, 3  # characters; repetitions


def plan_scaled(
    model: PreTrainedModel, layout_of: Callable[[str, Shape], ScaledLayout | None]
) -> dict[str, Fields]:
    """Return the packed fields of the linear weights and experts that a format stores packed.

    Args:
        model: the empty model.
        layout_of: returns the fields of a weight of the checkpoint, given the path of its module
            and its shape; None if it is not stored in the format.
    """
    state, found = model.state_dict(), dict[str, Fields]()
    for name, modules in linear_modules(model).items():
        shape = tuple(state[name].shape)
        is_merged = len(shape) > 2 and modules != (name,)
        own = (shape[1] // len(modules), shape[2]) if is_merged else shape
        layouts = {layout_of(module, own) for module in modules}
        layout = layouts.pop()
        if layout is None or layouts:
            continue
        packed = layout.packed
        found[name] = merged(packed, shape[0], len(modules)) if is_merged else packed
    return found


def head_of(model: PreTrainedModel) -> str:
    """Return the path of the head, which most tools leave as it is."""
    return unit_modules(model)[1][0]


def names_of(quantization: Mapping[str, Any], *keys: str) -> list[str]:
    """Return the names in the lists of these keys of the quantization_config."""
    found: list[str] = []
    for key in keys:
        names = quantization.get(key) or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(
                f"quantization_config.{key}", f": names are expected, found {shown(names)}"
            )
        found += names
    return found


def is_part_of(module: str, names: Iterable[str]) -> bool:
    """Return whether the path of a module contains one of these names, which may have dots."""
    return any(f".{name}." in f".{module}." for name in names)


def matches(pattern: str, module: str) -> bool:
    """Return whether a regular expression matches the beginning of a module's path.

    One that could take long, or is none, matches nothing.
    """
    repeated = len(_REPEATED.findall(pattern))
    if len(pattern) > _LONGEST or repeated > _MOST_REPEATED or _SAFE.sub("", pattern):
        return False
    if re.search(r"\)[*+?]", pattern):
        return False
    try:
        return re.match(pattern, module) is not None
    except re.error:
        return False
