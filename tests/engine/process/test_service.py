"""The real engine in its own process: clients that leave, a killed engine, a small KV cache."""

import asyncio
import functools
import os
import random
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
import pytest_asyncio

from engine.errors import EngineDied, ModelError
from engine.messages import Audited, PassStats, SamplingParams, WeightsChecked
from engine.process.callbacks import EngineCallbacks
from engine.process.client import EngineClient
from engine.spec import MemorySpec, StreamSpec
from tests.demo_server import COMPILED
from tests.engine.models import PLAIN, SUBSPEC, checkpoint, model_spec, prompt
from tests.engine.process.conftest import child_pid, exhaust
from tests.engine.process.requests import generate

GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)


async def ids_of(client: EngineClient, name: str, seed: int) -> list[int]:
    """Return all tokens of one answer."""
    got: list[int] = []
    async for tokens in generate(client, name, prompt(60, seed), GREEDY):
        got += tokens.ids
    return got


class Service:
    """A client of the real engine, with the figures of its passes."""

    def __init__(self) -> None:
        # The KV cache holds about three of eight sequences (see test_exactness).
        spec = model_spec(checkpoint("llama"), SUBSPEC, memory=MemorySpec(device=3300 << 10))
        self.passes: list[PassStats] = []
        spec = replace(spec, context_length=256)
        self.client = EngineClient(spec, callbacks=EngineCallbacks(on_pass=self.passes.append))

    async def ids(self, name: str, seed: int) -> list[int]:
        """Return all tokens of one answer."""
        return await ids_of(self.client, name, seed)

    async def leave_after(self, name: str, seed: int, messages: int) -> None:
        """Send a request, read some messages of its answer, and leave."""
        stream = generate(self.client, name, prompt(60, seed), GREEDY)
        try:
            for _ in range(messages):
                await anext(stream)
        except StopAsyncIteration:
            pass
        finally:
            await stream.aclose()

    @property
    def child(self) -> int:
        return child_pid(self.client)

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.child}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[Service]:
    made = Service()
    await made.client.start()
    yield made
    await made.client.close()


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_answers_are_the_same_alone_and_with_too_little_kv_for_all(
    service: Service,
) -> None:
    alone = [await service.ids(f"alone{seed}", seed) for seed in range(8)]
    together = await asyncio.gather(*(service.ids(f"all{seed}", seed) for seed in range(8)))
    assert list(together) == alone
    assert max(p.sequences for p in service.passes) > 1
    assert any(p.waiting for p in service.passes), "some requests had to wait for KV pages"


async def test_clients_that_leave_at_random_leave_no_memory_in_use(service: Service) -> None:
    chance = random.Random(0)
    want = await service.ids("base", 1)
    all_pages = max(p.free_pages for p in service.passes)
    before = service.resident_bytes()
    for round_number in range(6):
        leaving = [
            service.leave_after(f"{round_number}.{i}", chance.randrange(20), chance.randrange(4))
            for i in range(10)
        ]
        stays = service.ids(f"stays{round_number}", 1)
        *_, got = await asyncio.gather(*leaving, stays)
        assert got == want
    assert service.client.num_outstanding == 0
    assert await service.ids("after", 1) == want
    assert service.passes[-1].free_pages == all_pages
    assert service.resident_bytes() < before * 1.05


@pytest.mark.slow
async def test_every_stream_goes_on_after_a_kill(service: Service) -> None:
    want = [await service.ids(f"whole{seed}", seed) for seed in range(4)]
    chance = random.Random(0)
    for kill in range(2):
        lost: list[int] = []
        streams = [
            generate(
                service.client,
                f"cut{kill}.{seed}",
                prompt(60, seed),
                GREEDY,
                on_lost=functools.partial(lost.append, seed),
            )
            for seed in range(4)
        ]
        got: list[list[int]] = [[] for _ in streams]
        for _ in range(chance.randrange(1, 9)):
            got[0] += (await anext(streams[0])).ids
        os.kill(service.child, signal.SIGKILL)
        for ids, stream in zip(got, streams, strict=True):
            async for tokens in stream:
                ids += tokens.ids
        assert got == want
        assert 0 in lost
    assert service.client.num_outstanding == 0


@pytest.mark.slow
async def test_an_engine_that_restarts_with_other_files_is_refused(tmp_path: Path) -> None:
    """The front end has the tokenizer of the first files; a new load has another fingerprint."""
    folder = tmp_path / "model"
    copytree(checkpoint("llama"), folder)
    client = EngineClient(model_spec(folder, PLAIN))
    again = EngineClient(model_spec(folder, PLAIN))
    try:
        first = await client.start()
        tokenizer = folder / "tokenizer_config.json"
        tokenizer.write_text(tokenizer.read_text() + "\n")
        stream = generate(client, "runs", prompt(9), replace(GREEDY, max_tokens=200))
        await anext(stream)
        os.kill(child_pid(client), signal.SIGKILL)
        while client.state == "ready":
            await asyncio.sleep(0.01)
        with pytest.raises(ModelError, match=r"were changed after it was loaded.*Send the request"):
            await client.ready(timeout=240)
        assert client.state == "failed"
        with pytest.raises(EngineDied, match="SIGKILL"):
            await exhaust(stream)
        assert (await again.start()).fingerprint != first.fingerprint
    finally:
        await client.close()
        await again.close()


async def test_damaged_files_are_repaired_in_idle_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    (tmp_path / COMPILED.name).symlink_to(COMPILED)
    reports: asyncio.Queue[WeightsChecked] = asyncio.Queue()
    stream = StreamSpec(tier="disk", slots=2, recheck_hours=1e-4)
    spec = model_spec(checkpoint("llama"), PLAIN, stream=stream)
    client = EngineClient(spec, callbacks=EngineCallbacks(on_check=reports.put_nowait))
    await client.start()
    try:
        want = await ids_of(client, "before", 1)
        (unit,) = tmp_path.glob("*/00002.unit")
        whole = unit.read_bytes()
        unit.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        while (await reports.get()).repaired == 0:
            pass  # reports of rounds before the damage
        assert unit.read_bytes() == whole
        assert await ids_of(client, "after", 1) == want
    finally:
        await client.close()


async def test_finished_answers_are_audited_in_idle_time() -> None:
    reports: asyncio.Queue[Audited] = asyncio.Queue()
    spec = model_spec(checkpoint("llama"), SUBSPEC, audit=1.0)
    client = EngineClient(spec, callbacks=EngineCallbacks(on_audit=reports.put_nowait))
    await client.start()
    try:
        await asyncio.gather(*(ids_of(client, f"audited{seed}", seed) for seed in range(3)))
        assert [await reports.get() for _ in range(3)] == [Audited(40, 0)] * 3
    finally:
        await client.close()
