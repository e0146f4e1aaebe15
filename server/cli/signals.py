"""How Ctrl-C and the signals of supervisors end the process.

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
    """Handles the signals that end a command, as a context manager.

    They end the process at once, whatever it does: libraries that are being imported, or that
    download in threads, would hold up `KeyboardInterrupt` or print it. A server that runs is asked
    to stop by the first signal, and ended at once by the second.

    Attributes:
        first: the signal that asked a running server to stop.
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

    def expect_server(self) -> None:
        """Let a supervisor's signal end with 0, even before the server runs."""
        self._is_server = True

    def ask_first(self, ask: Callable[[], None], kill_children: Callable[[], None]) -> None:
        """From now on call `ask` at the first signal, and `kill_children` before the end."""
        self._ask, self._kill_children = ask, kill_children

    def end(self, code: int) -> NoReturn:
        """End the process and its children, and wait for nothing, threads included."""
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
