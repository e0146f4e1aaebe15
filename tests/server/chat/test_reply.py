"""Tests that the deltas of a choice do not depend on how passes group its tokens."""

from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from tokenizers import Tokenizer

from engine.messages import Origin, TokenLogprob, Tokens
from engine.parsing.parser import Chain
from engine.parsing.selection import known_formats
from engine.text.detokenize import Detokenizer, TokenBytes
from server.chat.reply import Reply

DEMO = Tokenizer.from_file(str(Path(__file__).parents[3] / "configs/demo/target/tokenizer.json"))
BYTES = TokenBytes(DEMO)
END = 2  # <|im_end|>
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": "né 🙂"}}\n</tool_call>'
TEXTS = [
    f"<think>\nIt is 🙂.\n</think>\n\nSure.\n{CALL}\n{CALL}",
    "Hé! 🙂 <tool_call>no",
    f" \n{CALL}",
    "<think>\nnever ends 🙂",
    "<think>\n\n</think>\n\nOnce upon a time.\n",
]


class Folded:
    """The whole that the deltas of one choice join to; no logprob comes before its text."""

    def __init__(self, ids: list[int], cuts: list[int]) -> None:
        known = known_formats()
        parser = Chain(
            known["think"].parser({}, ""), partial(known["hermes"].parser, {"add": {}}, "")
        )
        reply, detokenizer = (
            Reply(parser, BYTES, logprobs=True, provenance=False),
            Detokenizer(BYTES),
        )
        self.content, self.reasoning = "", ""
        self.calls: list[str] = []
        self.tokens: list[int] = []  # the tokens whose log-probabilities are reported
        joined = b""
        for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
            last = end == len(ids)
            text = detokenizer.push(ids[start:end])
            entries = tuple(TokenLogprob(token, -1.0, ()) for token in ids[start:end])
            finish = "stop" if last else None
            for delta, placed in reply.read(
                Tokens(
                    "r",
                    0,
                    tuple(ids[start:end]),
                    text,
                    entries,
                    origins=(Origin("target", 0, 1),) * (end - start),
                    finish=finish,
                )
            ):
                self.content += delta.get("content") or ""
                self.reasoning += delta.get("reasoning_content", "")
                for call in delta.get("tool_calls", []):
                    if "name" in call["function"]:
                        self.calls.append("")
                    self.calls[call["index"]] += call["function"]["arguments"]
                self.tokens += [p.token for p in placed]
                joined += b"".join(p.shown for p in placed)
                assert self.content.encode().startswith(joined)
        assert joined == self.content.encode()
        self.num_reasoning_tokens = reply.num_reasoning_tokens


@pytest.mark.parametrize("text", TEXTS)
@given(data=st.data())
def test_deltas_do_not_depend_on_how_tokens_are_grouped(text: str, data: st.DataObject) -> None:
    ids = [*DEMO.encode(text, add_special_tokens=False).ids, END]
    cuts = data.draw(st.lists(st.integers(1, len(ids) - 1), max_size=8, unique=True).map(sorted))
    whole, parts = Folded(ids, []), Folded(ids, cuts)
    assert vars(parts) == vars(whole)


def test_api_19_a_token_belongs_to_the_part_of_its_first_character() -> None:
    ids = [*DEMO.encode(TEXTS[0], add_special_tokens=False).ids, END]
    folded = Folded(ids, [])
    assert (folded.content, folded.reasoning) == ("Sure.", "It is 🙂.")
    assert folded.calls == ['{"a": "né 🙂"}'] * 2
    reasoning = DEMO.encode("It is 🙂.", add_special_tokens=False).ids
    assert folded.num_reasoning_tokens == len(reasoning)
    assert len(folded.tokens) == len(DEMO.encode("Sure.", add_special_tokens=False).ids)


def test_without_a_closing_tag_everything_is_reasoning() -> None:
    ids = DEMO.encode(TEXTS[3], add_special_tokens=False).ids
    folded = Folded(ids, [3])
    assert (folded.content, folded.reasoning) == ("", "never ends 🙂")
    assert folded.num_reasoning_tokens == len(ids) - 2  # the tag and the line break
