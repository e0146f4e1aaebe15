"""The allocator keeps freed large blocks in the heap."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_large_blocks_stay_in_the_heap() -> None:
    """The test runs in its own process, because the setting is permanent."""
    script = """
import ctypes, sys
from engine.malloc import keep_freed_memory
assert keep_freed_memory()
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd".split()]
    _fields_ += [("rest", ctypes.c_size_t * 5)]
mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Info
before = mallinfo2()
block = bytearray(100 << 20)
during = mallinfo2()
assert during.hblkhd == before.hblkhd, "the block was mapped outside of the heap"
del block
assert mallinfo2().arena >= 100 << 20, "the block was returned to the kernel"
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
