"""Tests of detokenization: exact bytes, whole characters, and any grouping of the ids."""

import codecs
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models

from engine.errors import ModelError
from engine.text.detokenize import Detokenizer, TokenBytes
from tests.engine.small_tokenizers import ADDED, SPECIAL, byte_level, id_of, sentencepiece

Build = Callable[[], Tokenizer]
TOKENIZERS: dict[str, Build] = {"byte-level": byte_level, "sentencepiece": sentencepiece}
HARD = "Größe 日本語 👩‍🚀 naïve\n\n\tdef f(): pass  # 🎉"

each_tokenizer = pytest.mark.parametrize("build", TOKENIZERS.values(), ids=TOKENIZERS)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def streamed(tokens: TokenBytes, groups: list[list[int]]) -> str:
    detokenizer = Detokenizer(tokens)
    return "".join(detokenizer.push(group) for group in groups)


@each_tokenizer
def test_ids_give_the_original_text_one_by_one(build: Build) -> None:
    tokenizer = build()
    ids = ids_of(tokenizer, HARD)
    tokens = TokenBytes(tokenizer)
    assert any(tokens.text(token) == "\ufffd" for token in ids), (
        "some characters take several tokens"
    )
    assert streamed(tokens, [[token] for token in ids]) == HARD


@each_tokenizer
@settings(max_examples=150)
@given(data=st.data())
def test_text_does_not_depend_on_how_ids_are_grouped(build: Build, data: st.DataObject) -> None:
    tokenizer = build()
    tokens = TokenBytes(tokenizer)
    ids = data.draw(st.lists(st.integers(0, len(tokens) - 1), max_size=40))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    ends = [0, *cuts, len(ids)]
    groups = [ids[a:b] for a, b in pairwise(ends)]
    whole = b"".join(tokens[token] for token in ids)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    assert streamed(tokens, groups) == decoder.decode(whole)


@each_tokenizer
@settings(max_examples=150)
@given(text=st.text(max_size=60).filter(lambda text: not any(s in text for s in SPECIAL)))
def test_the_joined_bytes_of_tokens_are_the_utf8_of_the_text(build: Build, text: str) -> None:
    tokenizer = build()
    text = text.replace("▁", "_")  # sentencepiece writes a space as this mark
    tokens = TokenBytes(tokenizer)
    assert b"".join(tokens[token] for token in ids_of(tokenizer, text)) == text.encode()


@each_tokenizer
def test_text_after_a_first_word_equals_the_librarys_decode(build: Build) -> None:
    tokenizer = build()
    ids = ids_of(tokenizer, "The dog" + HARD)
    assert streamed(TokenBytes(tokenizer), [ids]) == tokenizer.decode(ids)


@each_tokenizer
def test_an_incomplete_character_is_withheld_until_it_is_complete(build: Build) -> None:
    tokenizer = build()
    ids = ids_of(tokenizer, "👩")
    assert len(ids) == 4
    detokenizer = Detokenizer(TokenBytes(tokenizer))
    assert [detokenizer.push([token]) for token in ids] == ["", "", "", "👩"]


@each_tokenizer
def test_an_incomplete_last_character_is_not_shown(build: Build) -> None:
    tokenizer = build()
    ids = ids_of(tokenizer, "ok👩")
    for length in (1, 2, 3):
        assert streamed(TokenBytes(tokenizer), [ids[:-length]]) == "ok"


def test_one_invalid_byte_does_not_spoil_the_characters_around_it() -> None:
    tokenizer = sentencepiece()
    byte = id_of(tokenizer, "<0xFF>")
    ids = [*ids_of(tokenizer, "é"), byte, *ids_of(tokenizer, "é")]
    assert streamed(TokenBytes(tokenizer), [ids]) == "é\ufffdé"
    assert tokenizer.decode(ids) == "\ufffd" * 5, (
        "the library's decoder spoils the characters around it"
    )


def test_the_space_before_an_answers_first_word_is_kept() -> None:
    tokenizer = sentencepiece()
    fox = id_of(tokenizer, "▁fox")
    assert Detokenizer(TokenBytes(tokenizer)).push([fox]) == " fox"
    assert tokenizer.decode([fox]) == "fox"


@each_tokenizer
def test_special_tokens_are_skipped_but_named_on_their_own(build: Build) -> None:
    tokenizer = build()
    special = id_of(tokenizer, SPECIAL[0])
    tokens = TokenBytes(tokenizer)
    assert tokens[special] == b""
    assert tokens.text(special) == SPECIAL[0]
    around = [*ids_of(tokenizer, "fox"), special, *ids_of(tokenizer, "dog")]
    assert streamed(tokens, [around]) == "foxdog"
    assert streamed(tokens.showing({special}), [around]) == f"fox{SPECIAL[0]}dog"


@each_tokenizer
def test_single_special_tokens_can_be_shown(build: Build) -> None:
    tokenizer = build()
    shown, hidden = (id_of(tokenizer, special) for special in SPECIAL)
    tokens = TokenBytes(tokenizer)
    view = tokens.showing([shown])
    around = [*ids_of(tokenizer, "fox"), shown, hidden, *ids_of(tokenizer, "dog")]
    assert streamed(view, [around]) == f"fox{SPECIAL[0]}dog"
    assert streamed(tokens, [around]) == "foxdog"
    assert tokens.showing(()) is tokens
    assert tokens.special_token(SPECIAL[0]) == shown
    assert tokens.special_token(ADDED) is None


@each_tokenizer
def test_added_tokens_that_are_not_special_are_text(build: Build) -> None:
    tokenizer = build()
    assert Detokenizer(TokenBytes(tokenizer)).push([id_of(tokenizer, ADDED)]) == ADDED


@each_tokenizer
def test_ids_beyond_the_vocabulary_add_nothing(build: Build) -> None:
    tokens = TokenBytes(build())
    assert tokens[len(tokens) + 5] == b""
    assert tokens.text(len(tokens) + 5) == ""


def test_the_text_of_a_partial_character_is_a_replacement_character() -> None:
    tokenizer = byte_level()
    tokens = TokenBytes(tokenizer)
    first = ids_of(tokenizer, "👩")[0]
    assert tokens[first] == b"\xf0"
    assert tokens.text(first) == "\ufffd"


def test_all_256_bytes_have_a_byte_level_token() -> None:
    assert {spelled for spelled in TokenBytes(byte_level()) if len(spelled) == 1} == {
        bytes([byte]) for byte in range(256)
    }


def test_a_byte_level_added_token_outside_the_byte_alphabet_is_literal() -> None:
    tokenizer = Tokenizer.from_str(byte_level().to_str())
    tokenizer.add_tokens(["two words 日本"])
    assert TokenBytes(tokenizer)[id_of(tokenizer, "two words 日本")] == ("two words 日本".encode())


def test_a_metaspace_decoder_is_supported() -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁a": 0, "b": 1}, unk_token="b"))
    tokenizer.decoder = decoders.Metaspace()
    assert Detokenizer(TokenBytes(tokenizer)).push([0, 1, 0]) == " ab a"


@pytest.mark.parametrize("decoder", [None, decoders.CTC(), decoders.WordPiece()])
def test_an_unsupported_decoder_is_an_error_that_names_it(decoder: decoders.Decoder | None) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    if decoder is not None:
        tokenizer.decoder = decoder
    name = "null" if decoder is None else type(decoder).__name__
    with pytest.raises(ModelError, match=f"decoder {name} is not supported"):
        TokenBytes(tokenizer)


def test_the_demo_models_tokenizer_is_supported() -> None:
    path = Path(__file__).parents[3] / "configs" / "demo" / "target" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    ids = ids_of(tokenizer, HARD)
    assert streamed(TokenBytes(tokenizer), [[token] for token in ids]) == HARD
