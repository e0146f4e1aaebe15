"""Measure B, the bandwidth of the disk, with the same limits as the engines.

The files of the model are read for `seconds` with direct I/O, in blocks of 4 MiB by `threads`
threads, which is the fastest pattern on most disks.
"""

import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.peers.job import Job, Outcome, run

BLOCK = 4 << 20
SKIPPED_S = 0.5  # the limit does not apply at first


def probe(job: Job) -> Outcome:
    """Return the bandwidth as the figure `gbps`."""
    seconds, threads = float(job.options["seconds"]), int(job.options["threads"])
    paths = [path for path in sorted(Path(job.model).iterdir()) if path.stat().st_size > BLOCK]
    blocks = [(p, at) for p in paths for at in range(0, p.stat().st_size - BLOCK, BLOCK)]
    began = time.perf_counter()
    ends: list[float] = []

    def read(part: list[tuple[Path, int]]) -> None:
        buffer = mmap.mmap(-1, BLOCK)
        for path, at in part:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
            try:
                os.preadv(descriptor, [buffer], at)
            finally:
                os.close(descriptor)
            ends.append(time.perf_counter() - began)
            if ends[-1] > seconds:
                return

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, [blocks[i::threads] for i in range(threads)]))
    counted = [end for end in ends if end > SKIPPED_S]
    gbps = len(counted) * BLOCK / (max(ends) - SKIPPED_S) / 1e9
    return Outcome(0.0, (), {"gbps": gbps})


if __name__ == "__main__":
    run(probe)
