"""Leaks, and which answers of witnesses are failures."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.kv.disk.block import BlockName
from tests.chaos.accounts import (
    MB,
    SLACK_BYTES,
    SLACK_ITEMS,
    Account,
    find_kv_excess,
    find_leaks,
    find_steady_leaks,
    growths,
    steady_growth,
    take_account,
)
from tests.chaos.witnesses import AFTER_S, Attempt, Verdict, Window, fault_of

THREADS = "engine's threads"


def _account(requests: int, memory: float, threads: float, engine: int = 1) -> Account:
    return Account(
        requests,
        {"engine": memory, THREADS: threads},
        {"engine": engine, THREADS: engine},
    )


def test_growth_up_to_the_bound_is_no_leak() -> None:
    grown = SLACK_BYTES + 5 * MB
    accounts = [_account(0, 100 * MB, 10), _account(5000, 100 * MB + grown, 10 + SLACK_ITEMS + 5)]
    assert find_leaks(accounts) == []


def test_growth_above_the_bound_is_a_leak_with_its_figures() -> None:
    grown = SLACK_BYTES + 6 * MB
    accounts = [
        _account(0, 100 * MB, 10),
        _account(900, 500 * MB, 10),
        _account(5000, 100 * MB + grown, 16 + SLACK_ITEMS),
    ]
    memory, threads = find_leaks(accounts)
    assert (memory.what, memory.growth, memory.requests) == ("engine", grown, 5000)
    assert str(memory) == ("engine grew by 26.0 MB in 5000 requests, at most 25.0 are allowed")
    assert (threads.what, threads.growth) == (THREADS, 6 + SLACK_ITEMS)
    assert growths(accounts) == [("engine", 5000, grown), (THREADS, 5000, 6 + SLACK_ITEMS)]


def _plain(memory: Sequence[float], engine: int = 1) -> list[Account]:
    """Return one account for each number of MB in `memory`, 50 requests after the one before it."""
    pairs = enumerate(memory)
    return [
        Account(50 * number, {"engine": MB * mb}, {"engine": engine if number else 0})
        for number, mb in pairs
    ]


def test_memory_that_grows_steadily_is_a_leak() -> None:
    for slope in (0.9, 1.1):  # MB for 1,000 requests
        found = find_steady_leaks(_plain([100 + slope * number / 20 for number in range(20)]))
        assert [leak.what for leak in found] == (["engine"] if slope > 1 else [])
    assert "engine grew by 1.1 MB in 1000 requests, at most 1.0 are allowed" in str(found[0])
    # Allocators take memory in blocks: each second account has one more of them.
    assert find_steady_leaks(_plain([100 + number // 2 * 0.12 for number in range(24)]))


def test_a_warm_up_and_single_blocks_are_no_steady_growth() -> None:
    warm = [100, 110, 117, 120, 121, 121.5, *[122] * 4]
    assert find_steady_leaks(_plain([*warm, *[122] * 8, 126, 126])) == []
    assert find_steady_leaks(_plain([*warm, 126, *[126] * 9])) == []
    assert steady_growth(_plain([100, 110, 120]), "engine") is None
    others = _plain([100.0 + number for number in range(9)])
    assert steady_growth([*others, *_plain([500, 501, 502], engine=2)], "engine") is None


def test_another_process_is_no_growth() -> None:
    accounts = [_account(0, 0.0, 0, 1), _account(10, 900 * MB, 90, 2), _account(20, 0.0, 0, 1)]
    assert find_leaks(accounts) == []


def test_the_account_of_this_process_has_its_descriptors() -> None:
    before = take_account(os.getpid(), 0, {}).amounts["front end's descriptors"]
    reader, writer = os.pipe()
    after = take_account(os.getpid(), 0, {}).amounts["front end's descriptors"]
    os.close(reader)
    os.close(writer)
    assert after == before + 2


def test_blocks_of_kv_are_measured_by_their_bytes_and_not_counted(tmp_path: Path) -> None:
    block = BlockName("page", b"p" * 16, b"h" * 16, 0, 64)
    (tmp_path / "kv").mkdir()
    (tmp_path / "kv" / str(block)).write_bytes(b"x" * MB)
    (tmp_path / "kv" / "index.json").touch()
    account = take_account(os.getpid(), 0, {"cache": tmp_path})
    assert account.amounts["files in cache"] == 1
    assert find_kv_excess(tmp_path, MB) == []
    assert find_kv_excess(tmp_path, MB - 1) == ["KV on disk has 1.0 MB, at most 1.0 are allowed"]


KILL, STOP, DISK = "engine: SIGKILL", "engine: stopped", "disk: reads fail"


@pytest.mark.parametrize(
    ("verdict", "code", "windows", "fails"),
    [
        ("same", "", [], False),
        ("altered", "", [Window(0, DISK, 0.0, None)], True),
        ("silent", "", [Window(0, DISK, 0.0, None)], True),
        ("unclear", "", [Window(0, DISK, 0.0, None)], True),
        ("refused", "weights_unreadable", [Window(0, DISK, 5.0, None)], False),
        ("refused", "weights_unreadable", [Window(0, DISK, 0.0, 101.0 - AFTER_S)], False),
        ("refused", "weights_unreadable", [Window(0, DISK, 0.0, 99.0 - AFTER_S)], True),
        ("refused", "weights_unreadable", [Window(0, DISK, 120.0, None)], True),
        ("refused", "weights_unreadable", [], True),
        ("refused", "engine_died", [Window(0, STOP, 0.0, None)], True),
        ("refused", "engine_died", [Window(0, KILL, 100.0, 100.1)], False),
        ("refused", "weights_unreadable", [Window(0, KILL, 100.0, 100.1)], True),
        ("refused", "request_failed", [Window(0, KILL, 100.0, 100.1)], False),
        ("cut", "", [Window(0, KILL, 100.0, 100.1)], True),
        ("cut", "", [Window(0, "front end: SIGKILL", 100.0, 110.0, True)], False),
        ("cut", "", [Window(0, "front end: stopped", 100.0, 110.0)], True),
        ("cut", "", [Window(0, "front end: no descriptors", 100.0, 110.0)], False),
        ("refused", "engine_closed", [Window(0, "front end: SIGKILL", 100.0, 110.0, True)], False),
    ],
)
def test_an_error_is_a_failure_unless_a_step_explains_it(
    verdict: Verdict, code: str, windows: list[Window], fails: bool
) -> None:
    attempt = Attempt("greedy, chat, whole", "demo", 100.0, 110.0, verdict, code, "why")
    fault = fault_of(attempt, windows)
    assert bool(fault) == fails
