"""Log-probabilities beside the text they belong to. Pure."""

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from engine.detokenize import TokenBytes
from engine.messages import TokenLogprob, Tokens
from server.schemas.answers import ChatLogprob, TextLogprobs, TopLogprob

LEAST = -9999.0  # JSON has no -inf


@dataclass(frozen=True)
class PlacedLogprob:
    """An emitted token, where its text begins, and which of its bytes are shown.

    A token whose text a stop string cut away, or that has none (end-of-sequence), has fewer bytes
    or none: the bytes of all entries joined are the UTF-8 of the text.
    """

    entry: TokenLogprob
    offset: int  # characters before it
    shown: bytes


class LogprobAligner:
    """Releases each token with the chunk that shows the last of its text."""

    def __init__(self, spelling: TokenBytes, offset: int = 0) -> None:
        self._spelling = spelling
        self._offset = offset  # characters shown before the answer (echo)
        self._waiting: deque[TokenLogprob] = deque()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_shown = 0  # characters shown
        self._shown_bytes = 0
        self._num_placed = 0  # characters completed by the tokens released
        self._placed_bytes = 0  # their bytes
        self._num_pending = 0  # bytes of the character they left unfinished

    def feed(self, tokens: Tokens) -> list[PlacedLogprob]:
        """Take what a pass emitted; return the tokens whose text is shown by now.

        With the choice's last tokens come all that still wait: a stop string hides their text.
        """
        self._waiting.extend(tokens.logprobs)
        self._num_shown += len(tokens.text)
        self._shown_bytes += len(tokens.text.encode())
        placed: list[PlacedLogprob] = []
        while self._waiting:
            before = self._utf8.getstate()
            piece = self._utf8.decode(self._spelling[self._waiting[0].token])
            num_pending = len(self._utf8.getstate()[0])
            shown = self._num_placed + len(piece) + bool(num_pending) <= self._num_shown
            if not shown and tokens.finish is None:
                self._utf8.setstate(before)
                break
            placed.append(self._place(piece, num_pending, shown))
        return placed

    def _place(self, piece: str, num_pending: int, shown: bool) -> PlacedLogprob:
        entry = self._waiting.popleft()
        spelled = self._spelling[entry.token]
        room = self._shown_bytes - self._placed_bytes - self._num_pending
        offset = self._offset + min(self._num_placed, self._num_shown)
        self._num_placed += len(piece)
        # not the token's own length: an invalid byte is shown as the three of U+FFFD
        self._placed_bytes += len(piece.encode())
        self._num_pending = num_pending
        return PlacedLogprob(entry, offset, spelled if shown else spelled[: max(0, room)])


def chat_logprobs(placed: Sequence[PlacedLogprob], tokens: TokenBytes) -> list[ChatLogprob]:
    """Entries of a chat choice's `logprobs.content`."""
    return [
        {
            "token": tokens.text(p.entry.token),
            "logprob": max(p.entry.logprob, LEAST),
            "bytes": list(p.shown),
            "top_logprobs": [_top(token, logprob, tokens) for token, logprob in p.entry.top],
        }
        for p in placed
    ]


def _top(token: int, logprob: float, tokens: TokenBytes) -> TopLogprob:
    return {
        "token": tokens.text(token),
        "logprob": max(logprob, LEAST),
        "bytes": list(tokens[token]),
    }


def text_logprobs(placed: Sequence[PlacedLogprob], tokens: TokenBytes) -> TextLogprobs:
    """A completion choice's `logprobs`: the best tokens, and the emitted one among them."""
    return {
        "tokens": [tokens.text(p.entry.token) for p in placed],
        "token_logprobs": [max(p.entry.logprob, LEAST) for p in placed],
        "top_logprobs": [
            {
                tokens.text(token): max(logprob, LEAST)
                for token, logprob in (*p.entry.top, (p.entry.token, p.entry.logprob))
            }
            for p in placed
        ],
        "text_offset": [p.offset for p in placed],
    }
