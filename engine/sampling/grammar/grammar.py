"""Grammars: which tokens may come next in an answer. Only this file uses llguidance, the parser.

Masks hold tokens as the tokenizer would cut the text: where only one text may follow, its tokens
are forced. The state of a grammar depends on nothing but the answer's tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine.errors import RequestError
from engine.sampling.grammar.token_ranks import TokenRanks, token_ranks

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

Mask = NDArray[np.bool_]  # [V]: the tokens that are allowed

LONGEST_REASON = 500  # characters


def fault_of(source: str) -> str | None:
    """Return why a grammar cannot be used; None if it compiles.

    This takes up to some tenths of a second, mostly without the interpreter's lock, so call it in a
    thread. Names of special tokens are not looked up, since no tokenizer is known here.
    """
    from llguidance import LLMatcher

    is_error, messages = LLMatcher.validate_grammar_with_warnings(source, limits=_limits())
    return messages[0] if is_error else None


def regex_to_lark(regex: str) -> str:
    """Return the Lark grammar of the texts that a regular expression matches as a whole."""
    from llguidance import regex_to_lark

    return f"start: /{regex_to_lark(regex, '')}/"


def to_lark(grammar: str) -> str:
    """Return a grammar of Lark's or llama.cpp's syntax (GBNF) in Lark's. Raises ValueError."""
    from llguidance import grammar_from

    return grammar_from("grammar", grammar)


def _limits() -> "LLParserLimits":
    """Return bounds: tenths of a second to compile, some 20 ms for a mask, 50 MB in all."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=20_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


class Grammars:
    """Compiles grammars for the tokens of one model."""

    def __init__(
        self, tokenizer_json: Callable[[], str], vocab_size: int, eos_token_ids: Iterable[int]
    ) -> None:
        """Take the size V of the logits; `tokenizer_json` is called on first use."""
        self.vocab_size = vocab_size
        self.eos_token_ids = tuple(sorted(eos_token_ids))
        self._tokenizer_json = tokenizer_json

    @cached_property
    def tokenizer(self) -> "LLTokenizer":
        from llguidance import LLTokenizer

        eos = list(self.eos_token_ids)
        return LLTokenizer(self._tokenizer_json(), n_vocab=self.vocab_size, eos_token=eos)

    @cached_property
    def ranks(self) -> tuple[TokenRanks, ...]:
        """The orders in which tokens are tried to end a text."""
        special, spelling = self.tokenizer.is_special_token, self.tokenizer.decode_bytes
        tokens = range(self.vocab_size)
        return token_ranks([b"" if special(token) else spelling([token]) for token in tokens])

    def compile(self, source: str) -> "Grammar":
        """Return the grammar before its first token. Raises `RequestError` `invalid_grammar`."""
        from llguidance import LLMatcher

        try:
            tokenizer = self.tokenizer
        except ValueError as error:
            reason = f"This model's tokenizer cannot be used with a grammar: {error}"
            raise RequestError(reason, "unsupported_parameter") from error
        matcher = LLMatcher(tokenizer, source, log_level=0, limits=_limits())
        if matcher.is_error():
            raise RequestError(_shortened(matcher.get_error()), "invalid_grammar")
        matcher.compute_bitmask()
        if matcher.is_error():
            raise RequestError("The grammar matches no text.", "invalid_grammar")
        return Grammar(self, matcher)


class Grammar:
    """A grammar after the tokens of one answer.

    Drafted tokens are tried in a `trial`, which cannot change the answer: if a trial breaks a bound
    of the parser, the state is built anew from the answer's tokens.
    """

    def __init__(self, grammars: Grammars, start: "LLMatcher") -> None:
        self.grammars = grammars
        self._start = start
        self._matcher = start.deep_copy()
        self._tokens: list[int] = []
        self._num_tried = 0

    def copy(self) -> "Grammar":
        """Return the same grammar before the first token."""
        return Grammar(self.grammars, self._start)

    def is_complete(self) -> bool:
        """Return True if nothing may follow: neither text nor an end-of-sequence token."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def is_accepting(self) -> bool:
        """Return True if the answer may end here."""
        return self._matcher.is_accepting() and not self._matcher.is_error()

    def consume(self, token: int) -> None:
        """Take the answer's next token. Raises `RequestError` if a bound of the parser breaks."""
        self._matcher.consume_token(token)
        self._tokens.append(token)
        self._raise_error()

    def allowed(self) -> Mask:
        """Return the tokens that may come next, end-of-sequence too. Raises `RequestError`."""
        mask = self.mask()
        self._raise_error()
        assert mask is not None
        return mask

    @contextmanager
    def trial(self, path: Sequence[int] = ()) -> Iterator[bool]:
        """Follow a path until the end of the block, and yield True if it matches. May be nested."""
        before = self._num_tried
        try:
            yield self.attempt(path)
        finally:
            if not self._matcher.is_error():
                self._matcher.rollback(self._num_tried - before)
            self._num_tried = before
            if before == 0 and self._matcher.is_error():
                self._matcher = self._start.deep_copy()
                self._matcher.consume_tokens(self._tokens)

    def attempt(self, path: Sequence[int]) -> bool:
        """Inside a trial, follow a path as far as it matches. Return True if all of it does."""
        taken = self._matcher.try_consume_tokens(list(path)) if path else 0
        self._num_tried += taken
        return taken == len(path) and not self._matcher.is_error()

    def mask(self) -> Mask | None:
        """Return the tokens that may come next; None if nothing may, or a bound is broken."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_stopped():  # an error too
            return None
        return np.unpackbits(bits, count=self.grammars.vocab_size, bitorder="little").view(np.bool_)

    def forced(self) -> list[int]:
        """Return the tokens of the only text that may follow, as far as there is only one."""
        return [] if self._matcher.is_stopped() else self._matcher.compute_ff_tokens()

    def matches(self, path: Sequence[int]) -> bool:
        """Return True if a path may follow, however it is cut into tokens."""
        return self._matcher.validate_tokens(list(path)) == len(path)

    def _raise_error(self) -> None:
        if self._matcher.is_error():
            reason = _shortened(self._matcher.get_error())
            raise RequestError(f"The grammar cannot be followed: {reason}", "invalid_grammar")


def _shortened(reason: str) -> str:
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}..."
