"""Tests of equal weights: two downloads of one model are equal once their bytes have been read."""

import asyncio
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.served_model import ServedModel
from engine.errors import EngineDied, ModelError
from engine.messages import ModelInfo
from engine.weights.contents import MEMORY, ContentsReader
from engine.weights.identity import identity_of, portable_text
from server.models.contents import Contents
from tests.cluster.fleet import far, head
from tests.cluster.test_peers import CHAT, LONG, answers, streamed, text_of
from tests.server.fake_engine import FakeEngines, Script

ONE = ServedModel("m", "files1", "us-1", ())
READ = replace(ONE, contents="same", arithmetic="cpu", read_share=1.0)
OTHER = replace(READ, files="files2", fingerprint="us-2")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_model(folder: Path, weights: bytes | bytearray = b"w" * 5000) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model-1.safetensors").write_bytes(weights)
    (folder / "model-2.safetensors").write_bytes(weights[::-1])
    return folder


def read(folder: Path) -> str:
    reader = ContentsReader(folder, identity_of(folder))
    found = [piece for piece in reader.pieces() if piece is not None]
    assert reader.num_read == reader.num_bytes and len(found) == 1
    return found[0]


def test_a_copy_with_other_times_has_the_same_contents(tmp_path: Path) -> None:
    one, two = write_model(tmp_path / "one"), write_model(tmp_path / "two")
    os.utime(two / "model-1.safetensors", (1, 1))
    assert identity_of(one) != identity_of(two)
    assert read(one) == read(two) and portable_text(one) == portable_text(two)


@pytest.mark.parametrize("place", [0, 2500, 4999])
def test_any_other_byte_is_another_content(tmp_path: Path, place: int) -> None:
    weights = bytearray(b"w" * 5000)
    weights[place] ^= 1
    assert read(write_model(tmp_path / "one")) != read(write_model(tmp_path / "two", weights))


def test_bytes_that_move_to_the_next_file_are_another_content(tmp_path: Path) -> None:
    one, two = write_model(tmp_path / "one"), write_model(tmp_path / "two")
    first, second = two / "model-1.safetensors", two / "model-2.safetensors"
    first.write_bytes(first.read_bytes() + second.read_bytes()[:1])
    second.write_bytes(second.read_bytes()[1:])
    assert read(one) != read(two)


def test_what_was_read_is_remembered_until_a_file_changes(tmp_path: Path, cache: Path) -> None:
    folder = write_model(tmp_path / "one")
    found = read(folder)
    assert ContentsReader(folder, identity_of(folder)).recall() == found
    file = folder / "model-1.safetensors"
    times = file.stat()
    file.write_bytes(b"v" * 5000)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as rsync would
    assert ContentsReader(folder, identity_of(folder)).recall() is None
    (cache / MEMORY).write_text("[[[")
    assert ContentsReader(folder, identity_of(folder)).recall() is None
    assert read(folder) != found


def test_files_that_changed_since_the_load_have_no_contents(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "one")
    revision = identity_of(folder)
    reader = ContentsReader(folder, revision)
    pieces = reader.pieces()
    next(pieces)
    os.utime(folder / "model-2.safetensors", (1, 1))
    with pytest.raises(ModelError, match="changed"):
        list(pieces)
    with pytest.raises(ModelError, match="changed"):
        ContentsReader(folder, revision)


@pytest.mark.parametrize("spoil", [shutil.rmtree, lambda folder: (folder / MEMORY).mkdir()])
def test_a_cache_that_cannot_be_written_to_is_no_error(
    tmp_path: Path, cache: Path, spoil: Callable[[Path], None]
) -> None:
    cache.mkdir()
    spoil(cache)
    assert read(write_model(tmp_path / "one"))


def info_of(folder: Path) -> ModelInfo:
    return ModelInfo(
        "m", 1, 1, 1, 1, (), "strict", "us-1", str(folder), "", revision=identity_of(folder)
    )


async def until_known(contents: Contents) -> str:
    async with asyncio.timeout(10):
        while not contents.name("form"):
            await asyncio.sleep(0.01)
    return contents.name("form")


async def test_the_server_reads_the_files_in_idle_time(tmp_path: Path) -> None:
    names = []
    for name in ("one", "two"):
        contents = Contents()
        info = info_of(write_model(tmp_path / name))
        contents.begin(info, lambda: True, lambda: False)
        names.append(await until_known(contents))
        assert contents.share == 1.0 and contents.name("") == ""
        assert contents.name("another form") != names[-1]
    assert names[0] == names[1]


async def test_a_model_that_is_unloaded_is_read_no_further(tmp_path: Path) -> None:
    contents = Contents()
    asked = asyncio.Event()

    def is_over() -> bool:
        asked.set()
        return True

    contents.begin(info_of(write_model(tmp_path / "one")), lambda: True, is_over)
    await asyncio.wait_for(asked.wait(), 10)
    await asyncio.sleep(0.05)
    assert contents.name("form") == ""


def test_servers_are_equal_if_they_share_a_name() -> None:
    assert ONE.has_weights_of(ONE) and not ONE.has_weights_of(OTHER)
    assert READ.has_weights_of(OTHER) and READ.computes_as(OTHER.names)
    assert READ.has_weights_of(ONE) and ONE.computes_as(READ.names)
    other_card = replace(OTHER, arithmetic="gpu")
    assert READ.has_weights_of(other_card) and not READ.computes_as(other_card.names)
    assert not READ.has_weights_of(replace(OTHER, contents="others"))
    assert not READ.has_weights_of(replace(READ, contents="damaged"))
    unread = replace(OTHER, contents="")
    assert not unread.has_weights_of(replace(ONE, contents=""))


def script_of(folder: Path, name: str, arithmetic: str = "cpu") -> Script:
    return replace(
        answers(),
        files=f"files of {name}",
        fingerprint=f"us-{name}",
        tokenizer_path=str(folder),
        revision=identity_of(folder),
        form="form",
        arithmetic=arithmetic,
    )


async def test_a_stream_goes_on_at_another_download_of_the_model(tmp_path: Path) -> None:
    """The peer's files have other times, so that both servers read all of their bytes first."""
    ours = script_of(write_model(tmp_path / "one"), "one")
    theirs = script_of(write_model(tmp_path / "two"), "two")
    broken = replace(theirs, error=EngineDied("died"), error_after=4)
    async with far(FakeEngines(broken)) as peer, head(peer.url, engines=FakeEngines(ours)) as own:
        assert (await own.until("ready"))["note"] == ""
        chunks = await streamed(own, CHAT)
        assert text_of(chunks) == {0: f"0: {LONG}"}
        assert {chunk["system_fingerprint"] for chunk in chunks} == {"us-one"}
        assert len(peer.engines.engine.requests) == len(own.engines.engine.requests) == 1


async def test_a_download_with_another_byte_gets_nothing(tmp_path: Path) -> None:
    ours = script_of(write_model(tmp_path / "one"), "one")
    theirs = script_of(write_model(tmp_path / "two", b"w" * 4999 + b"v"), "two")
    async with far(FakeEngines(theirs)) as peer, head(peer.url, engines=FakeEngines(ours)) as own:
        note = (await own.until("away", "other weights"))["note"]
        async with asyncio.timeout(10):
            while "idle time" in note:  # until both have read their bytes
                note = (await own.until("away", "other weights"))["note"]
                await own.peers.wait_for_report(0.02)
        assert (await own.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert not peer.engines.engine.requests


async def test_an_equal_download_on_another_card_gets_new_requests_only(tmp_path: Path) -> None:
    ours = script_of(write_model(tmp_path / "one"), "one")
    theirs = script_of(write_model(tmp_path / "two"), "two", arithmetic="gpu")
    async with far(FakeEngines(theirs)) as peer, head(peer.url, engines=FakeEngines(ours)) as own:
        await own.until("ready", "new requests only")
        answer = await own.client.post("/v1/chat/completions", json=CHAT)
        assert answer.json()["system_fingerprint"] == "us-two"
