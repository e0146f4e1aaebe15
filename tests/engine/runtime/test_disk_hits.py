"""Tests of prompts that begin with KV from the disk: their answers are those of computing it."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.cache_files import folders
from engine.kv.page_pool import PAGE
from engine.messages import Generate
from engine.runtime.engine import Engine
from engine.spec import DraftSpec, MemorySpec
from tests.engine.books import check_books, check_idle
from tests.engine.disk_caches import save_all
from tests.engine.models import (
    PLAIN,
    SUBSPEC,
    alone,
    checkpoint,
    exact,
    hooks,
    load,
    prompt,
    request,
    run,
)

DISK = MemorySpec(device=256 << 20, kv_disk=1 << 30)
SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 4, "top_p": 0.95, "logprobs": 1}
STEM = prompt(3 * PAGE + 30)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    return tmp_path


def start(family: str, draft: DraftSpec = PLAIN, **changes: Any) -> Engine:
    return load(checkpoint(family), draft, memory=DISK, **changes)


def stop(engine: Engine) -> None:
    """End an engine as `worker` does when it is unloaded."""
    check_idle(engine)
    engine.close()


def cached(answers: Any, name: str) -> int:
    stats = answers[(name, 0)].stats
    assert stats is not None
    return int(stats.cached_tokens)


def second_turns(first: Generate, ids: list[int]) -> list[Generate]:
    """Return prompts that go on after an answer, and at other places of the conversation."""
    text = [*first.prompt, *ids]
    return [
        request("next", [*text, 5, 6, 7], **SAMPLED),
        request("beside", [*text[: 2 * PAGE + 9], 5, 6], max_tokens=8),
        request("again", first.prompt, n=2, **SAMPLED),
    ]


@pytest.mark.parametrize(
    ("family", "draft"),
    [
        ("llama", SUBSPEC),
        ("qwen3_next", PLAIN),
        *(
            pytest.param(family, draft, marks=pytest.mark.long)
            for family, draft in [
                ("llama", DraftSpec("ngram", tuned=False)),
                ("qwen3_next", SUBSPEC),
                ("lfm2", PLAIN),
                ("falcon_h1", PLAIN),
                ("mistral_window", PLAIN),
                ("gemma2", SUBSPEC),
                ("gpt_oss", PLAIN),
                ("deepseek_v3", PLAIN),
                ("phi3_longrope", PLAIN),
            ]
        ),
    ],
)
def test_answers_after_a_restart_are_those_of_an_engine_without_cache(
    family: str, draft: DraftSpec
) -> None:
    before = start(family, draft)
    first = request("first", STEM, max_tokens=40)
    ids = run(before, [first])[("first", 0)].ids
    stop(before)
    turns = second_turns(first, ids)
    plain = load(checkpoint(family), PLAIN, prefix_cache=False)
    want = exact(alone(plain, turns))
    for asked in turns:
        engine = start(family, draft)
        got = run(engine, [asked])
        stop(engine)
        assert exact(got) == {key: own for key, own in want.items() if key[0] == asked.request_id}
        if family != "phi3_longrope" or asked.request_id != "beside":
            assert cached(got, asked.request_id) >= 2 * PAGE
        if asked.request_id == "next" and family != "phi3_longrope":
            assert cached(got, "next") == len(STEM) + len(ids) - 1, "all but the last token"


def test_other_requests_run_while_pages_are_read_and_change_nothing() -> None:
    before = start("llama")
    run(before, [request("first", STEM, max_tokens=2)])
    stop(before)
    asked = [
        request("read", [*STEM, 9], max_tokens=12, **SAMPLED),
        request("other", prompt(70, 8), max_tokens=12),
        request("twin", [*STEM, 8], max_tokens=12),
    ]
    want = exact(alone(load(checkpoint("llama"), PLAIN, prefix_cache=False), asked))
    engine = start("llama")
    hold_reads(engine)
    reported: list[tuple[str, int]] = []
    hooks(engine).on_prompt = lambda name, done: reported.append((name, done))
    for message in asked:
        engine.add(message)
    engine.step()
    assert {("read", 0), ("twin", 0)} <= set(reported), "their clients see that they began"
    waiting = [own.request_id for own in engine._scheduler.running if own.pages.reading]
    assert waiting == ["read", "twin"]
    check_books(engine)
    events = [event for _ in range(3) for event in engine.step()]
    assert {event.request_id for event in events} == {"other"}
    release_reads(engine)
    got = run(engine, [])
    assert {key: own for key, own in exact(got).items() if key[0] != "other"} == {
        key: own for key, own in want.items() if key[0] != "other"
    }
    assert cached(got, "read") == cached(got, "twin") == 3 * PAGE
    check_books(engine)
    stop(engine)


def hold_reads(engine: Engine) -> None:
    """Let nothing that was read reach the cache until `release_reads`."""
    cache: Any = engine._cache
    cache.take_read = lambda seconds: False
    cache.wait_for_disk = lambda seconds: None


def release_reads(engine: Engine) -> None:
    del engine._cache.take_read
    del engine._cache.wait_for_disk


def test_a_client_that_leaves_while_its_prompt_is_read_costs_nothing() -> None:
    before = start("llama")
    run(before, [request("first", STEM, max_tokens=2)])
    stop(before)
    engine = start("llama")
    hold_reads(engine)
    engine.add(request("left", [*STEM, 9]))
    assert engine.step() == []
    engine.abort("left")
    release_reads(engine)
    assert engine.step() == []
    assert not engine.has_work()
    stop(engine)


@pytest.mark.parametrize("kind", ["page", "state"])
def test_a_hybrid_whose_file_is_damaged_computes_what_is_missing(kind: str, root: Path) -> None:
    before = start("qwen3_next")
    first = request("first", STEM, max_tokens=40)
    ids = run(before, [first])[("first", 0)].ids
    stop(before)
    asked = second_turns(first, ids)[0]
    want = exact(run(load(checkpoint("qwen3_next"), PLAIN, prefix_cache=False), [asked]))
    newest = max(
        (path for name in folders(root) for path in (root / name).glob(f"*.{kind}")),
        key=lambda path: (int(path.name.split("-")[2]), path.name),
    )
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    engine = start("qwen3_next")
    newest.write_bytes(content)
    got = run(engine, [asked])
    assert exact(got) == want
    check_books(engine)
    stop(engine)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"numerics": "fast"}, {"prefix_cache": False}])
def test_an_engine_of_another_kind_finds_nothing(change: dict[str, Any]) -> None:
    before = start("llama")
    run(before, [request("first", STEM, max_tokens=2)])
    stop(before)
    engine = start("llama", **change)
    assert cached(run(engine, [request("again", [*STEM, 9], max_tokens=2)]), "again") == 0


@pytest.mark.slow
def test_other_weights_find_nothing() -> None:
    before = start("llama")
    run(before, [request("first", STEM, max_tokens=2)])
    stop(before)
    other = load(checkpoint("llama", torch.float32, 1), PLAIN, memory=DISK)
    assert cached(run(other, [request("again", [*STEM, 9], max_tokens=2)]), "again") == 0


KILLED = """
import os, sys
from engine.kv.disk import block_file
from tests.engine.disk_caches import disk_cache
from tests.engine.kv_tokens import run_and_close
from tests.engine.models import prompt

writes = 0
write = os.write

def stop_in_a_write(descriptor, memory):
    global writes
    if len(memory) > 1024:
        writes += 1
        if writes == 4:
            write(descriptor, memory[: len(memory) // 2])
            print("half", flush=True)
            sys.stdin.read()
    return write(descriptor, memory)

block_file.os.write = stop_in_a_write
cache = disk_cache(num_pages=16)
run_and_close(cache, prompt(8 * 64))
while cache.has_unsaved:
    cache.save_next()
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_writes_leaves_whole_files_only(root: Path) -> None:
    from tests.engine.disk_caches import disk_cache, open_read
    from tests.engine.kv_tokens import stored_tokens

    with subprocess.Popen(
        [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"half\n"
        os.kill(process.pid, signal.SIGKILL)
    text = prompt(8 * PAGE)
    cache = disk_cache(num_pages=16)
    table = open_read(cache, [*text, 1])
    assert table.length == 3 * PAGE
    assert stored_tokens(cache, table) == text[: 3 * PAGE]
    cache.release()


def test_pages_are_saved_while_nobody_waits_and_reported() -> None:
    engine = start("llama")
    run(engine, [request("first", STEM, max_tokens=2)])
    assert engine.saves.seconds_until_due() == 0.0
    number = 0
    while engine.saves.run():
        number += 1
    assert number == 4, "three pages and a partial one"
    save_all(engine._cache)
    report = engine.saves.take_report()
    assert report is not None and report.nbytes == report.written > 0
    assert engine.saves.take_report() is None
    assert engine.saves.seconds_until_due() is None
    stop(engine)
