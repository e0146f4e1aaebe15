"""A key of the terminal that ends what a command shows."""

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator

POLL_S = 0.2


@contextlib.contextmanager
def leaving_by_q() -> Iterator[None]:
    """Let q do within this block what Ctrl-C does, if stdin is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    terminal, is_over = sys.stdin.fileno(), threading.Event()

    def read() -> None:
        while not is_over.is_set():
            if select.select([terminal], [], [], POLL_S)[0]:
                match os.read(terminal, 1):
                    case b"q" | b"Q":
                        os.kill(os.getpid(), signal.SIGINT)  # it ends a wait for the network too
                        return
                    case b"":
                        return

    before = termios.tcgetattr(terminal)
    reading = threading.Thread(target=read, daemon=True)
    tty.setcbreak(terminal)  # keys are read without Enter, and Ctrl-C stays a signal
    reading.start()
    try:
        yield
    finally:
        is_over.set()
        reading.join()
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
