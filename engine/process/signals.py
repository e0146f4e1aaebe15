"""Signals that reach a whole process group, and the processes that leave them to the front end.

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
    """Start processes within this block that ignore the signals of the group from the beginning.

    A process inherits the blocked signals, so that none can end it, or print a traceback, before
    it has imported enough to call `ignore_group_signals`. This process loses no signal: one that
    arrives meanwhile is delivered afterwards.
    """
    resource_tracker.ensure_running()  # its start, at the first process, would unblock signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_group_signals() -> None:
    """Ignore the signals of the group from now on. For the main thread of a started process."""
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
