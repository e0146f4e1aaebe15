"""A check whether a grammar compiles, and within the time and memory of the process that checks.

llguidance recurses along rules and references, so a chain of some thousands of them overflows the
stack and ends the process; some expressions take minutes and gigabytes, which only the end of the
process stops. So the check belongs in a process that may end, under limits. A grammar that passes
it, with a quarter of the stack, compiles in the engine too.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import count, islice
from threading import Thread, stack_size

from engine.errors import RequestError
from engine.sampling.grammar.grammar import compiler

MAX_CHARACTERS = 256 << 10  # of a grammar
STACK_BYTES = 4 << 20


class GrammarChecker:
    """A checker of grammars for one model, without the model's vocabulary.

    The model's own tokenizer would take 70 to 170 MB and over a second in llguidance's form. The
    checker's has the 256 bytes and the added tokens, which grammars name. With it, the lexer and
    the first row of the parser are built as in the engine, which takes nearly all of the time. Fuel
    bounds how far they are followed along the model's tokens.
    """

    def __init__(self, added_tokens: Mapping[str, int], vocab_size: int) -> None:
        """Create a checker.

        Args:
            added_tokens: the ids of the tokens that were added to the vocabulary, by spelling.
            vocab_size: the number of tokens that grammars may name by id.
        """
        self._added_tokens = added_tokens
        self._vocab_size = vocab_size

    def prepare(self) -> None:
        """Build the tokenizer (0.1 s for 150,000 tokens), so that forked processes share it."""
        _ = self._compile  # cached by this

    def reason(self, source: str) -> str | None:
        """Return the reason why a grammar cannot be used, or None if it compiles.

        This may end the process; see above.
        """
        if len(source) > MAX_CHARACTERS:
            return f"it has {len(source)} characters; at most {MAX_CHARACTERS} are allowed"
        found: list[str | None] = []
        compile_grammar = self._compile

        def check() -> None:
            try:
                compile_grammar(source)
                found.append(None)
            except RequestError as error:
                found.append(str(error))

        before = stack_size(STACK_BYTES)
        thread = Thread(target=check)
        thread.start()
        stack_size(before)
        thread.join()
        return found[0] if found else "the parser failed"

    @cached_property
    def _compile(self) -> Callable[[str], object]:
        return compiler(_Bytes(self._added_tokens, self._vocab_size))


class _Bytes:
    """A tokenizer of single bytes in the form of `TokenizerWrapper`; added tokens have their ids.

    llguidance takes each added token that is written `<...>` for a special one.
    """

    bos_token_id = None

    def __init__(self, added_tokens: Mapping[str, int], vocab_size: int) -> None:
        spellings = {token: spelling for spelling, token in added_tokens.items()}
        others = (token for token in count() if token not in spellings)
        self._ids = list(islice(others, 256))  # of the bytes
        self.eos_token_id = next(others)
        size = max(vocab_size, self.eos_token_id + 1, *(token + 1 for token in spellings))
        self.tokens = [spellings.get(token, "").encode() for token in range(size)]
        for byte, token in enumerate(self._ids):
            self.tokens[token] = bytes([byte])
        named = (t for t, text in spellings.items() if text.startswith("<") and text.endswith(">"))
        self.special_token_ids = sorted(named)

    def __call__(self, text: bytes) -> list[int]:
        return [self._ids[byte] for byte in text]
