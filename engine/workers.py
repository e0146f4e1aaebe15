"""Named daemon threads that run jobs and hand back futures."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue

_Job = tuple[Future[None], Callable[[], None]]


class Workers:
    """Jobs begin in the order they were submitted.

    Unlike `ThreadPoolExecutor`'s, the threads are daemons: a read that hangs on a dead disk never
    keeps the process alive.
    """

    def __init__(self, name: str, count: int) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Callable[[], None]) -> Future[None]:
        """The job's future; what the job raises, `Future.result` raises."""
        assert self._threads, "no threads: none were planned for this kind of work, or closed"
        future: Future[None] = Future()
        self._jobs.put((future, job))
        return future

    def close(self) -> None:
        """Cancel the jobs not begun, wait for the others, end the threads. May be called again."""
        while True:
            try:
                waiting = self._jobs.get_nowait()
            except Empty:
                break
            if waiting is not None:
                waiting[0].cancel()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _run(self) -> None:
        while (waiting := self._jobs.get()) is not None:
            future, job = waiting
            if not future.set_running_or_notify_cancel():
                continue
            try:
                job()
            except BaseException as error:  # this is the thread's door: the waiter raises it
                future.set_exception(error)
            else:
                future.set_result(None)
            del waiting, future, job  # an idle thread must not keep slabs alive
