"""A text completion's answer: from outputs to chunks, and from chunks to the whole. Pure."""

from collections.abc import Iterable, Iterator, Sequence

from engine.messages import Tokens
from engine.text.detokenize import TokenBytes
from server.chat.echo import Echo
from server.chat.generation import Output
from server.chat.logprobs import PlacedToken, TokenAligner, text_logprobs, token_origins
from server.metrics.usage import Totals
from server.schemas.answers import Head, TextChoice, TextCompletion, TextLogprobs


class TextWriter:
    """Turns outputs into the chunks of one streamed completion.

    Args:
        head: what all chunks share.
        totals: adds up what the choices cost, and knows when all are finished.
        spelling: the bytes of tokens.
        logprobs, provenance: what is told of each token beside its text.
        echoes: by index of the choice, what is shown before the answer.
        include_usage: whether the stream ends with a chunk of usage.
    """

    def __init__(
        self,
        head: Head,
        totals: Totals,
        spelling: TokenBytes,
        *,
        logprobs: bool,
        provenance: bool,
        echoes: Sequence[Echo],
        include_usage: bool,
    ) -> None:
        self._head = head
        self._totals = totals
        self._spelling = spelling
        self._logprobs = logprobs
        self._provenance = provenance
        self._echoes = echoes
        self._include_usage = include_usage
        self._aligners: dict[int, TokenAligner | None] = {}

    def write(self, output: Output) -> Iterator[TextCompletion]:
        """The chunks of one output; after the last finish the timings and the usage."""
        index, tokens = output.index, output.tokens
        self._totals.add(tokens)
        if index is None:
            return
        echo = Echo()
        if index not in self._aligners:
            echo = self._echoes[index]
            told = self._logprobs or self._provenance
            self._aligners[index] = TokenAligner(self._spelling, len(echo.text)) if told else None
        aligner = self._aligners[index]
        placed = [] if aligner is None else aligner.feed(tokens)
        text = echo.text + tokens.text
        if not (text or placed or tokens.prompt_logprobs or tokens.finish):
            return
        choice: TextChoice = {
            "index": index,
            "text": text,
            "logprobs": self._scores(echo, tokens, placed) if self._logprobs else None,
            "finish_reason": tokens.finish,
        }
        if self._provenance:
            choice["provenance"] = token_origins(placed)
        chunk = self._event([choice])
        complete = tokens.finish is not None and self._totals.complete
        if complete and not self._include_usage:
            chunk["timings"] = self._totals.timings()
        yield chunk
        if complete and self._include_usage:
            yield self._event([], with_usage=True)

    def _scores(self, echo: Echo, tokens: Tokens, placed: Sequence[PlacedToken]) -> TextLogprobs:
        """Of the prompt, where it is shown for the first time, and of the answer's tokens."""
        return text_logprobs(
            [*echo.ids, *(p.token for p in placed)],
            [*tokens.prompt_logprobs, *(p.logprob for p in placed)],
            [*echo.offsets(self._spelling), *(p.offset for p in placed)],
            self._spelling,
        )

    def _event(self, choices: list[TextChoice], *, with_usage: bool = False) -> TextCompletion:
        chunk: TextCompletion = {
            "id": self._head["id"],
            "object": "text_completion",
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


def fold_text(chunks: Iterable[TextCompletion]) -> TextCompletion:
    """The non-streamed answer: what a client would put together from the stream with usage."""
    choices: dict[int, TextChoice] = {}
    last: TextCompletion | None = None
    for last in chunks:
        for piece in last["choices"]:
            choice = choices.setdefault(piece["index"], piece)
            if choice is not piece:
                _append(choice, piece)
    assert last is not None, "a stream has chunks"
    return {**last, "choices": [choices[index] for index in sorted(choices)]}


def _append(choice: TextChoice, piece: TextChoice) -> None:
    choice["text"] += piece["text"]
    choice["finish_reason"] = piece["finish_reason"]
    if "provenance" in choice:
        choice["provenance"] += piece["provenance"]
    whole, more = choice["logprobs"], piece["logprobs"]
    if whole is not None and more is not None:
        whole["tokens"] += more["tokens"]
        whole["token_logprobs"] += more["token_logprobs"]
        whole["top_logprobs"] += more["top_logprobs"]
        whole["text_offset"] += more["text_offset"]
