"""Batches of jobs: who begins, who is given up, and who closes the door."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial

import pytest

from engine.streaming.workers import Workers


class Doors:
    """Notes how a batch's `around` was entered and left."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.notes.append("in")
        try:
            yield
        except BaseException as error:
            self.notes.append(type(error).__name__)
            raise
        self.notes.append("out")


def test_jobs_begin_in_order_and_around_is_entered_once() -> None:
    doors, seen = Doors(), list[int]()
    with closing(Workers("weights-test", 1)) as workers:
        first = workers.submit(*(partial(seen.append, i) for i in range(5)), around=doors())
        second = workers.submit(partial(seen.append, 5))
        second.result()
        assert first.done()
        first.result()
    assert seen == [0, 1, 2, 3, 4, 5]
    assert doors.notes == ["in", "out"]


def test_several_threads_work_on_one_batch() -> None:
    meeting = threading.Barrier(3, timeout=30)
    with closing(Workers("weights-test", 3)) as workers:

        def meet() -> None:
            meeting.wait()  # none could pass alone

        workers.submit(meet, meet, meet).result()


def test_a_failure_gives_up_what_has_not_begun_and_waits_for_what_has() -> None:
    doors, seen, gate, running = Doors(), list[int](), threading.Event(), threading.Event()

    def slow() -> None:
        running.set()
        assert gate.wait(30)
        seen.append(1)

    def fail() -> None:
        assert running.wait(30)
        raise OSError("torn")

    with closing(Workers("weights-test", 2)) as workers:
        batch = workers.submit(slow, fail, *[partial(seen.append, 9)] * 4, around=doors())
        workers.submit(lambda: None).result()  # the second thread has left the batch behind
        assert not batch.done(), "a job of it still runs"
        assert doors.notes == ["in"]
        gate.set()
        for _ in range(2):
            with pytest.raises(OSError, match="torn"):
                batch.result()
    assert seen == [1]
    assert doors.notes == ["in", "OSError"]


def test_a_batch_given_up_in_the_middle_ends_with_the_jobs_that_run() -> None:
    doors, begun, gate = Doors(), threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert gate.wait(30)

    with closing(Workers("weights-test", 1)) as workers:
        batch = workers.submit(slow, partial(pytest.fail, "was given up"), around=doors())
        assert begun.wait(30)
        assert batch.cancel()
        assert batch.cancel(), "twice is once"
        assert not batch.done()
        gate.set()
        with pytest.raises(CancelledError):
            batch.result()
    assert doors.notes == ["in", "CancelledError"]


def test_what_never_began_is_over_at_once_and_enters_nothing() -> None:
    doors, gate = Doors(), threading.Event()
    with closing(Workers("weights-test", 1)) as workers:

        def wait() -> None:
            assert gate.wait(30)

        blocking = workers.submit(wait)
        batch = workers.submit(lambda: None, around=doors())
        assert batch.cancel()
        assert batch.done()
        gate.set()
        blocking.result()
        assert not blocking.cancel(), "it had begun"
    assert doors.notes == []


class Locked(AbstractContextManager[None]):
    def __enter__(self) -> None:
        raise RuntimeError("locked")

    def __exit__(self, *failure: object) -> None:
        pytest.fail("left without having been entered")


def test_a_door_that_does_not_open_fails_the_batch() -> None:
    with closing(Workers("weights-test", 1)) as workers:
        batch = workers.submit(partial(pytest.fail, "behind the door"), around=Locked())
        with pytest.raises(RuntimeError, match="locked"):
            batch.result()


def test_close_gives_up_what_waits() -> None:
    gate, begun = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert gate.wait(30)

    workers = Workers("weights-test", 1)
    running, waiting = workers.submit(slow), workers.submit(lambda: None)
    assert begun.wait(30)

    def open_when_given_up() -> None:
        assert waiting._over.wait(30)
        gate.set()

    threading.Thread(target=open_when_given_up).start()
    workers.close()
    running.result()
    with pytest.raises(CancelledError):
        waiting.result()
