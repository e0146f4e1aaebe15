"""Emitted tokens beside the text they belong to, and what is told of each. Pure."""

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.messages import Origin, TokenLogprob, Tokens
from engine.text.detokenize import TokenBytes
from server.schemas.answers import ChatLogprob, TextLogprobs, TokenOrigin, TopLogprob

CUT = "\ufffd"  # what is shown for a character that the answer's end left unfinished


@dataclass(frozen=True)
class PlacedToken:
    """An emitted token, where its text begins, and what of it is shown.

    A token whose text a stop string cut away, or that has none (end-of-sequence), shows less than
    its own text or nothing: the bytes of all tokens joined are the UTF-8 of the answer's text, and
    so are their pieces, of which the token that ends a character has all of it.
    """

    token: int
    logprob: TokenLogprob | None  # None: not asked for
    origin: Origin
    offset: int  # characters before it
    shown: bytes
    piece: str


class TokenAligner:
    """Releases each token with the chunk that shows the last of its text."""

    def __init__(self, spelling: TokenBytes, offset: int = 0) -> None:
        self._spelling = spelling
        self._offset = offset  # characters shown before the answer (echo)
        self._waiting: deque[tuple[int, TokenLogprob | None, Origin]] = deque()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_shown = 0  # characters shown
        self._shown_bytes = 0
        self._num_placed = 0  # characters completed by the tokens released
        self._placed_bytes = 0  # their bytes
        self._num_pending = 0  # bytes of the character they left unfinished

    def feed(self, tokens: Tokens) -> list[PlacedToken]:
        """Take what a pass emitted; return the tokens whose text is shown by now.

        With the choice's last tokens come all that still wait: a stop string hides their text.
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
            shown = self._num_placed + len(piece) + bool(num_pending) <= self._num_shown
            if not shown and tokens.finish is None:
                self._utf8.setstate(before)
                break
            placed.append(self._place(piece, num_pending, shown))
        if tokens.finish is not None and self._num_placed < self._num_shown:
            placed[-1] = replace(placed[-1], piece=placed[-1].piece + CUT)
        return placed

    def _place(self, piece: str, num_pending: int, shown: bool) -> PlacedToken:
        token, logprob, origin = self._waiting.popleft()
        spelled = self._spelling[token]
        room = self._shown_bytes - self._placed_bytes - self._num_pending
        offset = min(self._num_placed, self._num_shown)
        self._num_placed += len(piece)
        # not the token's own length: an invalid byte is shown as the three of U+FFFD
        self._placed_bytes += len(piece.encode())
        self._num_pending = num_pending
        return PlacedToken(
            token=token,
            logprob=logprob,
            origin=origin,
            offset=self._offset + offset,
            shown=spelled if shown else spelled[: max(0, room)],
            piece=piece[: self._num_shown - offset],
        )


def chat_logprobs(placed: Sequence[PlacedToken], spelling: TokenBytes) -> list[ChatLogprob]:
    """Entries of a chat choice's `logprobs.content`."""
    return [
        {
            "token": spelling.text(p.token),
            "logprob": p.logprob.logprob,
            "bytes": list(p.shown),
            "top_logprobs": [_top(token, logprob, spelling) for token, logprob in p.logprob.top],
        }
        for p in placed
        if p.logprob is not None
    ]


def _top(token: int, logprob: float, spelling: TokenBytes) -> TopLogprob:
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
    """A completion choice's `logprobs`: the best tokens, and the one at hand among them.

    None: nothing is known of the token, since none stands before it.
    """
    return {
        "tokens": [_name(token, spelling) for token in ids],
        "token_logprobs": [None if own is None else own.logprob for own in logprobs],
        "top_logprobs": [None if own is None else _best(own, spelling) for own in logprobs],
        "text_offset": list(offsets),
    }


def _best(own: TokenLogprob, spelling: TokenBytes) -> dict[str, float]:
    """By name; of tokens with one name the best, so that nobody takes another for the best."""
    best: dict[str, float] = {}
    for token, logprob in (*own.top, (own.token, own.logprob)):
        best.setdefault(_name(token, spelling), logprob)
    return best


def _name(token: int, spelling: TokenBytes) -> str:
    """A token's text, or its bytes where it splits a character: as OpenAI names tokens."""
    try:
        spelling[token].decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling[token])
    return spelling.text(token)


def token_origins(placed: Sequence[PlacedToken]) -> list[TokenOrigin]:
    """Entries of a choice's `provenance`."""
    return [
        {
            "token": p.piece,
            "source": p.origin.source,
            "depth": p.origin.depth,
            "pass": p.origin.pass_number,
        }
        for p in placed
    ]
