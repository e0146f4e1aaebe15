"""Train the tokenizer of the demo models, and pack their corpus into rows of token ids."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from configs.demo.chats import Chat

VOCABULARY = 4096
END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, START, END)
# Added tokens that are not special, so that decoding keeps them for the parsers.
MARKS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<tools>",
    "</tools>",
)
# Words with the space before them, single digits (so that sums can be learned), signs, line ends.
WORDS = r"'(?:s|t|re|ve|m|ll|d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
CONTEXT = 2048


def train_tokenizer(texts: Iterable[str], template: Path) -> PreTrainedTokenizerFast:
    """Train byte-level BPE of exactly `VOCABULARY` tokens; raise ValueError on too little text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f"{WORDS}|{SPACES}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKS),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"{tokenizer.get_vocab_size()} tokens: the text is too uniform")
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END_OF_TEXT,
        chat_template=template.read_text(),
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def template_only(template: Path) -> PreTrainedTokenizerFast:
    """Return a tokenizer that only renders chats, whose text trains the real tokenizer."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer(models.BPE()), chat_template=template.read_text()
    )


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Return the id of one of our own tokens."""
    token_id = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(token_id, int)
    return token_id


def render(chat: Chat, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the whole conversation as text."""
    messages: list[dict[str, str]] = list(chat.messages)
    tools: list[dict[Any, Any] | Callable[..., Any]] = list(chat.tools)
    return str(tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False))


@dataclass(frozen=True)
class Document:
    """The token ids of one text, and which of them the model learns to predict."""

    ids: list[int]
    learned: list[bool]


class Encoder:
    """An encoder of texts into documents, which marks the tokens to learn."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.end_of_text = token_id(tokenizer, END_OF_TEXT)
        self.end = token_id(tokenizer, END)
        self.header: list[int] = tokenizer.encode(f"{START}assistant\n", add_special_tokens=False)
        self.no_thought: list[int] = tokenizer.encode(
            "<think>\n\n</think>\n\n", add_special_tokens=False
        )

    def plain(self, text: str) -> Document:
        """Return a text without a chat, all of which is learned."""
        ids = [*self.tokenizer.encode(text, add_special_tokens=False), self.end_of_text]
        return Document(ids, [True] * len(ids))

    def sheet(self, text: str) -> Document:
        """Return lines of sums, of which only the text after each equals sign is learned."""
        ids, learned = [], []
        for line in text.splitlines(keepends=True):
            left, right = line.split(" =")
            for part, counts in ((left + " =", False), (right, True)):
                part_ids = self.tokenizer.encode(part, add_special_tokens=False)
                ids += part_ids
                learned += [counts] * len(part_ids)
        return Document([*ids, self.end_of_text], [*learned, False])

    def chat(self, text: str) -> Document:
        """Return a rendered chat, of which the answers with their end tokens are learned.

        An empty thinking block belongs to the prompt, so it is not learned.
        """
        ids = [*self.tokenizer.encode(text, add_special_tokens=False), self.end_of_text]
        learned = [False] * len(ids)
        for start in self.answer_starts(ids):
            for place in range(start, ids.index(self.end, start) + 1):
                learned[place] = True
        return Document(ids, learned)

    def answer_starts(self, ids: list[int]) -> Iterator[int]:
        """Yield the index of each answer's first token, after header and empty thinking block."""
        for place, token in enumerate(ids):
            if token != self.header[0]:
                continue
            start = place + len(self.header)
            if ids[place:start] != self.header:
                continue
            block = ids[start : start + len(self.no_thought)]
            yield start + len(block) if block == self.no_thought else start


def rows(
    documents: list[Document], length: int, rng: random.Random
) -> Iterator[tuple[list[int], list[bool]]]:
    """Yield rows of `length` tokens without end; the last document of a row is cut.

    Each row begins with a document, so that position 0 is the start of a text in training as in
    use.
    """
    ids: list[int] = []
    learned: list[bool] = []
    while True:
        for document in rng.sample(documents, len(documents)):
            ids += document.ids
            learned += document.learned
            if len(ids) >= length:
                yield ids[:length], learned[:length]
                ids, learned = [], []


def batches(
    documents: list[Document], length: int, tokens: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches without end: ids and learned marks, each [tokens // length, length]."""
    stream = rows(documents, length, random.Random(seed))
    while True:
        picked = [next(stream) for _ in range(tokens // length)]
        yield torch.tensor([ids for ids, _ in picked]), torch.tensor([m for _, m in picked])
