"""Named daemon threads that run jobs, in batches."""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, nullcontext, suppress
from queue import Empty, SimpleQueue

Job = Callable[[], None]


class JobBatch:
    """A batch of jobs that belong together. It is over when none of them runs or will run.

    When one fails, the jobs that have not begun are cancelled. The thread that begins the first job
    enters `context`, and the thread that ends the last job leaves it, with the first error.
    """

    def __init__(self, count: int, context: AbstractContextManager[object]) -> None:
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._waiting = count
        self._running = 0
        self._context = context
        self._entered = False
        self._cancelled = False
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Return whether `result` would return or raise without waiting."""
        return self._over.is_set()

    def result(self) -> None:
        """Wait until the batch is over. Raises the first error of a job, or `CancelledError`."""
        self._over.wait()
        if self._error is not None:
            raise self._error
        if self._cancelled:
            raise CancelledError

    def cancel(self) -> bool:
        """Cancel the jobs that have not begun. Return False if all have begun."""
        with self._lock:
            if self._waiting:
                self._cancelled, self._waiting = True, 0
            self._finish_if_over()
            return self._cancelled

    def run(self, job: Job) -> None:
        """Run one of the jobs, unless the batch was cancelled."""
        if not self._begin():
            return
        error: BaseException | None = None
        try:
            job()
        except BaseException as raised:  # the thread's outermost handler: `result` raises it
            error = raised
        with self._lock:
            self._running -= 1
            self._fail(error)
            self._finish_if_over()

    def _begin(self) -> bool:
        """Count a job as running and return True, or return False if the batch was cancelled."""
        with self._lock:
            if self._waiting == 0:
                return False
            if not self._entered:
                self._entered = True
                try:
                    self._context.__enter__()
                except BaseException as error:
                    self._context = nullcontext()
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
        """If the batch is over, leave `context` and let `result` return."""
        if self._waiting or self._running or self._over.is_set():
            return
        try:
            if self._entered:
                failure = self._error or (CancelledError() if self._cancelled else None)
                self._context.__exit__(type(failure) if failure else None, failure, None)
        except BaseException as error:
            self._error = self._error or error
        finally:
            self._over.set()


class Workers:
    """A pool of threads that begin jobs in the order in which they were submitted.

    The threads are daemons, unlike those of `ThreadPoolExecutor`, so a read that hangs on a dead
    disk never keeps the process alive.
    """

    def __init__(self, name: str, count: int) -> None:
        self._jobs: SimpleQueue[tuple[JobBatch, Job] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, *jobs: Job, context: AbstractContextManager[object] | None = None) -> JobBatch:
        """Queue at least one job and return the batch of all of them. They may run in parallel.

        `context` is entered before the first job begins and left after the last one ends.
        """
        assert self._threads, "the pool has no threads, or was closed"
        assert jobs, "no jobs were submitted"
        batch = JobBatch(len(jobs), context or nullcontext())
        for job in jobs:
            self._jobs.put((batch, job))
        return batch

    def close(self) -> None:
        """Cancel jobs that have not begun, wait for the others, and end the threads.

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
            del waiting, batch, job  # an idle thread must not keep buffers alive
