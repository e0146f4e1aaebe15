"""Tests of the events made of a chat's chunks, checked by the types of the official clients."""

from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from server.doors.messages.events import MessageWriter
from server.doors.responses.events import Head, ResponseWriter
from server.doors.translation import Event, Writer
from server.errors import ApiError
from server.schemas.answers import ChatChunk
from server.schemas.checking import check_object
from server.schemas.response_bodies import ResponseRequest
from tests.server.chunks import THINK_SAY_CALL, call, chunk, logprob, stream

RESPONSE_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
MESSAGE_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
GONE = ApiError("the engine is gone", code="engine_died", status=503)
CUT = stream(chunk({"content": "He"}), finish="length")


def write(writer: Writer, chunks: list[ChatChunk]) -> list[Event]:
    return [event for piece in chunks for event in writer.write(piece)]


def responses(**fields: Any) -> ResponseWriter:
    request = check_object(ResponseRequest, {"input": "hi", **fields})
    return ResponseWriter(request, Head("1", 2, "main"))


def test_a_response_that_waits_begins_once_and_repeats_that_it_is_in_progress() -> None:
    writer = responses()
    events = [writer.keepalive("queued"), writer.keepalive("prompt 1 of 2")]
    events += write(writer, CUT)
    assert [event["type"].removeprefix("response.") for event in events[:3]] == [
        "created",
        "in_progress",
        "output_item.added",
    ]
    assert [event.get("status") for event in events[:3]] == ["queued", "prompt 1 of 2", None]
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    for event in events:
        RESPONSE_EVENT.validate_python(event)


def test_a_response_that_only_waited_fails_with_a_bare_error() -> None:
    writer = responses()
    writer.keepalive("queued")
    assert writer.failure(GONE)["type"] == "error"
    write(writer, CUT)
    assert writer.failure(GONE)["type"] == "response.failed"


def test_a_response_has_its_events_in_openais_order() -> None:
    writer = responses()
    events = write(writer, THINK_SAY_CALL)
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        assert RESPONSE_EVENT.validate_python(event).type == event["type"]
    assert events[-1]["response"] == writer.whole()


def test_events_of_a_response_join_to_its_items() -> None:
    writer = responses()
    events = write(writer, THINK_SAY_CALL)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == writer.whole()["output"]
    assert {item["id"] for item in done} == {e["item_id"] for e in events if "item_id" in e}
    reasoning, message, first, second = done
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert message["content"][0]["text"] == "Let me see."
    assert (first["call_id"], first["name"]) == ("call_1", "time")
    assert (first["arguments"], second["arguments"]) == ('{"zone": "UTC"}', "{}")
    assert {item["status"] for item in done} == {"completed"}


def test_a_response_has_its_settings_and_its_usage() -> None:
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
    writer = responses(
        tools=tools,
        instructions="be brief",
        store=True,
        metadata={"a": "b"},
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "null"}}},
        tool_choice={"type": "function", "name": "f"},
        truncation="auto",
        max_output_tokens=4,
    )
    write(writer, stream(chunk({"content": "Hi"})))
    answer = writer.whole()
    Response.model_validate(answer)
    assert answer["store"] is False
    assert answer["truncation"] == "disabled"
    assert answer["metadata"] == {"a": "b"}
    assert answer["text"]["format"]["schema"] == {"type": "null"}
    assert answer["tool_choice"] == {"type": "function", "name": "f"}
    assert answer["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 12,
    }


def test_a_response_cut_off_by_the_limit_is_incomplete() -> None:
    events = write(responses(), CUT)
    assert events[-1]["type"] == "response.incomplete"
    response = events[-1]["response"]
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"
    assert RESPONSE_EVENT.validate_python(events[-1]).response.status == "incomplete"


def test_a_response_without_text_has_no_items() -> None:
    assert write(responses(), stream())[-1]["response"]["output"] == []


def test_logprobs_come_with_the_delta_of_their_text() -> None:
    events = write(responses(), stream(chunk({"content": "Hi"}, logprobs=[logprob("Hi")])))
    of_text = [event for event in events if "output_text" in event["type"]]
    assert [event["logprobs"] for event in of_text] == [[logprob("Hi")]] * 2
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == [logprob("Hi")]


def test_a_response_that_fails_keeps_its_items() -> None:
    writer = responses()
    events = write(writer, CUT[:2])
    failure = writer.failure(GONE)
    assert failure["type"] == "response.failed"
    assert failure["sequence_number"] == len(events)
    response = failure["response"]
    assert response["error"] == {"code": "server_error", "message": "the engine is gone"}
    assert response["output"][0]["content"][0]["text"] == "He"
    assert RESPONSE_EVENT.validate_python(failure).response.status == "failed"


def test_a_response_that_fails_before_its_first_chunk_is_an_error() -> None:
    failure = responses().failure(GONE)
    assert (failure["type"], failure["sequence_number"]) == ("error", 0)
    assert failure["error"] == GONE.body()["error"]
    assert RESPONSE_EVENT.validate_python(failure).code == "engine_died"


def fold_messages(events: list[Event]) -> dict[str, Any]:
    """Return the message that Anthropic's clients join; calls have their JSON instead of input."""
    message = dict(events[0]["message"])
    blocks: list[Any] = []
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append(dict(event["content_block"]))
            case "content_block_delta":
                kind, *_ = event["delta"]
                field = next(name for name in event["delta"] if name != kind)
                block = blocks[event["index"]]
                block[field] = block.get(field, "") + event["delta"][field]
            case "message_delta":
                message |= event["delta"] | {"usage": event["usage"]}
    return message | {"content": blocks}


def test_a_message_has_its_events_in_anthropics_order() -> None:
    writer = MessageWriter("req_1")
    events = write(writer, THINK_SAY_CALL)
    block = "content_block_"
    assert [event["type"] for event in events] == [
        "message_start",
        "ping",
        *[f"{block}start", *[f"{block}delta"] * 3, f"{block}stop"],  # the third is the signature
        *[f"{block}start", *[f"{block}delta"] * 2, f"{block}stop"],
        *[f"{block}start", *[f"{block}delta"] * 2, f"{block}stop"],
        *[f"{block}start", f"{block}delta", f"{block}stop"],
        "message_delta",
        "message_stop",
    ]
    for event in events:
        if event["type"] != "ping":  # the client discards pings, and has no type for them
            assert MESSAGE_EVENT.validate_python(event).type == event["type"]
    folded = fold_messages(events)
    whole: Any = writer.whole()
    Message.model_validate(whole)
    for event_block in folded["content"]:
        if event_block["type"] == "tool_use":
            event_block["input"] = {"{}": {}}.get(event_block["partial_json"], {"zone": "UTC"})
            del event_block["partial_json"]
    assert folded == whole
    assert whole["stop_reason"] == "tool_use"
    assert [b["type"] for b in whole["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert whole["content"][2] == {
        "type": "tool_use",
        "id": "toolu_1",
        "name": "time",
        "input": {"zone": "UTC"},
    }
    assert whole["usage"] == {
        "input_tokens": 4,
        "output_tokens": 5,
        "cache_read_input_tokens": 3,
        "cache_creation_input_tokens": 0,
    }


@pytest.mark.parametrize(
    ("finish", "reason", "expected"),
    [
        ("stop", None, ("end_turn", None)),
        ("stop", "zz", ("stop_sequence", "zz")),
        ("stop", 7, ("end_turn", None)),  # a stop token instead of a stop string
        ("length", None, ("max_tokens", None)),
        ("tool_calls", None, ("tool_use", None)),
    ],
)
def test_a_message_has_its_stop_reason(
    finish: str, reason: str | int | None, expected: tuple[str, str | None]
) -> None:
    writer = MessageWriter("req_1")
    events = write(writer, stream(finish=finish, **({"stop_reason": reason} if reason else {})))
    whole = writer.whole()
    assert (whole["stop_reason"], whole["stop_sequence"]) == expected
    assert events[0]["message"]["stop_reason"] is None


@pytest.mark.parametrize(
    ("arguments", "given"),
    [("", {}), ('{"a": [1, 2', {"a": [1, 2]}), ("[1]", {}), ('{"a": 1}', {"a": 1})],
)
def test_the_input_of_a_call_is_an_object_even_if_it_was_cut_off(
    arguments: str, given: dict[str, Any]
) -> None:
    writer = MessageWriter("req_1")
    write(writer, stream(chunk(call(arguments, id="call_1", name="f")), finish="length"))
    (block,) = writer.whole()["content"]
    assert block["type"] == "tool_use"
    assert block["input"] == given


def test_a_message_that_fails_has_an_error_in_anthropics_shape() -> None:
    assert MessageWriter("req_1").failure(GONE) == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "the engine is gone"},
        "request_id": "req_1",
    }
