"""The receiving end of the pipe in the engine process."""

import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue

import pytest

from engine.messages import Abort, Generate, Inbound
from engine.process import worker
from engine.process.worker import _Inbox
from tests.engine.process.conftest import PARAMS

Send = Callable[..., None]

PIPES: list[Connection] = []  # kept open: an inbox ends the process when its pipe is closed


def request(request_id: str) -> Generate:
    return Generate(request_id, (1,), PARAMS)


@pytest.fixture
def inbox() -> tuple[_Inbox, Send]:
    """An inbox, and a function that sends it messages and waits until they have arrived."""
    receiving, sending = Pipe(duplex=False)
    PIPES.append(sending)
    inbox = _Inbox(receiving)

    def send(*messages: Inbound) -> None:
        before = inbox._messages.qsize()
        for message in messages:
            sending.send(message)
        while inbox._messages.qsize() < before + len(messages):
            time.sleep(0.001)

    return inbox, send


def test_a_request_whose_client_has_left_is_not_taken(inbox: tuple[_Inbox, Send]) -> None:
    messages, send = inbox
    send(request("a"), request("b"), Abort("a"))
    assert list(messages.take(0)) == [request("b"), Abort("a")]
    send(request("a"))
    assert list(messages.take(0)) == [request("a")], "the id may be used again"


def test_a_flood_of_requests_leaves_time_for_passes(
    inbox: tuple[_Inbox, Send], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "TAKING_SECONDS", 0.0)
    messages, send = inbox
    send(request("a"), request("b"), request("c"))
    assert [list(messages.take(0)) for _ in range(4)] == [
        [request("a")],
        [request("b")],
        [request("c")],
        [],
    ]


def test_the_process_ends_if_there_is_no_memory_for_a_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full:
        def recv(self) -> Inbound:
            raise MemoryError

    codes: SimpleQueue[int] = SimpleQueue()
    monkeypatch.setattr(worker, "_exit", codes.put)
    _Inbox(Full())  # type: ignore[arg-type]  # only its `recv` is called
    assert codes.get(timeout=60) == worker.EXIT_CRASHED
