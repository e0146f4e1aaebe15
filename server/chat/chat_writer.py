"""The answer to a chat, written as chunks and folded from chunks to the whole. Pure."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from engine.parsing.parser import Parser
from engine.pass_trace import PassTrace
from server.chat.answer import Answer
from server.chat.generation import Output
from server.chat.logprobs import PlacedToken, chat_logprobs, token_origins
from server.chat.passes import answer_passes
from server.chat.reply import Reply
from server.schemas.answers import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    Costs,
    Delta,
    Message,
)


class ChatWriter:
    """A converter of the engine's outputs to the chunks of one chat.

    Args:
        answer: the properties that all chunks share.
        new_parser: makes the parser of one choice.
        custom_names: the names of the tools whose calls have a text instead of arguments.
        is_call: whether the answer must be a call.
        has_old_calls: whether a call is a `function_call`, the form that `tool_calls` replaced.
    """

    def __init__(
        self,
        answer: Answer,
        new_parser: Callable[[], Parser],
        *,
        custom_names: Collection[str] = (),
        is_call: bool = False,
        has_old_calls: bool = False,
    ) -> None:
        self._answer = answer
        self._new_parser = new_parser
        self._custom_names = custom_names
        self._is_call = is_call
        self._has_old_calls = has_old_calls
        self._replies: dict[int, Reply] = {}

    def write(self, output: Output) -> Iterator[ChatChunk]:
        """Yield the chunks of one output; the last chunks of the answer have its costs."""
        answer, index, tokens = self._answer, output.index, output.tokens
        answer.totals.add(tokens)
        if index is None:
            return
        if index not in self._replies:
            is_first = not self._replies
            self._replies[index] = Reply(
                self._new_parser(),
                answer.spelling,
                custom_names=self._custom_names,
                logprobs=answer.logprobs,
                provenance=answer.provenance,
            )
            content = None if self._is_call else ""
            first = self._choice_chunk(index, {"role": "assistant", "content": content})
            if is_first and answer.token_ids:
                first["prompt_token_ids"] = list(answer.prompts[0])
            yield first
        reply = self._replies[index]
        deltas = [*reply.read(tokens)]
        ids: Sequence[int] = tokens.ids
        if tokens.is_replayed:
            deltas, ids = [], ()  # the client has them
        has_later = tokens.finish is not None
        has_own_chunk = bool((ids and answer.token_ids) or tokens.traces)
        if not (deltas or has_later) and has_own_chunk:  # all their text is held back
            deltas = [({}, [])]
        # The ids go into the last chunk that the output gives: who has them has all their text.
        for number, (delta, placed) in enumerate(deltas, 1):
            if has_later or number < len(deltas):
                yield self._choice_chunk(index, delta, placed)
            else:
                yield self._choice_chunk(index, delta, placed, ids=ids, traces=tokens.traces)
        if tokens.finish is None:
            return
        answer.totals.add_reasoning(reply.num_reasoning_tokens)
        finish = reply.finish(tokens.finish)
        if self._has_old_calls and finish == "tool_calls":
            finish = "function_call"
        last = self._choice_chunk(index, {}, ids=ids, traces=tokens.traces, finish=finish)
        if tokens.stop_reason is not None:
            last["choices"][0]["stop_reason"] = tokens.stop_reason
        yield last
        costs = answer.final_costs()
        if costs is not None:
            yield self._new_chunk([], costs)

    def _choice_chunk(
        self,
        index: int,
        delta: Delta,
        placed: Sequence[PlacedToken] = (),
        *,
        ids: Sequence[int] = (),
        traces: Sequence[PassTrace] = (),
        finish: str | None = None,
    ) -> ChatChunk:
        entries = chat_logprobs(placed, self._answer.spelling)
        if self._has_old_calls and "tool_calls" in delta:
            delta = {"function_call": delta["tool_calls"][0]["function"]}
        choice: ChatChunkChoice = {
            "index": index,
            "delta": delta,
            "logprobs": {"content": entries, "refusal": None} if entries else None,
            "finish_reason": finish,
        }
        if self._answer.provenance:
            choice["provenance"] = token_origins(placed)
        if self._answer.has_passes:
            choice["passes"] = answer_passes(traces, self._answer.spelling)
        if self._answer.token_ids:
            choice["token_ids"] = list(ids)
        return self._new_chunk([choice], self._answer.costs(is_last=finish is not None))

    def _new_chunk(self, choices: list[ChatChunkChoice], costs: Costs) -> ChatChunk:
        chunk: ChatChunk = {
            "id": self._answer.id,
            "object": "chat.completion.chunk",
            "created": self._answer.source["created"],
            "model": self._answer.source["model"],
            "system_fingerprint": self._answer.source["system_fingerprint"],
            "choices": choices,
        }
        if "usage" in costs:
            chunk["usage"] = costs["usage"]
        if "timings" in costs:
            chunk["timings"] = costs["timings"]
        return chunk


def fold_chat(chunks: Iterable[ChatChunk], *, logprobs: bool) -> ChatCompletion:
    """Return the whole answer, as a client would join it from the chunks of a stream with usage."""
    choices: dict[int, ChatChoice] = {}
    last: ChatChunk | None = None
    prompt_ids: list[int] | None = None
    for last in chunks:
        prompt_ids = last.get("prompt_token_ids", prompt_ids)
        for piece in last["choices"]:
            choice = choices.setdefault(piece["index"], _empty_choice(piece["index"], logprobs))
            _extend_message(choice["message"], piece["delta"])
            choice["finish_reason"] = piece["finish_reason"]
            if "stop_reason" in piece:
                choice["stop_reason"] = piece["stop_reason"]
            if choice["logprobs"] is not None and piece["logprobs"] is not None:
                choice["logprobs"]["content"] += piece["logprobs"]["content"]
            if "provenance" in piece:
                choice.setdefault("provenance", []).extend(piece["provenance"])
            if "passes" in piece:
                choice.setdefault("passes", []).extend(piece["passes"])
            if "token_ids" in piece:
                choice.setdefault("token_ids", []).extend(piece["token_ids"])
    assert last is not None, "a stream has at least one chunk"
    whole: ChatCompletion = {
        "id": last["id"],
        "object": "chat.completion",
        "created": last["created"],
        "model": last["model"],
        "system_fingerprint": last["system_fingerprint"],
        "choices": [choices[index] for index in sorted(choices)],
        "usage": last["usage"],
        "timings": last["timings"],
    }
    if prompt_ids is not None:
        whole["prompt_token_ids"] = prompt_ids
    return whole


def _empty_choice(index: int, logprobs: bool) -> ChatChoice:
    return {
        "index": index,
        "message": {"role": "assistant", "content": "", "refusal": None},
        "logprobs": {"content": [], "refusal": None} if logprobs else None,
        "finish_reason": None,
    }


def _extend_message(message: Message, delta: Delta) -> None:
    if text := delta.get("content"):
        message["content"] = (message["content"] or "") + text
    if text := delta.get("reasoning_content"):
        message["reasoning_content"] = message.get("reasoning_content", "") + text
    if "function_call" in delta:
        called = delta["function_call"]
        message.setdefault("function_call", {"name": called.get("name", ""), "arguments": ""})
        message["function_call"]["arguments"] += called["arguments"]
        message["content"] = message["content"] or None
    for piece in delta.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        if "id" in piece:
            calls.append({"id": piece["id"], "type": piece["type"]})
            message["content"] = message["content"] or None
        elif not calls:  # the rest of a call that had begun before this answer, which goes on
            calls.append({"id": "", "type": "custom" if "custom" in piece else "function"})
        call = calls[-1]
        if "custom" in piece:
            custom = piece["custom"]
            call.setdefault("custom", {"name": custom.get("name", ""), "input": ""})
            call["custom"]["input"] += custom["input"]
        else:
            function = piece["function"]
            call.setdefault("function", {"name": function.get("name", ""), "arguments": ""})
            call["function"]["arguments"] += function["arguments"]
