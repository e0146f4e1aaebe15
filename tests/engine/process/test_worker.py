"""The engine process and its client, with a fake engine that has no model."""

import asyncio
import gc
import logging
import os
import select
import signal
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path

import pytest

from engine.errors import EngineDied, ModelError, PassFailed, QueueFull, RequestError
from engine.messages import (
    Abort,
    Audited,
    Generate,
    Heartbeat,
    LoadProgress,
    Outbound,
    PassStats,
    Ready,
    SamplingParams,
    Shutdown,
    Tokens,
)
from engine.process import engine_process, watchdog, worker
from engine.process.callbacks import EngineCallbacks
from engine.process.child import Child, explain_exit
from engine.process.client import EngineClient
from engine.process.watchdog import Watchdog
from engine.process.worker import EXIT_CRASHED
from tests.engine import fake_engine
from tests.engine.fake_engine import (
    AUDIT,
    BROKEN,
    DEADBORN,
    ENDLESS,
    FAIL,
    KILL,
    ONCE,
    RAISE,
    REFUSE,
    REPORT,
    SLOW,
    SPIN,
    STALL,
    UNLOADABLE,
    fake_spec,
)
from tests.engine.process.conftest import PARAMS, MakeClient, answer, child_pid
from tests.engine.process.requests import generate

ROOT = Path(__file__).parents[3]


async def report(client: EngineClient) -> list[str]:
    """Return the ids aborted in the engine, then its OMP_WAIT_POLICY and PYTORCH_ALLOC_CONF."""
    [tokens] = await answer(client, [REPORT])
    return tokens.text.split(",")


# -- serving


async def test_a_request_is_streamed_and_removed_from_the_queue(clients: MakeClient) -> None:
    seen: list[LoadProgress] = []
    passes: list[PassStats] = []
    client = clients(callbacks=EngineCallbacks(seen.append, passes.append))
    assert client.state == "new"
    info = await client.start()
    assert (client.state, client.info, info.model_id) == ("ready", info, "fake")
    first = LoadProgress("starting the engine process", 0, 0)
    assert seen == [first, LoadProgress("loading", 0, 2), LoadProgress("loading", 2, 2)]
    got = await answer(client, [5, 6, 7])
    assert [tokens.ids for tokens in got] == [(5,), (6,), (7,)]
    assert [tokens.finish for tokens in got] == [None, None, "stop"]
    assert client.num_outstanding == 0
    assert passes, "every pass is reported"


@pytest.mark.parametrize(("name", "is_loaded"), [("fake", True), (UNLOADABLE, False)])
async def test_log_lines_of_the_engine_are_in_the_log_of_the_front_end(
    clients: MakeClient, caplog: pytest.LogCaptureFixture, name: str, is_loaded: bool
) -> None:
    client = clients(name)
    with caplog.at_level(logging.INFO, "understudy"):
        if is_loaded:
            await client.start()
        else:
            with pytest.raises(ModelError):
                await client.start()
    [record] = [one for one in caplog.records if "converted" in one.getMessage()]
    assert (record.levelno, record.name) == (logging.INFO, "understudy.engine")
    assert record.getMessage().startswith(f"{name}: ")
    assert "\x1b" not in record.getMessage()


async def test_choices_are_interleaved_until_each_has_finished(client: EngineClient) -> None:
    got = await answer(client, [5, 6, 7], n=3)
    assert [(tokens.choice, tokens.ids[0]) for tokens in got] == [
        *((0, 5), (1, 5), (2, 5)),
        *((0, 6), (1, 6)),
        (0, 7),
    ]
    assert [tokens.choice for tokens in got if tokens.finish] == [2, 1, 0]


async def test_a_refusal_and_a_failure_of_the_engine_reach_the_caller(
    client: EngineClient,
) -> None:
    with pytest.raises(RequestError, match="not this one") as refused:
        await answer(client, [REFUSE])
    assert (refused.value.code, refused.value.param) == ("refused", "prompt")
    with pytest.raises(PassFailed, match="unreadable") as failed:
        await answer(client, [FAIL])
    assert failed.value.code == "weights_unreadable"
    assert client.num_outstanding == 0
    assert (await answer(client, [5]))[-1].finish == "stop"


async def test_requests_above_the_queue_limit_are_refused_until_one_ends(
    clients: MakeClient,
) -> None:
    client = clients(max_queue=2)
    await client.start()
    first = generate(client, "first", [ENDLESS], PARAMS)
    second = generate(client, "second", [ENDLESS], PARAMS)
    with pytest.raises(QueueFull, match="2 requests"):
        generate(client, "third", [5], PARAMS)
    await first.aclose()
    assert (await answer(client, [5]))[-1].finish == "stop"
    await second.aclose()


async def test_a_request_has_a_queue_position_until_its_first_pass(
    client: EngineClient,
) -> None:
    done: asyncio.Queue[int] = asyncio.Queue()
    streams = [
        generate(client, "first", [ENDLESS], PARAMS, on_prompt=done.put_nowait),
        generate(client, "second", [ENDLESS], PARAMS),
    ]
    assert [client.position(name) for name in ("first", "second", "other")] == [1, 2, 0]
    assert await done.get() == 0
    assert client.position("first") == 0
    assert await done.get() == 1, "its first tokens say that the prompt is complete"
    await anext(streams[1])
    assert client.position("second") == 0
    for stream in streams:
        await stream.aclose()


async def test_ending_the_stream_early_in_any_way_aborts_the_request(client: EngineClient) -> None:
    left = generate(client, "left", [ENDLESS], PARAMS)
    await anext(left)
    await left.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(left)

    waiting = generate(client, "cancelled", [SPIN], PARAMS)
    task = asyncio.ensure_future(anext(waiting))
    await asyncio.sleep(0)  # it waits for a token now
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    thrown = generate(client, "thrown", [SPIN], PARAMS)
    with pytest.raises(ZeroDivisionError):
        await thrown.athrow(ZeroDivisionError())

    never_iterated = generate(client, "collected", [SPIN], PARAMS)
    assert client.num_outstanding == 1
    del never_iterated
    gc.collect()
    await asyncio.sleep(0)  # collection may happen in any thread, so the loop calls `abort`
    assert client.num_outstanding == 0
    aborted = (await report(client))[:-2]  # without those that the engine never received
    assert aborted[0] == "left"
    assert set(aborted) <= {"left", "cancelled", "thrown", "collected"}


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [
        ("PYTORCH_ALLOC_CONF", None, "expandable_segments:True"),
        ("PYTORCH_ALLOC_CONF", "backend:native", "backend:native"),
        ("PYTORCH_CUDA_ALLOC_CONF", "backend:native", ""),  # the older name: the user's value wins
    ],
)
async def test_only_the_childs_environment_is_changed(
    clients: MakeClient,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str | None,
    seen: str,
) -> None:
    for unset in ("OMP_WAIT_POLICY", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(unset, raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)
    client = clients()
    await client.start()
    assert await report(client) == ["PASSIVE", seen]
    assert "OMP_WAIT_POLICY" not in os.environ
    assert os.environ.get(name) == value


def test_collections_leave_out_what_was_loaded() -> None:
    ours, theirs = Pipe()
    before = gc.get_freeze_count()
    try:
        worker._load_or_report(fake_engine.FakeEngine.load, fake_spec(), worker._Outbox(theirs))
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
    ours.close()


# -- checks in idle time


async def test_an_audit_is_interrupted_by_a_request_and_repeated(clients: MakeClient) -> None:
    reports: asyncio.Queue[Audited] = asyncio.Queue()
    client = clients(callbacks=EngineCallbacks(on_audit=reports.put_nowait))
    await client.start()
    assert (await answer(client, [AUDIT, 6, 7]))[-1].finish == "stop"
    assert reports.empty()
    while reports.empty():  # only a request ends the current audit
        assert (await answer(client, [5]))[-1].finish == "stop"
    assert await reports.get() == Audited(3, 1)


async def test_the_end_of_the_process_does_not_wait_for_an_audit() -> None:
    loaded, answered = asyncio.Event(), asyncio.Event()

    def on_message(message: Outbound) -> None:
        if isinstance(message, Ready):
            loaded.set()
        if isinstance(message, Tokens):
            answered.set()

    child = Child(fake_engine.main, fake_spec(), on_message)
    try:
        await loaded.wait()
        child.send(Generate("checked", (AUDIT,), PARAMS))
        await answered.wait()
        child.send(Shutdown())
        assert await child.exit_code() == 0
    finally:
        await child.close()


# -- dying


async def test_a_killed_process_is_restarted(clients: MakeClient) -> None:
    restarts: list[None] = []
    client = clients(callbacks=EngineCallbacks(on_restart=lambda: restarts.append(None)))
    await client.start()
    before = child_pid(client)
    stream = generate(client, "runs", [ENDLESS], PARAMS)
    await anext(stream)
    os.kill(before, signal.SIGKILL)
    while client.state == "ready":
        await asyncio.sleep(0)
    assert (await client.ready(60)).model_id == "fake"
    assert child_pid(client) != before
    assert len(restarts) == 1
    assert (await answer(client, [5]))[-1].finish == "stop"


async def test_an_exception_in_a_step_is_reported_and_its_request_refused(
    clients: MakeClient, capfd: pytest.CaptureFixture[str]
) -> None:
    client = clients()  # started here, so that its stderr is the captured one
    await client.start()
    stream = generate(client, "poison", [RAISE, 5], SamplingParams(seed=1))
    with pytest.raises(RequestError, match=r"died twice.*ZeroDivisionError: no such") as refused:
        await anext(stream)
    assert refused.value.code == "request_failed"
    await client.ready(60)
    with pytest.raises(RequestError, match="died twice"):
        generate(client, "poison", [RAISE, 5], SamplingParams(seed=3))
    assert (await answer(client, [5]))[-1].finish == "stop"
    assert "no such layer" in capfd.readouterr().err


async def test_a_stalled_process_dumps_its_stacks_and_is_restarted(
    clients: MakeClient, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = clients()  # started here, so that its stderr is the captured one
    await client.start()
    monkeypatch.setattr(watchdog, "MIN_SILENCE_S", 0.2)
    monkeypatch.setattr(watchdog, "FIRST_PASS_SILENCE_S", 0.2)
    stalled = generate(client, "stalled", [STALL], PARAMS)
    bystander = generate(client, "bystander", [5, 6], PARAMS)
    with pytest.raises(RequestError, match="died twice"):
        await anext(stalled)
    assert [tokens.text async for tokens in bystander] == ["5 ", "6 "]
    assert "_obey" in capfd.readouterr().err, "the stack of the stalled pass"
    assert (await answer(client, [5]))[-1].finish == "stop"


async def test_heartbeats_within_a_pass_restart_the_watchdogs_timer(
    clients: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    restarts: asyncio.Queue[float] = asyncio.Queue()

    class RecordingWatchdog(Watchdog):
        def restart_timer(self, now: float) -> None:
            super().restart_timer(now)
            restarts.put_nowait(now)

    monkeypatch.setattr(engine_process, "Watchdog", RecordingWatchdog)
    client = clients()
    await client.start()
    while not restarts.empty():
        restarts.get_nowait()
    stream = generate(client, "spins", [SPIN], PARAMS)
    await restarts.get()  # the request was sent
    await restarts.get()  # a heartbeat: a pass that does not end by itself sends nothing else
    await stream.aclose()  # a stream that nothing refers to is aborted


async def test_a_pass_sends_heartbeats_and_obeys_an_abort() -> None:
    beats: list[Heartbeat] = []
    loaded, beaten = asyncio.Event(), asyncio.Event()
    reported: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_message(message: Outbound) -> None:
        if isinstance(message, Ready):
            loaded.set()
        if isinstance(message, Tokens):
            reported.set_result(message.text)
        if isinstance(message, Heartbeat):
            beats.append(message)
            if len(beats) == 2:
                beaten.set()

    child = Child(fake_engine.main, fake_spec(), on_message)
    try:
        await loaded.wait()
        child.send(Generate("spins", (SPIN,), PARAMS))
        await beaten.wait()  # the pass runs, and ends only by an abort
        child.send(Abort("spins"))
        child.send(Generate("after", (REPORT,), PARAMS))
        assert (await reported).startswith("spins,")
    finally:
        await child.close()
    assert 0 < beats[0].units < beats[1].units


def test_the_end_of_the_parent_ends_the_child_within_a_pass() -> None:
    script = """
import asyncio
from engine.process.child import Child
from engine.messages import Generate, Heartbeat, Ready, SamplingParams
from tests.engine import fake_engine

async def main():
    def on_message(message):
        if isinstance(message, Ready):
            child.send(Generate("stalls", (fake_engine.STALL,), SamplingParams()))
        if isinstance(message, Heartbeat):  # the pass stalls after this, and sends nothing
            print(child.pid, flush=True)

    child = Child(fake_engine.main, fake_engine.fake_spec(), on_message)
    await child.wait_until_gone()

if __name__ == "__main__":
    asyncio.run(main())
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = os.pidfd_open(int(parent.stdout.readline()))
    try:
        parent.kill()
        parent.wait()
        assert select.select([child], [], [], 60)[0], "the child is still running"
    finally:
        os.close(child)


# -- loading and closing


async def test_the_error_of_a_failed_load_has_its_reason(clients: MakeClient) -> None:
    client = clients(UNLOADABLE)
    with pytest.raises(ModelError, match=r"lm_head\.weight is missing"):
        await client.start()
    assert client.state == "failed"
    with pytest.raises(ModelError):
        await client.ready(60)
    with pytest.raises(EngineDied, match="failed"):
        generate(client, "late", [5], PARAMS)


async def test_the_error_of_a_process_that_dies_while_loading_has_its_code(
    clients: MakeClient,
) -> None:
    client = clients(DEADBORN)
    with pytest.raises(EngineDied, match="exit code 9"):
        await client.start()
    assert client.state == "failed"


async def test_an_unexpected_failure_of_the_load_ends_the_process(clients: MakeClient) -> None:
    client = clients(BROKEN)
    with pytest.raises(EngineDied, match=f"exit code {EXIT_CRASHED}"):
        await client.start()


async def test_a_model_that_cannot_be_loaded_again_fails_permanently(
    clients: MakeClient, tmp_path: Path
) -> None:
    client = clients(ONCE, tmp_path)
    await client.start()
    with pytest.raises(EngineDied):
        await answer(client, [KILL])
    with pytest.raises(ModelError, match="gone"):
        await client.ready(60)
    assert client.state == "failed"


async def test_closing_ends_the_process_and_fails_its_requests(client: EngineClient) -> None:
    gone = os.pidfd_open(child_pid(client))
    stream = generate(client, "runs", [SPIN], PARAMS)
    await client.close()
    with pytest.raises(EngineDied) as died:
        await anext(stream)
    assert died.value.code == "engine_closed"
    assert select.select([gone], [], [], 0)[0]
    os.close(gone)
    assert (client.state, client.num_outstanding) == ("closed", 0)
    with pytest.raises(EngineDied, match="closed"):
        generate(client, "late", [5], PARAMS)
    with pytest.raises(EngineDied, match="closed"):
        await client.ready(60)


async def test_closing_does_not_wait_for_a_load_and_ready_times_out(clients: MakeClient) -> None:
    seen = asyncio.Event()
    client = clients(SLOW, callbacks=EngineCallbacks(lambda _: seen.set()))
    starting = asyncio.ensure_future(client.start())
    await seen.wait()
    with pytest.raises(TimeoutError, match="still loading"):
        await client.ready(0.01)
    await client.close()
    with pytest.raises(EngineDied, match="closed"):
        await starting


# -- small things


@pytest.mark.parametrize(
    ("code", "words"),
    [(1, "exit code 1"), (-9, "memory.ram"), (-15, "SIGTERM"), (-99, "signal 99")],
)
def test_exit_codes_are_explained_in_words(code: int, words: str) -> None:
    assert words in explain_exit(code)


def test_an_end_for_lack_of_memory_is_told_from_others() -> None:
    assert "limit of its cgroup" in explain_exit(-9, had_no_memory=True)
    assert "cgroup" not in explain_exit(-9) + explain_exit(-11, had_no_memory=True)


def test_importing_the_client_imports_no_model_libraries() -> None:
    script = (
        "import sys, engine.process.client, engine.messages, engine.spec, engine.errors\n"
        "import engine.text.stop\n"
        "heavy = {'torch', 'transformers', 'numpy', 'fastapi', 'pydantic'} & sys.modules.keys()\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
