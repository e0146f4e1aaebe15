"""A chat's answer: from the engine's outputs to chunks, and from chunks to the whole. Pure."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from engine.text.detokenize import TokenBytes
from server.chat.generation import Output
from server.chat.logprobs import PlacedToken, chat_logprobs, token_origins
from server.chat.reply import Reply
from server.metrics.usage import Totals
from server.parsing.parser import Parser
from server.schemas.answers import (
    CallFunction,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    Delta,
    Head,
    Message,
)


class ChatWriter:
    """Turns outputs into the chunks of one streamed chat.

    Args:
        head: what all chunks share.
        totals: adds up what the choices cost, and knows when all are finished.
        spelling: the bytes that tokens add to the text.
        new_parser: makes the parser of one choice.
        logprobs, provenance: what is told of each token beside its text.
        include_usage: whether the stream ends with a chunk of usage.
    """

    def __init__(
        self,
        head: Head,
        totals: Totals,
        spelling: TokenBytes,
        new_parser: Callable[[], Parser],
        *,
        logprobs: bool,
        provenance: bool,
        include_usage: bool,
    ) -> None:
        self._head = head
        self._totals = totals
        self._spelling = spelling
        self._new_parser = new_parser
        self._logprobs = logprobs
        self._provenance = provenance
        self._include_usage = include_usage
        self._replies: dict[int, Reply] = {}

    def write(self, output: Output) -> Iterator[ChatChunk]:
        """The chunks of one output; after the last finish the timings and the usage."""
        index, tokens = output.index, output.tokens
        self._totals.add(tokens)
        if index is None:
            return
        if index not in self._replies:
            self._replies[index] = Reply(
                self._new_parser(),
                self._spelling,
                logprobs=self._logprobs,
                provenance=self._provenance,
            )
            yield self._chunk(index, {"role": "assistant", "content": ""})
        reply = self._replies[index]
        for delta, placed in reply.read(tokens):
            yield self._chunk(index, delta, placed)
        if tokens.finish is None:
            return
        self._totals.add_reasoning(reply.num_reasoning_tokens)
        last = self._chunk(index, {}, finish=reply.finish(tokens.finish))
        if tokens.stop_reason is not None:
            last["choices"][0]["stop_reason"] = tokens.stop_reason
        if self._totals.complete and not self._include_usage:
            last["timings"] = self._totals.timings()
        yield last
        if self._totals.complete and self._include_usage:
            yield self._event([], with_usage=True)

    def _chunk(
        self,
        index: int,
        delta: Delta,
        placed: Sequence[PlacedToken] = (),
        finish: str | None = None,
    ) -> ChatChunk:
        entries = chat_logprobs(placed, self._spelling)
        choice: ChatChunkChoice = {
            "index": index,
            "delta": delta,
            "logprobs": {"content": entries, "refusal": None} if entries else None,
            "finish_reason": finish,
        }
        if self._provenance:
            choice["provenance"] = token_origins(placed)
        return self._event([choice])

    def _event(self, choices: list[ChatChunkChoice], *, with_usage: bool = False) -> ChatChunk:
        chunk: ChatChunk = {
            "id": self._head["id"],
            "object": "chat.completion.chunk",
            "created": self._head["created"],
            "model": self._head["model"],
            "system_fingerprint": self._head["system_fingerprint"],
            "choices": choices,
        }
        if self._include_usage:
            chunk["usage"] = self._totals.usage() if with_usage else None
        if with_usage:
            chunk["timings"] = self._totals.timings()
        return chunk


def fold_chat(chunks: Iterable[ChatChunk], *, logprobs: bool) -> ChatCompletion:
    """The non-streamed answer: what a client would put together from the stream with usage."""
    choices: dict[int, ChatChoice] = {}
    last: ChatChunk | None = None
    for last in chunks:
        for piece in last["choices"]:
            choice = choices.setdefault(piece["index"], _empty(piece["index"], logprobs))
            _extend(choice["message"], piece["delta"])
            choice["finish_reason"] = piece["finish_reason"]
            if "stop_reason" in piece:
                choice["stop_reason"] = piece["stop_reason"]
            if choice["logprobs"] is not None and piece["logprobs"] is not None:
                choice["logprobs"]["content"] += piece["logprobs"]["content"]
            if "provenance" in piece:
                choice.setdefault("provenance", []).extend(piece["provenance"])
    assert last is not None, "a stream has chunks"
    return {
        "id": last["id"],
        "object": "chat.completion",
        "created": last["created"],
        "model": last["model"],
        "system_fingerprint": last["system_fingerprint"],
        "choices": [choices[index] for index in sorted(choices)],
        "usage": last["usage"],
        "timings": last["timings"],
    }


def _empty(index: int, logprobs: bool) -> ChatChoice:
    return {
        "index": index,
        "message": {"role": "assistant", "content": "", "refusal": None},
        "logprobs": {"content": [], "refusal": None} if logprobs else None,
        "finish_reason": None,
    }


def _extend(message: Message, delta: Delta) -> None:
    if text := delta.get("content"):
        message["content"] = (message["content"] or "") + text
    if text := delta.get("reasoning_content"):
        message["reasoning_content"] = message.get("reasoning_content", "") + text
    for piece in delta.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        function = piece["function"]
        if "id" in piece:
            whole: CallFunction = {"name": function["name"], "arguments": ""}
            calls.append({"id": piece["id"], "type": "function", "function": whole})
            message["content"] = message["content"] or None
        calls[piece["index"]]["function"]["arguments"] += function["arguments"]
