"""Reading generation_config.json: sampling defaults, and tokens that end an answer or never occur.

Wrong values of this file are left out and logged, because a model can be served without them.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import shown
from engine.files import exists, read_object
from engine.weights.config_file import whole

log = logging.getLogger(__name__)

GENERATION_CONFIG = "generation_config.json"

# (least, most) of the sampling parameters that are taken from the file, as in requests.
RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (0, math.inf),
    "min_p": (0, 1),
    "repetition_penalty": (1e-6, 10),
}


@dataclass(frozen=True)
class GenerationConfig:
    """The values of a generation_config.json that are used; the defaults where there is none."""

    sampling: tuple[tuple[str, float], ...] = ()  # by the names in `RANGES`
    eos_token_id: Any = None  # as it stands in the file
    suppressed: tuple[int, ...] = ()  # tokens that are never chosen


def read_generation_config(folder: Path, vocab_size: int) -> GenerationConfig:
    """Return the values of a folder's generation_config.json.

    A file that says `do_sample: false` asks for the most likely tokens, which is temperature 0.
    Raises `ModelError` if the file is no JSON object.
    """
    path = folder / GENERATION_CONFIG
    if not exists(path):
        return GenerationConfig()
    values = read_object(path)
    sampling = {
        key: value for key in RANGES if (value := _number(path, key, values.get(key))) is not None
    }
    if values.get("do_sample") is False:
        sampling["temperature"] = 0.0
    suppressed = token_ids(path, "suppress_tokens", values.get("suppress_tokens"), vocab_size)
    return GenerationConfig(
        tuple(sampling.items()), values.get("eos_token_id"), tuple(sorted(suppressed))
    )


def token_ids(path: Path, key: str, value: Any, vocab_size: int) -> frozenset[int]:
    """Return the ids of a list, or a single id.

    Values that are not ids of the vocabulary are left out and logged with their file and key.
    """
    given = value if isinstance(value, list) else [] if value is None else [value]
    asked = [whole(id_) for id_ in given]
    found = frozenset(id_ for id_ in asked if type(id_) is int and 0 <= id_ < vocab_size)
    if wrong := [id_ for id_ in asked if type(id_) is not int or id_ not in found]:
        log.warning("%s: %s: %s are not tokens of this model", path, key, shown(wrong))
    return found


def _number(path: Path, key: str, value: Any) -> float | None:
    """Return a sampling parameter; None if it is not given, or wrong, which is logged."""
    if value is None or (key == "top_k" and value == -1):
        return None
    least, most = RANGES[key]
    value = whole(value) if key == "top_k" else value
    kind = int if key == "top_k" else int | float
    if (
        not isinstance(value, kind)
        or isinstance(value, bool)
        or not (math.isfinite(value) and least <= value <= most)
    ):
        log.warning(
            "%s: %s: %s is left out: not a number from %g to %g",
            path,
            key,
            shown(value),
            least,
            most,
        )
        return None
    return value
