"""Memory of the heap and the kernel: what the allocator keeps, and what is given back.

By default, glibc's allocator would return each large block to the kernel at once.
"""

import ctypes
import mmap
import platform

_M_TRIM_THRESHOLD = -1  # from malloc.h
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make glibc reuse freed blocks of any size. Call this before threads start.

    Blocks over 32 MiB otherwise cause page faults at each use (2.5 GB/s measured). Return False
    where glibc refuses, and where the C library is another one, which is left as it is.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    mallopt.restype = ctypes.c_int
    if not mallopt(_M_MMAP_THRESHOLD, _NEVER):  # old versions limit it to half a heap
        mallopt(_M_MMAP_MAX, 0)
    return bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


def give_back_freed() -> None:
    """Give free memory of the heap back to the kernel, also after `keep_freed_memory`."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def discard(address: int, nbytes: int) -> None:
    """Give memory back to the kernel that stays allocated. It holds zeros when it is used again.

    Only the whole pages of the system within it are given back.
    """
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (address + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        madvise(first, last - first, mmap.MADV_DONTNEED)
