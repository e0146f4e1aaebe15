"""Files and folders of the cache: their names, how they are written and removed.

An entry is a folder with a packed model, with the configuration and tokenizer of a model in GGUF
files, or with idle KV (`engine/kv/disk`). `UNDERSTUDY_CACHE` names the folder of all entries; by
default it is `understudy` in the user's cache folder.

Only files with names that this module gives are removed, and links are not followed: the folder of
the cache may hold other files too (`UNDERSTUDY_CACHE=$HOME`), and another program may replace a
file after it was checked and before it is removed.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.errors import ModelError, system_reason

_VARIABLE = "UNDERSTUDY_CACHE"
INDEX = "index.json"
KV_MARK = "idle KV"  # the second line of the key of an entry with idle KV
# The files of a model in GGUF files, which has no units.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "gguf.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
REPLACING = ".new"  # suffix of a file that will replace the file of a unit
_FILE = re.compile(
    rf"index\.json|\d{{5,}}\.unit(\.[0-9a-f]{{16}}\{REPLACING})?|"
    rf"[0-9a-f]{{32}}-[0-9a-f]{{32}}-\d+-\d+\.(page|state)(\.[0-9a-f]{{16}}\{REPLACING})?|"
    + "|".join(map(re.escape, MODEL_FILES))
)
_PARTIAL = re.compile(r"\..+\.[a-z0-9_]{8}\.partial")  # of a folder that is being packed
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC


def cache_root() -> Path:
    """Return the folder of the cache, which may not exist yet."""
    if own := os.environ.get(_VARIABLE):
        return Path(own).expanduser()
    users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(users).expanduser() / "understudy"


def check_cache() -> None:
    """Raise `ModelError` if `UNDERSTUDY_CACHE` names a folder that cannot be used.

    The folder is made if it does not exist. It may be read-only if it has entries. Without the
    variable nothing is checked, because a model that fits the device needs no cache.
    """
    if not (own := os.environ.get(_VARIABLE)):
        return
    reason = ""
    try:
        root = cache_root()
        if not root.is_dir() and os.path.lexists(root):
            reason = "it is not a folder"
        else:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root):
                return
    except OSError as error:
        if any((root / name / INDEX).is_file() for name in folders(root)):
            return
        reason = system_reason(error)
    except RuntimeError as error:  # the home folder of "~user" is not known
        reason = str(error)
    raise ModelError(
        f"{_VARIABLE}: {own}: cannot be used as the folder of the cache: {reason}. Set it to a "
        "folder that can be written to, or unset it"
    )


def folder_name(model: str, key: str) -> str:
    """Return the name of the folder of an entry, which its key determines."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model)}-{digest}"


def key_of(folder: Path) -> str | None:
    """Return the key of an entry; None if the folder is no entry, or is being removed.

    Its first line is the model.
    """
    index = folder / INDEX
    try:
        if not index.is_file() or index.is_symlink():
            return None
        key = json.loads(index.read_text(encoding="utf-8"))["key"]
        return key if folder.name == folder_name(str(key).split("\n")[0], key) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def holds_kv(key: str) -> bool:
    """Return whether an entry with this key holds idle KV."""
    return key.split("\n")[1:2] == [KV_MARK]


def unit_name(index: int) -> str:
    """Return the file name of a unit."""
    return f"{index:05}.unit"


def write_file(path: Path, memory: memoryview) -> None:
    """Write a new file; its bytes have reached the disk when this returns."""
    with open(path, "xb") as file:
        file.write(memory)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, memory: memoryview) -> None:
    """Replace a file by one with these bytes, in one step that either happens or does not."""
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}{REPLACING}")
    try:
        write_file(new, memory)
        os.rename(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder have reached the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """Make a locked temporary folder beside `folder`, yield it, and remove it unless renamed."""
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    partial = made.with_name(f"{made.name}.partial")
    with lock(made):  # before it gets its final name, or `remove_stale` might remove it
        made.rename(partial)
        try:
            yield partial
        finally:
            remove_folder(partial)


def remove_stale(root: Path) -> None:
    """Remove the partial folders of killed processes, which are not locked."""
    for name in folders(root):
        if _PARTIAL.fullmatch(name):
            with lock(root / name) as free:
                if free:
                    remove_folder(root / name)


def folders(root: Path) -> list[str]:
    """Return the sorted names of the folders in `root`, without links to folders."""
    try:
        with os.scandir(root) as found:
            return sorted(entry.name for entry in found if entry.is_dir(follow_symlinks=False))
    except OSError:  # it does not exist or is not readable
        return []


def remove_folder(folder: Path) -> None:
    """Remove the files of a packed model, then their folder unless it holds other files.

    The index is removed first: from then on the folder is no entry of the cache. A folder that
    cannot be opened, or is a link, is left unchanged.
    """
    with suppress(OSError):
        above = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _remove_files(folder.name, above)
            os.rmdir(folder.name, dir_fd=above)  # fails while other files are in it
        finally:
            os.close(above)


def _remove_files(folder: str, above: int) -> None:
    """Remove the files of a packed model from `folder` in the folder of descriptor `above`."""
    inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=above)
    try:
        names = [name for name in os.listdir(inside) if _FILE.fullmatch(name)]
        for name in sorted(names, key=lambda name: name != INDEX):
            with suppress(OSError):  # a folder with such a name was not made by this module
                os.unlink(name, dir_fd=inside)  # removes a link, not its target
    finally:
        os.close(inside)


@contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Try to lock a file or folder; yield True if it was not locked, or does not exist.

    A link is not followed, and counts as locked.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _NO_LINK)
    except FileNotFoundError:
        yield True
        return
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)
