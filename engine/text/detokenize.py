"""From token ids to text, a few ids at a time.

Works on the exact bytes of each token, which the library's own `DecodeStream` does not give: it
cannot flush an unfinished character, and it spoils a whole run of byte tokens when one of them is
invalid. Bytes make the text independent of how ids were grouped into passes.
"""

import codecs
import copy
import json
import re
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """The bytes that each token adds to an answer, `tokens[id]`.

    Joined over an answer they are its text in UTF-8. A special token adds nothing (see `showing`),
    and so does an id behind the tokenizer's vocabulary, which padded embeddings allow. An answer
    continues its prompt: the blank of a leading `▁` is kept, also at the first token.

    Raises `ModelError` for a tokenizer whose decoder is not known.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer: Tokenizer | None = tokenizer
        self._decoder = _Decoder(tokenizer)
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
            known = self._known[token] = self._spell(token)
        return known

    def __len__(self) -> int:
        """The size of the tokenizer's vocabulary, added tokens included."""
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return (self[token] for token in range(len(self)))

    def text(self, token: int) -> str:
        """How a token is shown by itself (logprobs): special ones by name, cut characters as �."""
        return self._special.get(token) or self[token].decode("utf-8", errors="replace")

    def showing(self, tokens: Collection[int]) -> "TokenBytes":
        """The same, but with the spelling of these special tokens; no tokens: itself."""
        if not tokens:
            return self
        shown = copy.copy(self)
        shown._shown = {token: self._special[token].encode() for token in tokens}
        return shown

    def spelled_out(self) -> "TokenBytes":
        """Return the same without the library's tokenizer, for processes that do not load it."""
        assert self._tokenizer is not None, "it is spelled out already"
        spelled = copy.copy(self)
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        spelled._known = {token: self._spell(token) for token in sorted(ids)}
        spelled._tokenizer = None
        return spelled

    def special_token(self, spelling: str) -> int | None:
        """The id of a special token; None for what is none, or is part of the text anyway."""
        found = (token for token, content in self._special.items() if content == spelling)
        return next(found, None)

    def _spell(self, token: int) -> bytes:
        if token in self._special:
            return b""
        piece = None if self._tokenizer is None else self._tokenizer.id_to_token(token)
        return b"" if piece is None else self._decoder.decode(piece)


class Detokenizer:
    """The text of one answer: what is complete UTF-8 comes out of `push`, the rest of `finish`."""

    def __init__(self, tokens: TokenBytes) -> None:
        self._bytes = tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids complete; an unfinished character is held back."""
        return self._utf8.decode(b"".join(self._bytes[token] for token in ids))

    def finish(self) -> str:
        """The rest: bytes that never became a character are shown as U+FFFD."""
        return self._utf8.decode(b"", final=True)


class _Decoder:
    """What the tokenizer's decoder does to one token that is not the first of a text."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        decoder = tokenizer.decoder
        state = None if decoder is None else json.loads(decoder.__getstate__())
        self._replacements: list[tuple[str, str]] = []
        self._byte_level = False
        self._byte_fallback = False
        for step in _steps(state):
            self._read(step)

    def decode(self, piece: str) -> bytes:
        if self._byte_level:
            byte_of = _byte_level_alphabet()
            if all(character in byte_of for character in piece):
                return bytes(byte_of[character] for character in piece)
        elif self._byte_fallback and (byte := _BYTE_TOKEN.fullmatch(piece)):
            return bytes.fromhex(byte[1])
        for old, new in self._replacements:
            piece = piece.replace(old, new)
        return piece.encode("utf-8", errors="replace")

    def _read(self, step: dict[str, Any]) -> None:
        match step:
            case {"type": "ByteLevel"}:
                self._byte_level = True
            case {"type": "ByteFallback"}:
                self._byte_fallback = True
            case {"type": "Metaspace", "replacement": str(mark)}:
                self._replacements.append((mark, " "))
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                self._replacements.append((old, new))
            case {"type": "Fuse" | "Strip"}:
                pass  # Strip takes the blank at the start of a text: an answer never starts one
            case _:
                raise ModelError(
                    f"tokenizer.json: decoder {step.get('type', 'null')} is not supported; "
                    "byte-level and sentencepiece decoders are. Use a model with such a tokenizer."
                )


def _steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return [{}]
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for inner in decoder["decoders"] for step in _steps(inner)]


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable character of each byte, inverted (`bytes_to_unicode` in its encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}
