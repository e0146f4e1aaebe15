"""The handling of Ctrl-C and of the signals with which supervisors end a process.

SIGQUIT keeps its default, which ends the whole process group at once. Few modules are imported
here: Ctrl-C prints a traceback until the signals are handled.
"""

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, Self

STDERR = 2
INTERRUPTED = 128 + signal.SIGINT  # what a shell shows for a process that Ctrl-C ended


class EndSignals:
    """A context manager that handles the signals which end a command.

    They end the process at once: libraries that are being imported, or that download in threads,
    would delay `KeyboardInterrupt` or print its traceback. The first signal asks a running server
    to stop, and the second ends it at once.

    Attributes:
        first: the signal that asked a running server to stop, None before.
    """

    def __init__(self) -> None:
        self._is_server = False
        self.first: signal.Signals | None = None
        self._ask: Callable[[], None] | None = None
        self._kill_children: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it
            numbers.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._on_signal) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def handle_again(self) -> None:
        """Handle the signals again, after a library has set handlers of its own."""
        for number in self._before:
            signal.signal(number, self._on_signal)

    def expect_server(self) -> None:
        """Make the exit code 0 when a supervisor's signal ends a server before it runs."""
        self._is_server = True

    def raise_interrupts(self) -> None:
        """Let signals raise exceptions, for a command that restores the terminal or ends a server.

        Ctrl-C raises `KeyboardInterrupt`, which may end a part of the command only. The other
        signals raise `SystemExit`.
        """
        for number in self._before:
            is_interrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_interrupt else _raise_exit)

    def ask_first(self, ask: Callable[[], None], kill_children: Callable[[], None]) -> None:
        """Call `ask` at the first signal, and `kill_children` before the process ends."""
        self._ask, self._kill_children = ask, kill_children

    def end(self, code: int) -> NoReturn:
        """End the process and its children at once, without waiting for threads."""
        self._kill_children()
        os._exit(code)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._ask is not None and self.first is None:
            self.first = signal.Signals(number)
            self._ask()
            return
        with contextlib.suppress(OSError):  # the terminal is gone
            os.write(STDERR, b"\nStopped at once.\n")  # sys.stderr may be in the middle of a line
        is_orderly = self._is_server and self.first is None and number != signal.SIGINT
        self.end(0 if is_orderly else 128 + number)


def _raise_exit(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
