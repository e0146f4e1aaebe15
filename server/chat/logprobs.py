"""The log-probabilities and origins of tokens, sent with the text of the tokens. Pure."""

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from engine.messages import Origin, TokenLogprob, Tokens
from engine.text.detokenize import TokenBytes
from server.schemas.answers import ChatLogprob, TextLogprobs, TokenOrigin, TopLogprob


@dataclass(frozen=True)
class PlacedToken:
    """An emitted token and its place in the text.

    A token shows less than its own text, or nothing, if a stop string cut its text away or if it
    has no text (end-of-sequence).

    Args:
        token: the id of the token.
        logprob: the log-probability; None if it is not sent.
        origin: what proposed the token.
        offset: the number of characters before the token's text.
        shown: the bytes that the token shows. The bytes of all tokens, joined, are the UTF-8 of the
            answer's text.
        piece: the characters that the token shows; a character of several tokens belongs to the one
            that completes it. The pieces of all tokens, joined, are the answer's text.
    """

    token: int
    logprob: TokenLogprob | None
    origin: Origin
    offset: int
    shown: bytes
    piece: str


class TokenAligner:
    """A queue that releases each token together with the end of its text.

    Args:
        spelling: the bytes that each token adds to the text.
        offset: the number of characters shown before the answer (`echo`).
    """

    def __init__(self, spelling: TokenBytes, offset: int = 0) -> None:
        self._spelling = spelling
        self._offset = offset
        self._waiting: deque[tuple[int, TokenLogprob | None, Origin]] = deque()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_shown = 0  # characters shown
        self._shown_bytes = 0
        self._num_placed = 0  # characters completed by the released tokens
        self._placed_bytes = 0  # the bytes of these characters
        self._num_pending = 0  # bytes of a character that the released tokens leave unfinished

    def feed(self, tokens: Tokens) -> list[PlacedToken]:
        """Add the tokens that a pass emitted, and return the tokens whose text is shown by now.

        The last tokens of a choice release all that still wait: a stop string hides their text.
        """
        logprobs = tokens.logprobs or (None,) * len(tokens.ids)
        self._waiting.extend(zip(tokens.ids, logprobs, tokens.origins, strict=True))
        self._num_shown += len(tokens.text)
        self._shown_bytes += len(tokens.text.encode())
        placed: list[PlacedToken] = []
        while self._waiting:
            before = self._utf8.getstate()
            piece = self._utf8.decode(self._spelling[self._waiting[0][0]])
            num_pending = len(self._utf8.getstate()[0])
            is_shown = self._num_placed + len(piece) + bool(num_pending) <= self._num_shown
            if not is_shown and tokens.finish is None:
                self._utf8.setstate(before)
                break
            placed.append(self._place(piece, num_pending, is_shown))
        return placed

    def _place(self, piece: str, num_pending: int, is_shown: bool) -> PlacedToken:
        """Take the first waiting token, and return it with its place in the text.

        Args:
            piece: the characters that the token completes.
            num_pending: the bytes of a character that the token leaves unfinished.
            is_shown: whether all of the token's text is shown.
        """
        token, logprob, origin = self._waiting.popleft()
        spelled = self._spelling[token]
        room = self._shown_bytes - self._placed_bytes - self._num_pending
        offset = min(self._num_placed, self._num_shown)
        self._num_placed += len(piece)
        # not the length of the token's own bytes: an invalid byte is shown as the three of U+FFFD
        self._placed_bytes += len(piece.encode())
        self._num_pending = num_pending
        return PlacedToken(
            token=token,
            logprob=logprob,
            origin=origin,
            offset=self._offset + offset,
            shown=spelled if is_shown else spelled[: max(0, room)],
            piece=piece[: self._num_shown - offset],
        )


def chat_logprobs(placed: Sequence[PlacedToken], spelling: TokenBytes) -> list[ChatLogprob]:
    """Return the entries of a chat choice's `logprobs.content`."""
    return [
        {
            "token": spelling.text(p.token),
            "logprob": p.logprob.logprob,
            "bytes": list(p.shown),
            "top_logprobs": [_top_entry(t, logprob, spelling) for t, logprob in p.logprob.top],
        }
        for p in placed
        if p.logprob is not None
    ]


def _top_entry(token: int, logprob: float, spelling: TokenBytes) -> TopLogprob:
    return {
        "token": spelling.text(token),
        "logprob": logprob,
        "bytes": list(spelling[token]),
    }


def text_logprobs(
    ids: Sequence[int],
    logprobs: Sequence[TokenLogprob | None],
    offsets: Sequence[int],
    spelling: TokenBytes,
) -> TextLogprobs:
    """Return a completion choice's `logprobs`.

    Args:
        ids: the tokens of the choice, or of a part of it.
        logprobs: the log-probability of each token; None for the first token of a prompt, which
            follows no other token.
        offsets: where each token begins in the text, in characters.
        spelling: the bytes that each token adds to the text.
    """
    return {
        "tokens": [_token_name(token, spelling) for token in ids],
        "token_logprobs": [None if own is None else own.logprob for own in logprobs],
        "top_logprobs": [None if own is None else _top_by_name(own, spelling) for own in logprobs],
        "text_offset": list(offsets),
    }


def _top_by_name(own: TokenLogprob, spelling: TokenBytes) -> dict[str, float]:
    """Return the log-probabilities of the best tokens and of the token itself, by their names.

    The best of several tokens with one name counts, so that the best name is right.
    """
    best: dict[str, float] = {}
    for token, logprob in (*own.top, (own.token, own.logprob)):
        best.setdefault(_token_name(token, spelling), logprob)
    return best


def _token_name(token: int, spelling: TokenBytes) -> str:
    """Return a token's text, or its bytes if it splits a character, as OpenAI names tokens."""
    try:
        spelling[token].decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling[token])
    return spelling.text(token)


def token_origins(placed: Sequence[PlacedToken]) -> list[TokenOrigin]:
    """Return the entries of a choice's `provenance`."""
    return [
        {
            "token": p.piece,
            "source": p.origin.source,
            "depth": p.origin.depth,
            "pass": p.origin.pass_number,
        }
        for p in placed
    ]
