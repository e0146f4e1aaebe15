"""Configuration files: the folders to search, the forms of values, and the errors for mistakes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from engine.errors import ModelError, printable, shown
from engine.files import read_text
from server.config.yaml_file import fault_text, parse_yaml

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_NUMBER = re.compile(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([a-zA-Z]*)\s*", re.ASCII)


ENV_CONFIG = "UNDERSTUDY_CONFIG"
LARGEST_FILE = 128 << 10  # bytes; the YAML parser takes two seconds for a file of this size


class ConfigError(Exception):
    """The error for a wrong configuration file or setting; the message names file and key."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Section(BaseModel):
    """A part of a configuration file, checked by pydantic: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def parse_size(value: object) -> object:
    """Return the number of bytes of a size such as "8GiB", "500 MB" or "4096".

    Values that are no text are returned unchanged. Raises `ValueError` for text that is no size.
    """
    if not isinstance(value, str):
        return value
    match = _NUMBER.fullmatch(value)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f'{shown(value)} is not a size; write for example "8GiB", "500MB" or 4096')
    return int(float(match[1]) * _UNITS[match[2].lower()])


def parse_duration(value: object) -> object:
    """Return the number of seconds of a time such as "90s", "10m" or "2h".

    Values that are no text are returned unchanged. Raises `ValueError` for text that is no time.
    """
    if not isinstance(value, str):
        return value
    match = _NUMBER.fullmatch(value)
    if match is None or match[2].lower() not in _SECONDS:
        raise ValueError(f'{shown(value)} is not a time; write for example "90s", "10m" or "2h"')
    return float(match[1]) * _SECONDS[match[2].lower()]


def _auto(value: object) -> object:
    return None if value == "auto" else value


T = TypeVar("T")
Size = Annotated[int, BeforeValidator(parse_size)]
Auto = Annotated[T | None, BeforeValidator(_auto)]
"""`auto` in a file, `None` inside: the plan decides."""

SectionT = TypeVar("SectionT", bound=Section)


def read_section(path: Path, kind: type[SectionT]) -> SectionT:
    """Read a YAML file and return it as a checked section of type `kind`.

    Raises `ConfigError` that names the file and the key.
    """
    return check_section(read_yaml(path), kind, str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping at the top of a YAML file, which is empty for an empty file.

    Raises `ConfigError` if the file cannot be read or holds something else.
    """
    try:
        value = parse_yaml(read_text(path, LARGEST_FILE))
    except ModelError as error:
        raise ConfigError(str(error)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: cannot be read: {fault_text(error)}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(value).__name__}")
    return value


def check_section(
    values: Mapping[str, Any],
    kind: type[SectionT],
    where: str,
    origin: Mapping[str, str] | None = None,
) -> SectionT:
    """Return `values` as a checked section of type `kind`.

    Raises `ConfigError` with a line "where: key: what is wrong" for each mistake.

    Args:
        where: the place that the values come from, usually a file.
        origin: for top-level keys with another place (an option, a variable), its name.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(dict(e), kind, where, origin or {}) for e in error.errors()]
        raise ConfigError("\n".join(lines)) from error


def _explain(
    error: Mapping[str, Any], kind: type[Section], where: str, origin: Mapping[str, str]
) -> str:
    loc = tuple(error["loc"])
    key = ".".join(str(part) for part in loc)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        known = ", ".join(_keys_at(kind, loc[:-1]))
        message = f"unknown key; known here: {known}"
    elif error["type"] == "missing":
        message = "this key is required"
    elif not isinstance(error["input"], dict):
        message += f" (got {shown(error['input'])})"
    place = origin.get(str(loc[0]), where) if loc else where
    return f"{place}: {key}: {message}" if key else f"{place}: {message}"


def _keys_at(kind: type[Section], loc: Sequence[int | str]) -> Iterator[str]:
    for part in loc:
        if isinstance(part, str):  # numbers are places in lists
            kind = _section_in(kind.model_fields[part].annotation) or kind
    yield from kind.model_fields


def _section_in(annotation: object) -> type[Section] | None:
    """Return the section that a key has, or a list of which it has; None if it has other values."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (_section_in(own) for own in get_args(annotation))
    return next((own for own in found if own is not None), None)


def asked_folder(option: Path | None, env: Mapping[str, str]) -> Path | None:
    """Return the folder that `--config` names, else ENV_CONFIG in `env`, else None."""
    named = env.get(ENV_CONFIG)
    return option or (Path(named) if named else None)


def search_path(explicit: Path | None, cwd: Path, env: Mapping[str, str]) -> list[Path]:
    """Return the configuration folders that exist, most specific first.

    These are `explicit`, or else ./configs and the user's folder; then the packaged demo's folder.
    Raises `ConfigError` when `explicit` does not exist.
    """
    if explicit is not None and not explicit.is_dir():
        raise ConfigError(f"--config {explicit}: no such folder")
    wanted = [explicit] if explicit else [cwd / "configs", user_folder(env)]
    found: list[Path] = []
    for folder in [*wanted, packaged_folder()]:
        if folder.is_dir() and folder.resolve() not in found:
            found.append(folder.resolve())
    return found


def save_folder(explicit: Path | None, cwd: Path, env: Mapping[str, str]) -> Path:
    """Return the folder for new files: `explicit`, else ./configs if it exists, else the user's."""
    if explicit is not None:
        return explicit
    return cwd / "configs" if (cwd / "configs").is_dir() else user_folder(env)


def user_folder(env: Mapping[str, str]) -> Path:
    """Return the user's own configuration folder, which follows XDG_CONFIG_HOME."""
    home = env.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "understudy"


def packaged_folder() -> Path:
    """Return the folder with the built-in demo: inside the wheel, else in the repository."""
    server = Path(__file__).parent.parent
    inside = server / "configs"
    return inside if inside.is_dir() else server.parent / "configs"
