"""The files tokenizer.json and tokenizer_config.json for a sentencepiece model (tokenizer.model).

The vocabulary becomes the metadata that a GGUF file has of such models, of which
`engine.weights.gguf_tokenizer` makes the files. Two kinds are read: models of likely tokens
(unigram), and models of byte pairs that leave the text as it is, as those of Llama 2, Mistral and
Gemma. Others would give other ids than the model was trained on.

Source: src/sentencepiece_model.proto of sentencepiece, and the wire format of protocol buffers.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.errors import ModelError, shown
from engine.weights.gguf_charsmap import charsmap_fault
from engine.weights.gguf_tokenizer import TokenizerFiles, make_tokenizer

MODEL_FILES = ("tokenizer.model", "spiece.model")
# Its families (XGLM, NLLB, XLM-R) have other ids than the file, which this server does not know.
FAIRSEQ_FILE = "sentencepiece.bpe.model"
MOST_FIELDS = 1 << 20  # of a message: the model has one for each piece of its vocabulary
# Fields of the messages, by their numbers.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _TYPE = 1, 2, 3  # of a piece
_MODEL_TYPE, _TREAT_AS_SUFFIX = 3, 24  # of the trainer
_IDS = {"unknown": (40, 0), "bos": (41, 1), "eos": (42, 2), "padding": (43, -1)}  # with defaults
_CHARSMAP, _DUMMY_PREFIX, _EXTRA_WHITESPACE, _ESCAPE = 2, 3, 4, 5  # of the normalizer
_UNIGRAM, _BYTE_PAIRS = 1, 2  # the types of models that are read
_KINDS = {1: "unigram", 2: "byte pairs", 3: "words", 4: "characters"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_REMEDY = "Use a checkpoint of the model that has a tokenizer.json"


def sentencepiece_files(
    raw: bytes, path: Path, model_type: str, flags: Mapping[str, Any]
) -> TokenizerFiles:
    """Return the contents of the tokenizer files.

    Raises `ModelError` that names the file and what is not read.

    Args:
        raw: the content of the file.
        path: the file, for messages.
        model_type: the family of the model, from its configuration.
        flags: the values of `add_bos_token` and `add_eos_token` of its tokenizer_config.json.
    """
    if raw[:1] != b"\n":  # a model begins with its first piece
        kind = "a tiktoken vocabulary, which names neither its words nor its special tokens"
        what = kind if _is_tiktoken(raw) else "no sentencepiece model"
        raise ModelError(f"{path}: {what}. {_REMEDY}")
    try:
        message = _Message(raw)
        if not message.messages(_TRAINER):
            raise ValueError("its trainer_spec is missing; the file may be cut off")
        pieces = [_Message(piece) for piece in message.messages(_PIECES)]
        trainer, normalizer = message.message(_TRAINER), message.message(_NORMALIZER)
        _check(trainer, normalizer, path)
        is_unigram = trainer.number(_MODEL_TYPE, _UNIGRAM) == _UNIGRAM
        metadata: dict[str, Any] = {
            "tokenizer.ggml.add_bos_token": True,
            **{f"tokenizer.ggml.{flag}": value for flag, value in flags.items()},
            "general.architecture": model_type,
            "tokenizer.ggml.model": "t5" if is_unigram else "llama",
            "tokenizer.ggml.tokens": [piece.bytes(_TEXT).decode() for piece in pieces],
            "tokenizer.ggml.scores": [_score(piece, index) for index, piece in enumerate(pieces)],
            "tokenizer.ggml.token_type": [piece.number(_TYPE, 1) for piece in pieces],
            "tokenizer.ggml.add_space_prefix": bool(normalizer.number(_DUMMY_PREFIX, 1)),
            "tokenizer.ggml.remove_extra_whitespaces": _trims(normalizer),
        }
        if charsmap := normalizer.bytes(_CHARSMAP):
            metadata["tokenizer.ggml.precompiled_charsmap"] = list(charsmap)
        for name, (field, default) in _IDS.items():
            value = trainer.number(field, default)
            if 0 <= value < len(pieces):
                metadata[f"tokenizer.ggml.{name}_token_id"] = value
    except (ValueError, IndexError, struct.error) as error:
        raise ModelError(f"{path}: no sentencepiece model: {error}. {_REMEDY}") from error
    return make_tokenizer(path, metadata)


def _is_tiktoken(raw: bytes) -> bool:
    """Return whether a file has lines of a token in base64 and its rank."""
    token, _, rank = raw[:200].partition(b"\n")[0].partition(b" ")
    return bool(token) and rank.isdigit()


def _check(trainer: "_Message", normalizer: "_Message", path: Path) -> None:
    """Raise `ModelError` for rules that are not read."""
    kind, charsmap = trainer.number(_MODEL_TYPE, _UNIGRAM), normalizer.bytes(_CHARSMAP)
    found = ""
    if kind not in (_UNIGRAM, _BYTE_PAIRS):
        found = f"its type is {_KINDS.get(kind, kind)}"
    elif kind == _BYTE_PAIRS and charsmap:
        found = "its normalizer replaces characters (precompiled_charsmap)"
    elif kind == _BYTE_PAIRS and _trims(normalizer):
        found = "its normalizer removes blanks (remove_extra_whitespaces)"
    elif not normalizer.number(_ESCAPE, 1) or trainer.number(_TREAT_AS_SUFFIX, 0):
        found = "it does not write a blank as the first character of a word"
    elif charsmap and (fault := charsmap_fault(charsmap)) is not None:
        found = f"its table of replaced characters (precompiled_charsmap) is damaged: {fault}"
    if found:
        raise ModelError(
            f"{path}: this sentencepiece model is not read: {found}. Models of likely tokens "
            f"(unigram), and of byte pairs of the unchanged text, are read. {_REMEDY}"
        )


def _trims(normalizer: "_Message") -> bool:
    return bool(normalizer.number(_EXTRA_WHITESPACE, 1))


def _score(piece: "_Message", index: int) -> float:
    score = piece.float(_SCORE)
    if not math.isfinite(score):
        raise ValueError(f"piece {index} has the score {score}")
    return score


class _Message:
    """A message of protocol buffers: its values by the numbers of their fields.

    Raises ValueError, IndexError or struct.error for bytes that are none.
    """

    def __init__(self, raw: bytes) -> None:
        values: dict[int, list[int | bytes]] = {}
        for number, (field, value) in enumerate(_fields(raw)):
            if number >= MOST_FIELDS:
                raise ValueError(f"a message has more than {MOST_FIELDS} fields")
            values.setdefault(field, []).append(value)
        self._values: Mapping[int, list[int | bytes]] = values

    def messages(self, field: int) -> list[bytes]:
        """Return the bytes of the messages in a repeated field."""
        values = self._values.get(field, [])
        found = [value for value in values if isinstance(value, bytes)]
        if len(found) < len(values):
            raise ValueError(f"field {field} holds a number")
        return found

    def message(self, field: int) -> "_Message":
        """Return the message in a field, an empty one if there is none."""
        return _Message(self.bytes(field))

    def bytes(self, field: int) -> bytes:
        """Return the bytes in a field, b"" if there is none."""
        found = self.messages(field)
        return found[-1] if found else b""

    def number(self, field: int, default: int) -> int:
        """Return the number in a field of type int32, bool or enum."""
        value = self._values.get(field, [default])[-1]
        if not isinstance(value, int):
            raise ValueError(f"field {field} holds {shown(value)}")
        return value - (1 << 64) if value >> 63 > 0 else value

    def float(self, field: int) -> float:
        """Return the number in a field of type float, 0 if there is none."""
        raw = self.bytes(field) or bytes(4)
        return float(struct.unpack("<f", raw)[0])


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and the value of each field; those of fixed size are bytes."""
    place = 0
    while place < len(raw):
        key, place = _varint(raw, place)
        kind = key & 7
        if kind == _VARINT:
            value, place = _varint(raw, place)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, place = _varint(raw, place)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"byte {place}: wire type {kind}")
        if place + size > len(raw):
            raise ValueError(f"byte {place}: {size} bytes are expected, {len(raw) - place} left")
        yield key >> 3, raw[place : place + size]
        place += size


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    """Return the number that begins at `place`, and the place after it."""
    value = 0
    for index in range(10):
        byte = raw[place + index]
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value, place + index + 1
    raise ValueError(f"byte {place}: a number has more than 10 bytes")
