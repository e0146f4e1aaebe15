"""Tests of what servers say of themselves: pages by difference, keys, settings, and the views."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from cluster.held_pages import MOST_CHANGES, HeldPages, PageBooks
from cluster.page_hashes import page_hashes
from cluster.report import naming_key, page_name
from cluster.wire import reports
from server.cli.control import _peer_row
from server.cli.top import view
from server.config.files import ConfigError
from server.config.peers import peer_addresses
from server.config.settings import load_settings
from tests.cluster.fleet import far, head
from tests.server.fake_engine import FakeEngines

PROMPT = "x" * 300
BODY = {"prompt": PROMPT, "seed": 1, "max_tokens": 4}


def names(count: int, first: int = 0) -> list[bytes]:
    return [number.to_bytes(8, "big") for number in range(first, first + count)]


def test_the_pages_that_were_used_last_are_kept() -> None:
    held = HeldPages(most=4)
    held.add(names(3))
    held.add(names(2, first=10))
    known: set[bytes] = set()
    held.change_since(-1).apply(known)
    assert known == {*names(2), *names(2, first=10)}  # the end of a text goes first


def test_changes_are_told_once_and_all_pages_when_too_many_were_missed() -> None:
    held, known = HeldPages(most=MOST_CHANGES * 2), set[bytes]()
    held.add(names(3))
    first = held.change_since(0)
    assert not first.is_whole and len(first.added) == 3
    assert not held.change_since(held.number).added
    held.add(names(MOST_CHANGES + 1, first=3))
    late = held.change_since(1)
    late.apply(known)
    assert late.is_whole and len(known) == len(held)
    assert held.change_since(held.number + 1).is_whole  # of another instance


def test_a_lost_engine_holds_nothing() -> None:
    books = PageBooks()
    books.of("a", 10).add(names(2))
    before = books.instance
    books.clear()
    assert not len(books.of("a", 10)) and books.instance != before


async def test_only_the_key_that_sent_a_text_learns_of_its_pages() -> None:
    async with far(FakeEngines(), keys=["one", "two"]) as peer, head(peer.url, key="one") as ours:
        await ours.until("ready")
        assert (await ours.client.post("/v1/completions", json=BODY)).status_code == 200
        seen: dict[str, Any] = {}
        for key in ("one", "two", ""):
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            async with httpx.AsyncClient(base_url=peer.url, headers=headers) as client:
                seen[key] = await client.get("/v1/peer")
        assert seen[""].status_code == 401
        found = {key: reports.validate_json(seen[key].content) for key in ("one", "two")}
        (request,) = peer.engines.engine.requests
        pages = page_hashes(request.prompt)
        named = {page_name(page, naming_key("one")).hex() for page in pages}
        assert len(named) == 4 and named <= set(found["one"].added)
        assert found["two"].added == []


async def test_a_text_goes_where_its_pages_are() -> None:
    async with (
        far(FakeEngines(), pass_ms=1000.0) as one,
        far(FakeEngines(), pass_ms=1000.0) as two,
        head(one.url, two.url, pass_ms=60_000.0) as ours,
    ):
        await ours.until("ready")
        await ours.peers.wait_for_report(1.0)
        for number in range(4):
            for _ in range(3):
                body = BODY | {"prompt": f"{number}{PROMPT}"}
                await ours.client.post("/v1/completions", json=body)
        for peer in (one, two):
            assert len(peer.engines.engine.requests) % 3 == 0


def settings_of(tmp_path: Path, text: str) -> Any:
    (tmp_path / "understudy.yaml").write_text(text)
    return load_settings([tmp_path], {"UNDERSTUDY_PEERS": "http://elsewhere"}, {})


def test_peers_come_from_the_file_only(tmp_path: Path) -> None:
    (tmp_path / "a.key").write_text("# of the tower\nsecret\n")
    found = settings_of(
        tmp_path,
        "peers:\n- http://one:8000/\n- {url: https://two, key_file: a.key}\n",
    )
    one, two = peer_addresses(found.peers)
    assert (one.url, one.key) == ("http://one:8000", "")
    assert (two.url, two.key) == ("https://two", "secret")
    assert settings_of(tmp_path, "").peers == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("peers: [ftp://a]", "peers.0"),
        ("peers: [http://a/path]", "peers.0"),
        ("peers: ['http://user:password@a']", "peers.0"),
        ("peers: http://a", "peers"),
        ("peers: ['http://a:123456']", "peers.0"),
        ("peers: ['http://[::1']", "peers.0"),
        ("peers: [{url: 'http://a', token: x}]", "unknown key"),
        ("peers: ['http://a', 'http://a/']", "twice"),
        ("peers: [{url: 'http://a', key_file: none.key}]", "none.key"),
        ("peers: [{url: 'http://a', key_file: empty.key}]", "no key"),
        ("peers: [{url: 'https://a', ca_file: none.pem}]", "none.pem"),
    ],
)
def test_a_wrong_peer_is_an_error_that_names_it(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "empty.key").write_text("# nothing\n")
    with pytest.raises(ConfigError, match=reason):
        peer_addresses(settings_of(tmp_path, text).peers)


async def test_the_views_show_the_peers() -> None:
    async with far(FakeEngines()) as peer, head(peer.url) as ours:
        await ours.until("ready")
        await ours.client.post("/v1/completions", json=BODY)
        status = (await ours.client.get("/v1/status")).json()
        screen = Console(width=150, record=True)
        screen.print(view(status, "http://here", 150))
        shown = screen.export_text()
        assert peer.url in shown and "ready" in shown
        row = _peer_row(status["peers"][0])
        assert row[0] == "main" and row[-1] == peer.url
        metrics = (await ours.client.get("/metrics")).text
        assert f'understudy_peer_requests_sent{{peer="{peer.url}"}} 1.0' in metrics
        sums = {name: value for name, value in status["together"].items() if name != "tokens"}
        assert sums["servers"] == 2 and sums["kv_pages"] == 2 * status["peers"][0]["kv_pages"] > 0
        assert 'understudy_together{of="servers"} 2.0' in metrics
        assert "Together: 2 servers" in shown
        async with httpx.AsyncClient(base_url=peer.url) as client:
            theirs = (await client.get("/metrics")).text
        counted = (
            'understudy_requests_total{model="main",outcome="length",route="/peer/generate"} 1.0'
        )
        assert counted in theirs
        assert "understudy_completion_tokens_total{" not in theirs  # they count where they are sent
        assert 'understudy_completion_tokens_total{model="main"} 4.0' in metrics
