"""Tests of batches of jobs: their order, cancellation, errors, and their context."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial

import pytest

from engine.streaming.workers import Workers


class ContextRecorder:
    """A recorder of how the context of a batch was entered and left."""

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


def test_jobs_begin_in_order_and_the_context_is_entered_once() -> None:
    recorder, seen = ContextRecorder(), list[int]()
    with closing(Workers("weights-test", 1)) as workers:
        first = workers.submit(*(partial(seen.append, i) for i in range(5)), context=recorder())
        second = workers.submit(partial(seen.append, 5))
        second.result()
        assert first.done()
        first.result()
    assert seen == [0, 1, 2, 3, 4, 5]
    assert recorder.notes == ["in", "out"]


def test_several_threads_work_on_one_batch() -> None:
    meeting = threading.Barrier(3, timeout=30)
    with closing(Workers("weights-test", 3)) as workers:

        def meet() -> None:
            meeting.wait()  # passes only when all three threads are here

        workers.submit(meet, meet, meet).result()


def test_a_failed_job_cancels_jobs_that_have_not_begun() -> None:
    recorder, seen, gate, running = (
        ContextRecorder(),
        list[int](),
        threading.Event(),
        threading.Event(),
    )

    def slow() -> None:
        running.set()
        assert gate.wait(30)
        seen.append(1)

    def fail() -> None:
        assert running.wait(30)
        raise OSError("torn")

    with closing(Workers("weights-test", 2)) as workers:
        batch = workers.submit(slow, fail, *[partial(seen.append, 9)] * 4, context=recorder())
        workers.submit(lambda: None).result()  # the second thread has ended its job of the batch
        assert not batch.done(), "one of its jobs still runs"
        assert recorder.notes == ["in"]
        gate.set()
        for _ in range(2):
            with pytest.raises(OSError, match="torn"):
                batch.result()
    assert seen == [1]
    assert recorder.notes == ["in", "OSError"]


def test_a_cancelled_batch_ends_when_its_running_jobs_end() -> None:
    recorder, begun, gate = ContextRecorder(), threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert gate.wait(30)

    with closing(Workers("weights-test", 1)) as workers:
        batch = workers.submit(slow, partial(pytest.fail, "was cancelled"), context=recorder())
        assert begun.wait(30)
        assert batch.cancel()
        assert batch.cancel(), "cancelling twice is allowed"
        assert not batch.done()
        gate.set()
        with pytest.raises(CancelledError):
            batch.result()
    assert recorder.notes == ["in", "CancelledError"]


def test_a_batch_cancelled_before_it_began_does_not_enter_its_context() -> None:
    recorder, gate = ContextRecorder(), threading.Event()
    with closing(Workers("weights-test", 1)) as workers:

        def wait() -> None:
            assert gate.wait(30)

        blocking = workers.submit(wait)
        batch = workers.submit(lambda: None, context=recorder())
        assert batch.cancel()
        assert batch.done()
        gate.set()
        blocking.result()
        assert not blocking.cancel(), "it had begun"
    assert recorder.notes == []


class FailingContext(AbstractContextManager[None]):
    def __enter__(self) -> None:
        raise RuntimeError("locked")

    def __exit__(self, *failure: object) -> None:
        pytest.fail("left without having been entered")


def test_an_error_on_entering_the_context_fails_the_batch() -> None:
    with closing(Workers("weights-test", 1)) as workers:
        batch = workers.submit(
            partial(pytest.fail, "the context was not entered"), context=FailingContext()
        )
        with pytest.raises(RuntimeError, match="locked"):
            batch.result()


def test_close_cancels_batches_that_have_not_begun() -> None:
    gate, begun = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert gate.wait(30)

    workers = Workers("weights-test", 1)
    running, waiting = workers.submit(slow), workers.submit(lambda: None)
    assert begun.wait(30)

    def open_when_cancelled() -> None:
        assert waiting._over.wait(30)
        gate.set()

    threading.Thread(target=open_when_cancelled).start()
    workers.close()
    running.result()
    with pytest.raises(CancelledError):
        waiting.result()
