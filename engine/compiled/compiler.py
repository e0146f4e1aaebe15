"""How functions are compiled for the CPU: by numba, each one when it is first called.

Compiled code keeps the order and the roundings of the source (no `fastmath`), and runs without the
interpreter's lock. It is cached below the cache folder; a cache that cannot be used costs only the
time to compile again. numba is imported here only, and not before code is to be compiled (0.5 s).
`NUMBA_DISABLE_JIT=1`, which is numba's own switch, turns all compiled code off.
"""

import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from engine.cache_files import cache_root
from engine.errors import system_reason

log = logging.getLogger(__name__)

FOLDER = "compiled"  # in the cache
# Memory that a process takes for numba, its compiler and the code (measured): 177 MB for the first
# function and 43 MB for those after it, or 112 and 6 MB where they are read from the cache. Both
# are counted as they are in an empty cache, so that no first start needs more than its plan.
FIRST_BYTES = 220 << 20
MORE_BYTES = 44 << 20
_WRITABLE_BY_OTHERS = 0o022

_P = ParamSpec("_P")
_R = TypeVar("_R")
_lock = threading.Lock()  # numba compiles one function at a time, too
_is_off = ContextVar("_is_off", default=False)
_made: list[str] = []  # names of the functions that are compiled
# What numba does not know yet: helpers, and functions with what writes their code.
_helpers: list[Callable[..., Any]] = []
_emitted: list[tuple[Callable[..., None], Callable[..., None]]] = []


def is_available() -> bool:
    """Return whether code can be compiled here, and is not switched off."""
    return not _is_off.get() and has_numba()


def bytes_to_compile() -> int:
    """Return the bytes that this process will take for compiled code beyond those it holds now."""
    if not is_available():
        return 0
    return MORE_BYTES if _made else FIRST_BYTES


@contextmanager
def switched_off() -> Iterator[None]:
    """Let `is_available` be False in this thread: for tests and benchmarks of the other ways."""
    token = _is_off.set(True)
    try:
        yield
    finally:
        _is_off.reset(token)


@cache
def has_numba() -> bool:
    """Return whether numba can be imported and compiles. The log says once if it is missing."""
    try:
        import numba
    except (ImportError, OSError) as error:  # OSError: a library of llvmlite cannot be loaded
        log.warning(
            "numba cannot be imported (%s): slower functions expand weights and compute attention. "
            "Install it with `pip install numba`",
            error,
        )
        return False
    return not numba.config.DISABLE_JIT


@cache
def has_feature(name: str) -> bool:
    """Return whether the processor has a feature with this name in LLVM."""
    from llvmlite import binding

    return bool(binding.get_host_cpu_features().get(name))


def helper(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let kernels call a function. It becomes a part of them when they are compiled."""
    _helpers.append(function)
    return function


def emitted(emit: Callable[..., None]) -> Callable[..., None]:
    """Return a function for kernels whose code `emit` writes as LLVM instructions.

    It is for vectors that have to stay in registers, which numba cannot express.

    Args:
        emit: called with llvmlite's module `ir`, the builder of instructions, and the arguments of
            the function: a flat array arrives as the pointer to its first value, an integer as
            a value of 64 bits, and a float as it is.
    """

    def call(*_: Any) -> None:
        raise NotImplementedError("only kernels can call this function")

    _emitted.append((call, emit))
    return call


def kernel(
    signature: str, name: str | None = None
) -> Callable[[Callable[_P, None]], Callable[_P, None]]:
    """Return a decorator that compiles a function for these types when it is first called.

    Args:
        signature: the types of the arguments in numba's notation.
        name: of a function that is compiled several times: for other types, or with other
            constants or helpers in its closure. It names the file in the cache, so each kernel
            needs another one: two processes that write different code to one file at the same
            time would mix it up.
    """

    def decorate(function: Callable[_P, None]) -> Callable[_P, None]:
        own: list[Callable[_P, None]] = []

        def call(*args: _P.args, **kwargs: _P.kwargs) -> None:
            if not own:
                with _lock:
                    if not own:
                        own.append(_compile(function, signature, name))
                        _made.append(function.__qualname__)
            own[0](*args, **kwargs)

        return call

    return decorate


def _compile(
    function: Callable[..., None], signature: str, name: str | None
) -> Callable[..., None]:
    import numba

    function.__qualname__ = name or function.__qualname__
    while _helpers:
        numba.extending.register_jitable(forceinline=True)(_helpers.pop())
    while _emitted:
        _register(*_emitted.pop())
    folder = usable_folder(cache_root() / FOLDER / _version())
    if folder is not None:
        try:
            return _compile_cached(function, signature, folder)
        # A damaged file raises anything, because it is a pickle; a full disk raises OSError.
        except Exception as error:
            log.warning(
                "%s: cached code of %s cannot be used (%r), so it is compiled now. Remove this "
                "folder to have it cached again",
                folder,
                function.__qualname__,
                error,
            )
    compiled: Callable[..., None] = numba.njit(signature, nogil=True)(function)
    return compiled


def _register(function: Callable[..., None], emit: Callable[..., None]) -> None:
    """Let numba replace calls of a function by the instructions that `emit` writes."""
    import numba
    from llvmlite import ir

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = []
        for index, kind in enumerate(signature.args[0]):
            item = builder.extract_value(arguments[0], index)
            if isinstance(kind, numba.types.Array):
                item = context.make_array(kind)(context, builder, item).data
            elif isinstance(kind, numba.types.Integer):
                item = context.cast(builder, item, kind, numba.types.int64)
            values.append(item)
        emit(ir, builder, *values)
        return context.get_dummy_value()

    def declare(typing: Any, arguments: Any) -> Any:
        return numba.types.void(arguments), write

    instructions = numba.extending.intrinsic(declare)
    overload = numba.extending.overload(function, jit_options={"forceinline": True})
    overload(lambda *arguments: lambda *arguments: instructions(arguments))


def _compile_cached(
    function: Callable[..., None], signature: str, folder: Path
) -> Callable[..., None]:
    """Return the function, compiled now or earlier. Its code is in files of `folder`."""
    import numba

    before = numba.config.CACHE_DIR  # of other users of numba in this process
    numba.config.CACHE_DIR = str(folder)
    try:
        compiled: Callable[..., None] = numba.njit(signature, nogil=True, cache=True)(function)
    finally:
        numba.config.CACHE_DIR = before
    return compiled


@cache
def usable_folder(folder: Path) -> Path | None:
    """Return a folder for compiled code, made if necessary; None if it cannot be used.

    Loading a cached function runs code of its file, so only this user may be able to write there.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        is_own = found.st_uid == os.geteuid() and not found.st_mode & _WRITABLE_BY_OTHERS
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        log.warning("%s: compiled code cannot be cached: %s", folder, system_reason(error))
        return None
    if not is_own:
        log.warning(
            "%s: compiled code is not cached, because others may write to this folder", folder
        )
        return None
    return folder


@cache
def _version() -> str:
    """Return a name for the sources of this package on this kind of processor.

    numba compares the file of a kernel, but not those of the helpers that it contains. Machines
    that differ and share a cache must not write the same files at the same time.
    """
    from llvmlite import binding

    processor = f"{binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()}"
    digest = hashlib.blake2b(processor.encode(), digest_size=8)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
