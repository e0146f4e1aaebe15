"""Named daemon threads that run jobs, alone or in batches."""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, nullcontext, suppress
from queue import Empty, SimpleQueue

Job = Callable[[], None]


class Batch:
    """Jobs that belong together. The batch is over when none of them runs or will run.

    When one fails, those that have not begun are cancelled. The thread that begins first enters
    `around`, and the one that ends last leaves it, with the first failure.
    """

    def __init__(self, count: int, around: AbstractContextManager[object]) -> None:
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._waiting = count
        self._running = 0
        self._around = around
        self._entered = False
        self._cancelled = False
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Return whether `result` would return, or raise, at once."""
        return self._over.is_set()

    def result(self) -> None:
        """Wait until the batch is over. Raises the first failure, or `CancelledError`."""
        self._over.wait()
        if self._error is not None:
            raise self._error
        if self._cancelled:
            raise CancelledError

    def cancel(self) -> bool:
        """Cancel the jobs that have not begun; return False if all have."""
        with self._lock:
            if self._waiting:
                self._cancelled, self._waiting = True, 0
            self._finish_if_over()
            return self._cancelled

    def run(self, job: Job) -> None:
        """Run one of the jobs, unless they were cancelled."""
        if not self._begin():
            return
        error: BaseException | None = None
        try:
            job()
        except BaseException as raised:  # this thread's outermost handler: the waiter raises it
            error = raised
        with self._lock:
            self._running -= 1
            self._fail(error)
            self._finish_if_over()

    def _begin(self) -> bool:
        with self._lock:
            if self._waiting == 0:
                return False
            if not self._entered:
                self._entered = True
                try:
                    self._around.__enter__()
                except BaseException as error:
                    self._around = nullcontext()
                    self._fail(error)
                    self._finish_if_over()
                    return False
            self._waiting -= 1
            self._running += 1
            return True

    def _fail(self, error: BaseException | None) -> None:
        if error is not None:
            self._error = self._error or error
            self._waiting = 0

    def _finish_if_over(self) -> None:
        """Leave `around` and wake the waiter, if the batch is over."""
        if self._waiting or self._running or self._over.is_set():
            return
        try:
            if self._entered:
                failure = self._error or (CancelledError() if self._cancelled else None)
                self._around.__exit__(type(failure) if failure else None, failure, None)
        except BaseException as error:
            self._error = self._error or error
        finally:
            self._over.set()


class Workers:
    """Threads that run jobs in the order in which they were submitted.

    Unlike `ThreadPoolExecutor`'s, the threads are daemons: a read that hangs on a dead disk never
    keeps the process alive.
    """

    def __init__(self, name: str, count: int) -> None:
        self._jobs: SimpleQueue[tuple[Batch, Job] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, *jobs: Job, around: AbstractContextManager[object] | None = None) -> Batch:
        """Queue at least one job; any threads run them, also at the same time."""
        assert self._threads, "no threads: none were planned for this kind of work, or closed"
        assert jobs, "nothing to do"
        batch = Batch(len(jobs), around or nullcontext())
        for job in jobs:
            self._jobs.put((batch, job))
        return batch

    def close(self) -> None:
        """Cancel jobs that have not begun, wait for the others, end the threads.

        It may be called again.
        """
        with suppress(Empty):
            while waiting := self._jobs.get_nowait():
                waiting[0].cancel()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _run(self) -> None:
        while (waiting := self._jobs.get()) is not None:
            batch, job = waiting
            batch.run(job)
            del waiting, batch, job  # an idle thread must not keep slabs alive
