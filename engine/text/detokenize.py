"""Detokenization: from token ids to text, a few ids at a time.

This works on the exact bytes of each token, so that the text does not depend on how many ids arrive
at a time. `DecodeStream` of the tokenizers library does not do that: one invalid byte token spoils
the whole run of byte tokens around it.
"""

import codecs
import copy
import json
import re
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError, shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_GROWTH = 64  # times the length of a token's spelling
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """The bytes that each token of a vocabulary adds to an answer: `tokens[id]`.

    The bytes of all tokens of an answer, joined, are its text in UTF-8. Special tokens add nothing
    (but see `showing`), nor do ids beyond the tokenizer's vocabulary, which models with padded
    embeddings can choose. An answer continues its prompt, so the space of a leading `▁` is kept
    even at the first token.

    The constructor raises `ModelError` for a tokenizer whose decoder is not supported.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer: Tokenizer | None = tokenizer
        self._decoder = _TokenDecoder(tokenizer)
        self._size = int(tokenizer.get_vocab_size(with_added_tokens=True))
        self._special = {
            token: added.content
            for token, added in tokenizer.get_added_tokens_decoder().items()
            if added.special
        }
        self._known: dict[int, bytes] = {}
        self._shown: dict[int, bytes] = {}  # special tokens that are spelled all the same

    def __getitem__(self, token: int) -> bytes:
        known = self._shown.get(token) or self._known.get(token)
        if known is None:
            known = self._known[token] = self._decode_token(token)
        return known

    def __len__(self) -> int:
        """Return the size of the tokenizer's vocabulary, added tokens included."""
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return (self[token] for token in range(len(self)))

    def text(self, token: int) -> str:
        """Return the text of a single token, as logprobs show it.

        Special tokens are shown by their names, and parts of a character as U+FFFD.
        """
        return self._special.get(token) or self[token].decode("utf-8", errors="replace")

    def showing(self, tokens: Collection[int]) -> "TokenBytes":
        """Return a copy in which these special tokens add their spelling to the text.

        Without tokens, return this object itself.
        """
        if not tokens:
            return self
        shown = copy.copy(self)
        shown._shown = {token: self._special[token].encode() for token in tokens}
        return shown

    def spelled_out(self) -> "TokenBytes":
        """Return a copy without the library's tokenizer, for processes that do not load it."""
        assert self._tokenizer is not None, "it is spelled out already"
        spelled = copy.copy(self)
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        spelled._known = {token: self._decode_token(token) for token in sorted(ids)}
        spelled._tokenizer = None
        return spelled

    def special_token(self, spelling: str) -> int | None:
        """Return the id of the special token with this spelling; None if there is none.

        Added tokens that are not special are part of the text anyway, and have no id here.
        """
        found = (token for token, content in self._special.items() if content == spelling)
        return next(found, None)

    def _decode_token(self, token: int) -> bytes:
        if token in self._special:
            return b""
        piece = None if self._tokenizer is None else self._tokenizer.id_to_token(token)
        return b"" if piece is None else self._decoder.decode(piece)


class Detokenizer:
    """A converter of one answer's token ids to text, which never returns part of a character.

    A character that the answer breaks off is never returned.
    """

    def __init__(self, tokens: TokenBytes) -> None:
        self._bytes = tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """Return the text that these ids add; an incomplete last character is withheld."""
        return self._utf8.decode(b"".join(self._bytes[token] for token in ids))


class _TokenDecoder:
    """The tokenizer's decoder, applied to one token that is not the first of a text.

    Raises `ModelError` if the decoder has a step that is not supported.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        decoder = tokenizer.decoder
        state = None if decoder is None else json.loads(decoder.__getstate__())
        self._replacements: list[tuple[str, str]] = []
        self._is_byte_level = False
        self._has_byte_fallback = False
        self._growth = 1  # how many times longer the replacements may make a token
        for step in _steps(state):
            self._add_step(step)

    def decode(self, piece: str) -> bytes:
        """Return the bytes of a token that the vocabulary lists as `piece`."""
        if self._is_byte_level:
            byte_of = _byte_level_alphabet()
            if all(character in byte_of for character in piece):
                return bytes(byte_of[character] for character in piece)
        elif self._has_byte_fallback and (byte := _BYTE_TOKEN.fullmatch(piece)):
            return bytes.fromhex(byte[1])
        for old, new in self._replacements:
            piece = piece.replace(old, new)
        return piece.encode("utf-8", errors="replace")

    def _add_step(self, step: dict[str, Any]) -> None:
        """Add one step of the tokenizer's decoder. Raises `ModelError` if it is not supported."""
        match step:
            case {"type": "ByteLevel"}:
                self._is_byte_level = True
            case {"type": "ByteFallback"}:
                self._has_byte_fallback = True
            case {"type": "Metaspace", "replacement": str(mark)}:
                self._replacements.append((mark, " "))
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                self._growth *= max(1, -(-len(new) // max(len(old), 1)))
                if not old or self._growth > MOST_GROWTH:
                    raise ModelError(
                        f"tokenizer.json: decoder Replace of {shown(old)} by {len(new)} characters "
                        "is not supported: texts would grow without bounds"
                    )
                self._replacements.append((old, new))
            case {"type": "Fuse" | "Strip"}:
                pass  # Strip removes a space at the start of a text, where no answer begins
            case _:
                raise ModelError(
                    f"tokenizer.json: decoder {step.get('type', 'null')} is not supported; "
                    "byte-level and sentencepiece decoders are. Use a model with such a tokenizer."
                )


def _steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the steps of a decoder as tokenizer.json describes it, nested sequences flattened."""
    if decoder is None:
        return [{}]
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for inner in decoder["decoders"] for step in _steps(inner)]


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """Return the byte for each printable character that GPT-2's tokenizer writes for a byte.

    It is the inverse of `bytes_to_unicode` in GPT-2's encoder.py.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}
