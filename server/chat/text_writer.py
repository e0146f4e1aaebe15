"""The answer to a text completion, written as chunks and folded to the whole. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from engine.messages import Tokens
from server.chat.answer import Answer
from server.chat.echo import Echo
from server.chat.generation import Output
from server.chat.logprobs import PlacedToken, TokenAligner, text_logprobs, token_origins
from server.chat.passes import answer_passes
from server.schemas.answers import Costs, TextChoice, TextCompletion, TextLogprobs


class TextWriter:
    """A converter of the engine's outputs to the chunks of one completion.

    Args:
        answer: the properties that all chunks share.
        echoes: by index of the choice, the prompt that is shown before the answer.
    """

    def __init__(self, answer: Answer, echoes: Sequence[Echo]) -> None:
        self._answer = answer
        self._echoes = echoes
        self._aligners: dict[int, TokenAligner | None] = {}
        self._shown: set[int] = set()  # choices that have a chunk

    def write(self, output: Output) -> Iterator[TextCompletion]:
        """Yield the chunks of one output; the last chunks of the answer have its costs."""
        answer, index, tokens = self._answer, output.index, output.tokens
        answer.totals.add(tokens)
        if index is None:
            return
        echo = Echo()
        if index not in self._aligners:
            whole = self._echoes[index]
            echo = Echo() if tokens.is_replayed else whole
            has_tokens = answer.logprobs or answer.provenance
            self._aligners[index] = (
                TokenAligner(answer.spelling, len(whole.text)) if has_tokens else None
            )
        aligner = self._aligners[index]
        placed = [] if aligner is None else aligner.feed(tokens)
        if tokens.is_replayed:  # the client has its text
            tokens, placed = replace(tokens, ids=(), text="", prompt_logprobs=()), []
        text = echo.text + tokens.text
        ids = list(tokens.ids) if answer.token_ids else []
        has_passes = bool(tokens.traces)
        if not (text or placed or ids or has_passes or tokens.prompt_logprobs or tokens.finish):
            return
        is_first = index not in self._shown
        self._shown.add(index)
        choice: TextChoice = {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(echo, tokens, placed) if answer.logprobs else None,
            "finish_reason": tokens.finish,
        }
        if answer.provenance:
            choice["provenance"] = token_origins(placed)
        if answer.has_passes:
            choice["passes"] = answer_passes(tokens.traces, answer.spelling)
        if answer.token_ids:
            choice["token_ids"] = ids
            if is_first:
                choice["prompt_token_ids"] = list(answer.prompts[index])
        yield self._new_chunk([choice], answer.costs(is_last=tokens.finish is not None))
        costs = answer.final_costs() if tokens.finish is not None else None
        if costs is not None:
            yield self._new_chunk([], costs)

    def _logprobs(self, echo: Echo, tokens: Tokens, placed: Sequence[PlacedToken]) -> TextLogprobs:
        """Return the entries of the prompt, in a choice's first chunk, and of the new tokens."""
        return text_logprobs(
            [*echo.ids, *(p.token for p in placed)],
            [*tokens.prompt_logprobs, *(p.logprob for p in placed)],
            [*echo.offsets(self._answer.spelling), *(p.offset for p in placed)],
            self._answer.spelling,
        )

    def _new_chunk(self, choices: list[TextChoice], costs: Costs) -> TextCompletion:
        return {
            "id": self._answer.id,
            "object": "text_completion",
            **self._answer.source,
            "choices": choices,
            **costs,
        }


def fold_text(chunks: Iterable[TextCompletion]) -> TextCompletion:
    """Return the whole answer, as a client would join it from the chunks of a stream with usage."""
    choices: dict[int, TextChoice] = {}
    last: TextCompletion | None = None
    for last in chunks:
        for piece in last["choices"]:
            choice = choices.setdefault(piece["index"], piece)
            if choice is not piece:
                _extend_choice(choice, piece)
    assert last is not None, "a stream has at least one chunk"
    return {**last, "choices": [choices[index] for index in sorted(choices)]}


def _extend_choice(choice: TextChoice, piece: TextChoice) -> None:
    choice["text"] += piece["text"]
    choice["finish_reason"] = piece["finish_reason"]
    if "provenance" in choice:
        choice["provenance"] += piece["provenance"]
    if "passes" in choice:
        choice["passes"] += piece["passes"]
    if "token_ids" in choice:
        choice["token_ids"] += piece["token_ids"]
    whole, more = choice["logprobs"], piece["logprobs"]
    if whole is not None and more is not None:
        whole["tokens"] += more["tokens"]
        whole["token_logprobs"] += more["token_logprobs"]
        whole["top_logprobs"] += more["top_logprobs"]
        whole["text_offset"] += more["text_offset"]
