"""The check of a grammar that another server sends, in the text process of this one."""

from server.chat.grammars import checked
from server.text.tokenizer import Tokenizer


def check_grammar(tokenizer: Tokenizer, raw: bytes) -> None:
    """Raise `ApiError` 400 unless a grammar compiles within the limits of a request."""
    checked(raw.decode(), "params.grammar", tokenizer.grammar_checker.reason)
