"""Tests of the stop rules: when an answer ends, and which text is shown before that."""

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from engine.messages import SamplingParams
from engine.text.detokenize import Detokenizer, TokenBytes
from engine.text.stop import StopResult, StopRules
from tests.engine.small_tokenizers import SPECIAL, byte_level, id_of, sentencepiece

EOS = id_of(byte_level(), SPECIAL[0])


def ids_of(text: str) -> list[int]:
    return list(byte_level().encode(text, add_special_tokens=False).ids)


def spelled(text: str) -> list[int]:
    """Return ids that spell a text with one token per byte."""
    tokens = list(TokenBytes(byte_level()))
    return [tokens.index(bytes([byte])) for byte in text.encode()]


def rules(max_tokens: int = 1000, **params: Any) -> StopRules:
    return StopRules(
        SamplingParams(**params),
        eos_token_ids=[EOS],
        max_tokens=max_tokens,
        detokenizer=Detokenizer(TokenBytes(byte_level())),
    )


def run(rule: StopRules, ids: list[int]) -> tuple[str, StopResult, int]:
    """Return the shown text, the last result, and the number of tokens until the end."""
    shown, result = "", StopResult("")
    for token in ids:
        result = rule.push(token)
        shown += result.text
        if result.finish is not None:
            break
    return shown, result, rule.num_tokens


def test_without_stop_strings_text_is_shown_at_once() -> None:
    rule = rules()
    assert [rule.push(token).text for token in spelled("abc")] == ["a", "b", "c"]


def test_a_stop_string_that_spans_tokens_is_never_shown() -> None:
    text, last, taken = run(rules(stop=("STOP",)), spelled("go STOP on"))
    assert (text, last.finish, last.stop_reason, taken) == ("go ", "stop", "STOP", 7)


def test_a_stop_string_inside_one_token_cuts_the_token() -> None:
    token = next(i for i, b in enumerate(TokenBytes(byte_level())) if len(b) >= 3)
    word = TokenBytes(byte_level())[token].decode()
    result = rules(stop=(word[1:-1],)).push(token)
    assert result == StopResult(word[0], "stop", word[1:-1])


def test_a_possible_start_of_a_stop_string_is_withheld_until_it_is_none() -> None:
    rule = rules(stop=("abac",))
    assert [rule.push(token).text for token in spelled("xababd")] == ["x", "", "", "", "ab", "abd"]


def test_withheld_text_is_shown_when_the_length_ends_the_choice() -> None:
    text, last, _ = run(rules(stop=("END!",), max_tokens=5), spelled("x END, no"))
    assert (text, last.finish, last.stop_reason) == ("x END", "length", None)


def test_withheld_text_is_shown_when_the_model_ends_the_choice() -> None:
    text, last, _ = run(rules(stop=("END!",)), [*spelled("x END"), EOS])
    assert (text, last.finish, last.stop_reason) == ("x END", "stop", None)


def test_a_stop_string_completed_by_the_last_token_is_a_stop() -> None:
    text, last, _ = run(rules(stop=("END",), max_tokens=5), spelled("x END"))
    assert (text, last.finish, last.stop_reason) == ("x ", "stop", "END")


def test_the_stop_string_that_is_complete_first_counts() -> None:
    text, last, _ = run(rules(stop=("bcdef", "cd")), spelled("abcdef"))
    assert (text, last.stop_reason) == ("ab", "cd")


def test_of_two_stop_strings_complete_at_once_the_longer_counts() -> None:
    text, last, _ = run(rules(stop=("d", "bcd")), spelled("abcde"))
    assert (text, last.stop_reason) == ("a", "bcd")


def test_a_stop_token_gives_its_id_as_the_reason_and_no_text() -> None:
    stop = spelled("c")[0]
    text, last, taken = run(rules(stop_token_ids=(stop,)), spelled("abcd"))
    assert (text, last.finish, last.stop_reason, taken) == ("ab", "stop", stop, 3)


def test_the_end_of_sequence_token_can_be_ignored() -> None:
    text, last, _ = run(rules(ignore_eos=True, max_tokens=3), [*spelled("a"), EOS, *spelled("b")])
    assert (text, last.finish) == ("ab", "length")


def test_ignore_eos_does_not_affect_stop_tokens() -> None:
    _, last, taken = run(rules(ignore_eos=True, stop_token_ids=(EOS,)), [*spelled("a"), EOS])
    assert (last.finish, last.stop_reason, taken) == ("stop", EOS, 2)


def test_no_stop_rule_applies_to_the_first_min_tokens() -> None:
    ids = [*spelled("aXb"), EOS, *spelled("Xc")]
    text, last, taken = run(rules(stop=("X",), min_tokens=4), ids)
    assert (text, last.finish, last.stop_reason, taken) == ("aXb", "stop", "X", 5)


def test_a_stop_string_may_begin_within_min_tokens_and_end_after_them() -> None:
    text, last, _ = run(rules(stop=("bcd",), min_tokens=3), spelled("abcde"))
    assert (text, last.stop_reason) == ("a", "bcd")


def test_a_stop_string_ignored_within_min_tokens_is_not_found_later() -> None:
    text, last, _ = run(rules(stop=("AB", "xABy"), min_tokens=3), spelled("xABz"))
    assert (text, last.finish) == ("xABz", None)


@pytest.mark.parametrize("max_tokens", [2, 3, 4])
def test_an_incomplete_last_character_is_not_shown(max_tokens: int) -> None:
    text, last, _ = run(rules(max_tokens=max_tokens), spelled("a👩"))
    assert (text, last.finish) == ("a", "length")


def test_a_stop_string_of_characters_cut_into_tokens_is_found() -> None:
    text, last, _ = run(rules(stop=("語",)), spelled("日本語です"))
    assert (text, last.stop_reason) == ("日本", "語")


def test_pushing_a_token_after_the_end_is_an_error() -> None:
    rule = rules(max_tokens=1)
    rule.push(spelled("a")[0])
    with pytest.raises(AssertionError):
        rule.push(spelled("b")[0])


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Return the text up to the stop string that is complete first, and that string."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


WORDS = st.text(alphabet="abé", min_size=1, max_size=5)


@settings(max_examples=400)
@given(text=st.text(alphabet="abé ", max_size=30), stops=st.lists(WORDS, max_size=4))
def test_the_text_does_not_depend_on_the_tokens_that_spell_it(text: str, stops: list[str]) -> None:
    want = expected(text, stops)
    for ids in (spelled(text), ids_of(text)):
        shown, last, _ = run(rules(stop=tuple(stops)), [*ids, EOS])
        assert (shown, last.stop_reason) == want


@settings(max_examples=200)
@given(text=st.text(alphabet="abé ", max_size=30), stops=st.lists(WORDS, min_size=1, max_size=4))
def test_the_shown_text_is_always_a_prefix_of_the_answer(text: str, stops: list[str]) -> None:
    rule = rules(stop=tuple(stops))
    want, _ = expected(text, stops)
    shown = ""
    for token in spelled(text):
        result = rule.push(token)
        shown += result.text
        assert want.startswith(shown)
        if result.finish is not None:
            break


def test_a_stop_string_of_sentencepiece_byte_tokens_is_found() -> None:
    tokenizer = sentencepiece()
    rule = StopRules(
        SamplingParams(stop=("語",)),
        eos_token_ids=[],
        max_tokens=100,
        detokenizer=Detokenizer(TokenBytes(tokenizer)),
    )
    text, last, _ = run(rule, tokenizer.encode("fox 日本語です", add_special_tokens=False).ids)
    assert (text, last.stop_reason) == ("fox 日本", "語")
