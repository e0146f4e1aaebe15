"""Grammars: which tokens may come next in an answer. Only this file uses the parser, llguidance.

Masks allow only the tokens into which the tokenizer would split the text: where only one text may
follow, its tokens are forced. The state of a grammar depends only on the tokens of the answer.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine.errors import RequestError
from engine.sampling.grammar.token_ranks import TokenRanks, token_ranks

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

Mask = NDArray[np.bool_]  # [V]: the tokens that are allowed

MAX_REASON_CHARACTERS = 500  # characters


def compiler(tokenizer: object) -> Callable[[str], "LLMatcher"]:
    """Return the function `compiled` for a small tokenizer.

    Args:
        tokenizer: has the attributes that `TokenizerWrapper` reads, and returns the ids of bytes.
    """
    from llguidance import LLTokenizer, TokenizerWrapper

    own = LLTokenizer(TokenizerWrapper(tokenizer), slices=[])  # slices speed up large ones
    return partial(compiled, own)


def compiled(tokenizer: "LLTokenizer", source: str) -> "LLMatcher":
    """Return a compiled grammar, before its first token. It does not hold the GIL for most of it.

    Raises `RequestError` with the code `invalid_grammar` if it does not compile or matches no text.
    """
    from llguidance import LLMatcher

    matcher = LLMatcher(tokenizer, source, log_level=0, limits=_limits())
    if matcher.is_error():
        raise RequestError(_shorten(matcher.get_error()), "invalid_grammar")
    matcher.compute_bitmask()
    if matcher.is_error():
        raise RequestError(_mask_error(matcher), "invalid_grammar")
    return matcher


def regex_to_lark(regex: str) -> str:
    """Return a Lark grammar of all texts that a regular expression matches entirely."""
    from llguidance import regex_to_lark

    return f"start: /{regex_to_lark(regex, '')}/"


def regex_part(regex: str) -> str:
    """Return a regular expression of JSON schema as part of one in a Lark grammar."""
    from llguidance import regex_to_lark

    return regex_to_lark(regex, "dw")


def to_lark(grammar: str) -> str:
    """Return a grammar in Lark syntax, converted from llama.cpp's GBNF if necessary.

    Raises `ValueError` if it is neither.
    """
    from llguidance import grammar_from

    return grammar_from("grammar", grammar)


def _limits() -> "LLParserLimits":
    """Return the parser's limits, about ten times what ordinary grammars need.

    The calls of 50 tools need 1,318 symbols and up to 33,000 of the initial fuel, and a schema of
    300 optional properties 2,831 symbols. A mask needs at most 10,500 of the lexer's fuel and 2,050
    items. The parser compares each item of a row with all others, so a mask takes a time that is
    quadratic in the size of the grammar: 2.7 s at 50,000 symbols, 0.18 s at 10,000. The limits do
    not bound the time to compile, which can be quadratic as well: `GrammarChecker` does.
    """
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=75_000,
        step_lexer_fuel=50_000,
        step_max_items=10_000,
        max_lexer_states=20_000,
        max_grammar_size=10_000,
        verbose_errors=False,
    )


class Grammars:
    """A compiler of grammars for the tokens of one model."""

    def __init__(
        self, tokenizer_json: Callable[[], str], vocab_size: int, eos_token_ids: Iterable[int]
    ) -> None:
        """Create a compiler without loading the tokenizer.

        Args:
            tokenizer_json: returns the content of tokenizer.json; called on first use.
            vocab_size: the size V of the logits.
        """
        self.vocab_size = vocab_size
        self.eos_token_ids = tuple(sorted(eos_token_ids))
        self._tokenizer_json = tokenizer_json

    @cached_property
    def tokenizer(self) -> "LLTokenizer":
        """The tokenizer in llguidance's form. Raises `ValueError` if it is not supported."""
        from llguidance import LLTokenizer

        eos = list(self.eos_token_ids)
        return LLTokenizer(self._tokenizer_json(), n_vocab=self.vocab_size, eos_token=eos)

    @cached_property
    def ranks(self) -> tuple[TokenRanks, ...]:
        """The orders in which tokens are tried when a text has to be ended."""
        special, spelling = self.tokenizer.is_special_token, self.tokenizer.decode_bytes
        tokens = range(self.vocab_size)
        return token_ranks([b"" if special(token) else spelling([token]) for token in tokens])

    def compile(self, source: str) -> "Grammar":
        """Return a compiled grammar, before its first token.

        Raises `RequestError` with the code `invalid_grammar` if it does not compile or matches no
        text, and with `unsupported_parameter` if the model's tokenizer cannot be used.
        """
        try:
            tokenizer = self.tokenizer
        except ValueError as error:
            reason = f"This model's tokenizer cannot be used with a grammar: {error}"
            raise RequestError(reason, "unsupported_parameter") from error
        return Grammar(self, compiled(tokenizer, source))


class Grammar:
    """A grammar in the state after the tokens of one answer.

    Drafted tokens are tried in a `trial`, which cannot affect the answer: if a trial exceeds a
    limit of the parser, the state is computed again from the tokens of the answer.
    """

    def __init__(self, grammars: Grammars, start: "LLMatcher") -> None:
        self.grammars = grammars
        self._start = start
        self._matcher = start.deep_copy()
        self._tokens: list[int] = []
        self._num_tried = 0

    def copy(self) -> "Grammar":
        """Return a copy of the grammar in the state before the first token."""
        return Grammar(self.grammars, self._start)

    def is_complete(self) -> bool:
        """Return True if nothing may follow: neither text nor an end-of-sequence token."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def is_accepting(self) -> bool:
        """Return True if the answer may end here."""
        return self._matcher.is_accepting() and not self._matcher.is_error()

    def consume(self, token: int) -> None:
        """Consume the answer's next token.

        Raises `RequestError` if a limit of the parser is exceeded.
        """
        self._matcher.consume_token(token)
        self._tokens.append(token)
        self._raise_error()

    def allowed(self) -> Mask:
        """Return the mask of tokens that may come next, end-of-sequence tokens included.

        Raises `RequestError` if a limit of the parser is exceeded.
        """
        mask = self.mask()
        self._raise_error()
        assert mask is not None
        return mask

    @contextmanager
    def trial(self, path: Sequence[int] = ()) -> Iterator[bool]:
        """Consume a path until the end of the block, and yield True if it matches.

        Trials can be nested.
        """
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
        """Inside a trial, consume a path as far as it matches. Return True if all of it does."""
        taken = self._matcher.try_consume_tokens(list(path)) if path else 0
        self._num_tried += taken
        return taken == len(path) and not self._matcher.is_error()

    def mask(self) -> Mask | None:
        """Return the mask of tokens that may come next.

        Return None if no token may follow, or if a limit of the parser is exceeded.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_stopped():  # also after an error
            return None
        return np.unpackbits(bits, count=self.grammars.vocab_size, bitorder="little").view(np.bool_)

    def forced(self) -> list[int]:
        """Return the tokens of the only text that may follow, as far as there is only one."""
        return [] if self._matcher.is_stopped() else self._matcher.compute_ff_tokens()

    def matches(self, path: Sequence[int]) -> bool:
        """Return True if a path may follow, whether or not the tokenizer would split it so."""
        return self.num_matching(path) == len(path)

    def num_matching(self, path: Sequence[int]) -> int:
        """Return how many tokens of a path may follow, from its first token on."""
        return self._matcher.validate_tokens(list(path))

    def _raise_error(self) -> None:
        if self._matcher.is_error():
            reason = _shorten(self._matcher.get_error())
            raise RequestError(f"The grammar cannot be followed: {reason}", "invalid_grammar")


def _mask_error(matcher: "LLMatcher") -> str:
    """Return why there is no first mask: a limit was exceeded, or no token may begin an answer."""
    reason: str = matcher.get_error()
    if "oo many" in reason:  # "Too many items", "too many expressions", "too many states"
        return f"The grammar is too complex: {_shorten(reason)}"
    return "The grammar matches no text."


def _shorten(reason: str) -> str:
    is_short = len(reason) <= MAX_REASON_CHARACTERS
    return reason if is_short else f"{reason[:MAX_REASON_CHARACTERS]}..."
