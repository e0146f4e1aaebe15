"""The interface of whatever runs text work: tokenizing, templates and checks of requests."""

from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from server.text.messages import TextFacts
from server.text.tokenizer import Tokenizer

P = ParamSpec("P")
T = TypeVar("T")


class TextWork(Protocol):
    """An interface for running text work; `TextProcess` is the implementation outside of tests.

    Functions and their arguments are pickled, so the functions must be importable by name.
    """

    def renew(self) -> None:
        """Start whatever is needed to load another tokenizer."""

    def rest(self) -> None:
        """Give memory back after the model was unloaded; running calls are finished."""

    async def load(self, folder: str, chat_template: str | None) -> TextFacts:
        """Load the tokenizer of a folder and return what the front end needs to know of it.

        Raises `ModelError` when the tokenizer or its chat template cannot be used.
        """

    async def call(
        self, function: Callable[Concatenate[bytes, P], T], raw: bytes, *args: P.args, **_: P.kwargs
    ) -> T:
        """Run `function(raw, *args)` in a worker and return its result.

        Raises the `ApiError` that the function raised, or one that says which limit ended it.
        """

    async def call_on_model(
        self,
        function: Callable[Concatenate[Tokenizer, bytes, P], T],
        raw: bytes,
        *args: P.args,
        **_: P.kwargs,
    ) -> T:
        """Run `function(tokenizer, raw, *args)` in a worker and return its result, as `call`."""

    async def close(self) -> None:
        """End all processes and the calls that run in them."""
