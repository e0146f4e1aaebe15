"""Reading the small files of a model folder, which others wrote, within bounds of time and memory.

Everything that is wrong with such a file is a `ModelError` that names it. Only regular files are
read: opening a named pipe or a device may wait forever, and reading one may never end.
"""

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from engine.errors import ModelError, shown, system_reason

LARGEST_TEXT = 16 << 20  # bytes; the longest configurations list every module of a large mixture
POINTER = "version https://git-lfs.github.com/spec/"
DEEPEST = 64  # objects and lists inside each other
# A string, or a comma to be removed. A string that is never closed is matched too, and the
# possessive quantifiers (`++`) never backtrack, so that the time is linear for every text.
_TRAILING_COMMA = re.compile(r'("(?:[^"\\]++|\\.)*+"?+)|,(?=\s*[}\]])', re.DOTALL)


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """Make a folder for temporary files that exists until the end of the block.

    Raises `ModelError` if the system cannot make it, or write or read a file in the block.
    """
    try:
        prefix = f"understudy-{name}-"
        with TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as own:
            yield Path(own)
    except OSError as error:
        if error.errno is None:  # raised by a library that takes this type for errors of its own
            raise
        where = f"{error.filename}: " if error.filename else ""
        raise ModelError(
            f"{where}{system_reason(error)}. A temporary file could not be used: free some space, "
            "or set TMPDIR to a folder on another disk"
        ) from error


def find_folder(name: str, place: Path = Path()) -> Path | None:
    """Return the folder with this name, such as "~/models", with all links resolved.

    Relative names start from `place`. Return None if there is no such folder, also for a name that
    no file can have.
    """
    try:
        folder = (place / Path(name).expanduser()).resolve()
        return folder if folder.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, a circle of links
        return None


def find_file(name: str, suffix: str, place: Path = Path()) -> Path | None:
    """Return the file with this name and suffix, as `find_folder` does with a folder."""
    if not name.endswith(suffix):
        return None
    try:
        file = (place / Path(name).expanduser()).resolve()
        return file if file.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None


def exists(path: Path) -> bool:
    """Return whether this path exists, which a broken link does too."""
    return os.path.lexists(path)


def read_bytes(path: Path, most: int = LARGEST_TEXT) -> bytes:
    """Return the bytes of a regular file. Raises `ModelError` if there are more than `most`."""
    try:
        # Without O_NONBLOCK, opening a named pipe waits until somebody writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ModelError(f"{path}: {_kind(status.st_mode)}, not a file")
            if status.st_size > most:
                raise ModelError(
                    f"{path}: {status.st_size} bytes; files of this kind are read up to {most}"
                )
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(status.st_size)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise ModelError(f"{path}: cannot be read: {system_reason(error)}") from error


def read_text(path: Path, most: int = LARGEST_TEXT) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises `ModelError` if the file cannot be read or is a Git LFS pointer.
    """
    try:
        text = read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{path}: not UTF-8 (byte {error.start}: {error.reason}). Save it as UTF-8"
        ) from error
    if text.startswith(POINTER):
        raise pointer_error(path)
    return text


def pointer_error(path: Path) -> ModelError:
    """Return the error for a file whose content Git LFS has not fetched."""
    return ModelError(
        f"{path}: a Git LFS pointer, not the file itself. Run `git lfs pull` in its folder, or "
        "download the file"
    )


def read_object(path: Path, most: int = LARGEST_TEXT) -> dict[str, Any]:
    """Return the object in a JSON file. Raises `ModelError` if there is none."""
    return parse_object(read_text(path, most), str(path))


def parse_object(
    text: str, where: str, *, unique: bool = False, remedy: str = ""
) -> dict[str, Any]:
    """Return the JSON object that a text holds. Raises `ModelError` if it holds none.

    A comma before a closing bracket is allowed and ignored.

    Args:
        where: the file, with which error messages begin.
        unique: whether a key that occurs twice is an error. If not, its last value counts, as in
            the libraries that read these files too.
        remedy: what the user can do, with which error messages end.
    """
    hook, end = (_unique_keys if unique else None), (f". {remedy}" if remedy else "")
    try:
        try:
            value = json.loads(text, object_pairs_hook=hook)
        except json.JSONDecodeError:
            value = json.loads(_TRAILING_COMMA.sub(r"\1", text), object_pairs_hook=hook)
    except RecursionError as error:
        raise ModelError(f"{where}: nested more than {DEEPEST} deep{end}") from error
    except ValueError as error:
        raise ModelError(f"{where}: not valid JSON: {error}{end}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{where}: a JSON object is expected, found {shown(value)}{end}")
    if _is_deep(value):
        raise ModelError(f"{where}: nested more than {DEEPEST} deep{end}")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(twice)} is there twice")
    return found


def _is_deep(value: dict[str, Any]) -> bool:
    """Return whether a value is nested so deeply that recursive code could fail on it."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [each for values in inner for each in values if isinstance(each, dict | list)]
    return bool(level)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")
