"""Extensions of the API: the provenance of tokens, and the use of predictions."""

from typing import Any

import httpx
import pytest

from tests.server.conftest import chat, complete, events
from tests.server.fake_engine import EOS, FakeEngines, ids_of


def provenance_of(choice: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(e["token"], e["source"], e["depth"], e["pass"]) for e in choice["provenance"]]


async def test_provenance_has_source_depth_and_pass_of_each_token(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.answers = lambda k: (*ids_of("abcd"), EOS)
    want = [
        ("a", "subspec", 1, 1),
        ("b", "subspec", 2, 1),
        ("c", "target", 0, 1),
        ("d", "subspec", 1, 2),
        ("", "target", 0, 2),
    ]
    for answer in (await chat(client, provenance=True), await complete(client, provenance=True)):
        assert provenance_of(answer.json()["choices"][0]) == want


@pytest.mark.parametrize("ask", [chat, complete])
@pytest.mark.parametrize("stop", [None, "there", "lo"])
@pytest.mark.parametrize("burst", [1, 2, 5, 60])
async def test_streamed_provenance_comes_with_its_text_and_adds_up(
    client: httpx.AsyncClient, engines: FakeEngines, ask: Any, stop: str | None, burst: int
) -> None:
    engines.script.answers = lambda k: (*ids_of("Hé🙂llo there."), EOS)
    engines.script.burst = burst
    fields: dict[str, Any] = {"provenance": True, "stop": stop, "n": 2}
    whole = (await ask(client, **fields)).json()
    *chunks, _ = events((await ask(client, stream=True, **fields)).text)
    for choice in whole["choices"]:
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        assert "".join(entry["token"] for entry in choice["provenance"]) == text
        assert len(choice["provenance"]) * 2 == whole["usage"]["completion_tokens"]
        entries: list[Any] = []
        shown = ""
        for chunk in chunks:
            part = chunk["choices"][0]
            if part["index"] == choice["index"]:
                shown += part.get("text", "") + part.get("delta", {}).get("content", "")
                entries += part["provenance"]
                joined = "".join(entry["token"] for entry in entries)
                assert shown.startswith(joined) and len(shown) - len(joined) <= 1
        assert entries == choice["provenance"]


async def test_the_tokens_of_an_incomplete_character_show_nothing(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.answers = lambda k: ids_of("a🙂")
    choice = (await complete(client, provenance=True, max_tokens=3)).json()["choices"][0]
    assert choice["text"] == "a"
    assert [entry["token"] for entry in choice["provenance"]] == ["a", "", ""]


@pytest.mark.parametrize("ask", [chat, complete])
async def test_provenance_is_absent_unless_requested(client: httpx.AsyncClient, ask: Any) -> None:
    assert "provenance" not in (await ask(client)).json()["choices"][0]
    *chunks, _ = events((await ask(client, stream=True, provenance=False)).text)
    assert not any("provenance" in chunk["choices"][0] for chunk in chunks)


async def test_timings_have_tokens_per_pass(client: httpx.AsyncClient) -> None:
    timings = (await chat(client)).json()["timings"]
    assert timings["tokens_per_pass"] == timings["predicted_n"] / timings["passes"] == 13 / 5


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("as it was", "as it was"),
        ([{"type": "text", "text": "as it "}, {"type": "text", "text": "was"}], "as it was"),
        ("", ""),
        ("x" * 5000, "x" * 1024),  # no answer is longer than the context
    ],
)
async def test_api_18_a_prediction_is_drafted_and_counted(
    client: httpx.AsyncClient, engines: FakeEngines, content: Any, text: str
) -> None:
    prediction = {"type": "content", "content": content}
    usage = (await chat(client, prediction=prediction, n=2)).json()["usage"]
    assert engines.engine.requests[0].prediction == ids_of(text)
    details = usage["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] == 2 * len(ids_of(text))
    assert details["rejected_prediction_tokens"] == 4 * len(ids_of(text))


async def test_api_18_a_prediction_may_be_null_or_absent(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    assert (await chat(client)).status_code == 200
    assert (await chat(client, prediction=None)).status_code == 200
    assert [r.prediction for r in engines.engine.requests] == [(), ()]


def expected_passes(bursts: list[str]) -> list[dict[str, Any]]:
    """Return the passes that the fake engine reports for these emitted texts."""
    found = []
    for number, burst in enumerate(bursts, 1):
        drafted = [*burst[:-1], "?"]
        nodes = [
            {
                "parent": node - 1,
                "id": ord(token),
                "token": token,
                "source": "subspec",
                "score": -0.5 * (node + 1),
                "accepted": node < len(drafted) - 1,
            }
            for node, token in enumerate(drafted)
        ]
        figures = {"pass_ms": 20.0, "draft_ms": 1.25, "copy_stall_ms": 12.5, "link_bytes": 1000}
        counts = {"tokens": len(burst), "own_rows": len(drafted) + 1, "rows": 9, "sequences": 2}
        left_out = {"nodes_left_out": 0, "passes_left_out": 0}
        found.append({"pass": number, **counts, **figures, "nodes": nodes, **left_out})
    return found


@pytest.mark.parametrize("ask", [chat, complete])
@pytest.mark.parametrize("n", [1, 2])
async def test_the_provenance_tree_has_the_passes_of_each_choice(
    client: httpx.AsyncClient, engines: FakeEngines, ask: Any, n: int
) -> None:
    engines.script.answers = lambda k: ids_of("Hello there."[k:])
    fields: dict[str, Any] = {"provenance": "tree", "n": n, "max_tokens": 9}
    whole = (await ask(client, **fields)).json()
    *chunks, _ = events((await ask(client, stream=True, **fields)).text)
    for choice in whole["choices"]:
        k = choice["index"]
        assert choice["passes"] == expected_passes(
            ["Hello there."[k:][start : start + 3] for start in (0, 3, 6)]
        )
        assert len(choice["provenance"]) == 9
        parts = [own for chunk in chunks for own in chunk["choices"] if own["index"] == k]
        assert [own for part in parts for own in part["passes"]] == choice["passes"]


@pytest.mark.parametrize("ask", [chat, complete])
async def test_a_pass_whose_text_is_held_back_is_reported_at_once(
    client: httpx.AsyncClient, engines: FakeEngines, ask: Any
) -> None:
    engines.script.answers = lambda _: ids_of("ab<stop>cd")
    fields: dict[str, Any] = {"provenance": "tree", "stop": ["<stopped>"], "max_tokens": 9}
    *chunks, _ = events((await ask(client, stream=True, **fields)).text)
    texts = {}
    for chunk in chunks:
        part = chunk["choices"][0]
        for own in part["passes"]:
            texts[own["pass"]] = part.get("text", part.get("delta", {}).get("content", ""))
    assert texts[1] == "ab" and texts[2] in ("", None) and len(texts) == 3


@pytest.mark.parametrize("provenance", [True, False, None])
async def test_passes_are_absent_unless_requested(
    client: httpx.AsyncClient, engines: FakeEngines, provenance: bool | None
) -> None:
    assert "passes" not in (await chat(client, provenance=provenance)).json()["choices"][0]
    assert engines.engine.requests[0].traced_nodes == 0


@pytest.mark.parametrize(
    ("ask", "fields", "most"),
    [
        (chat, {}, 16_384),
        (complete, {}, 16_384),
        (complete, {"prompt": ["a", "b"]}, 8_192),
        (complete, {"best_of": 2}, 16_384),
        (complete, {"stream": True}, 1 << 62),
        (chat, {"stream": True}, 1 << 62),
    ],
)
async def test_an_answer_that_is_held_has_a_limited_number_of_nodes(
    client: httpx.AsyncClient, engines: FakeEngines, ask: Any, fields: dict[str, Any], most: int
) -> None:
    await ask(client, provenance="tree", **fields)
    assert {own.traced_nodes for own in engines.engine.requests} == {most}
