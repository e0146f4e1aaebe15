"""How processes ignore signals of their group, which only the front end handles.

A terminal sends Ctrl-C to every process of its foreground group, and a supervisor may send its
SIGTERM to every process of a service. The front end alone decides what follows: it lets running
requests finish and then ends the processes that it started.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def group_signals_blocked() -> Iterator[None]:
    """Block the signals of the group while processes are started within this block.

    A new process inherits the blocked signals: none can end it, or make it print a traceback,
    before it has imported enough to call `ignore_group_signals`. This process loses no signal: one
    that arrives within the block is delivered after it.
    """
    resource_tracker.ensure_running()  # else the first process starts it, which unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_group_signals() -> None:
    """Ignore the signals of the group from now on. Call it in the main thread of a new process."""
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
