"""Text work in this process, with the fake tokenizer: what a `TextProcess` does, and no process."""

import pickle
from collections.abc import Callable
from typing import Any

from server.text.limits import LANES
from server.text.messages import Call, TextFacts
from server.text.tokenizer import Tokenizer
from server.text.worker import run
from tests.server.fake_engine import load_fake_tokenizer


class FakeText:
    """See `TextWork`. What is called and returned is pickled, as it is on the way to a process."""

    def __init__(self) -> None:
        self._tokenizer: Tokenizer | None = None

    def renew(self) -> None:
        """There is nothing to prepare."""

    def rest(self) -> None:
        self._tokenizer = None

    async def load(self, folder: str, chat_template: str | None) -> TextFacts:
        self._tokenizer = load_fake_tokenizer(folder, chat_template)
        return TextFacts(self._tokenizer.bytes, self._tokenizer.template)

    async def call(self, function: Callable[..., Any], raw: bytes, *args: Any, **_: Any) -> Any:
        return self._run(Call(function, args, on_model=False), raw)

    async def call_on_model(
        self, function: Callable[..., Any], raw: bytes, *args: Any, **_: Any
    ) -> Any:
        return self._run(Call(function, args, on_model=True), raw)

    async def close(self) -> None:
        """There is nothing to end."""

    def _run(self, call: Call, raw: bytes) -> Any:
        arrived = pickle.loads(pickle.dumps(call))
        answer = pickle.loads(pickle.dumps(run(arrived, raw, self._tokenizer, LANES[0])))
        if answer.error is not None:
            raise answer.error
        assert not answer.bug, answer.bug
        return answer.value
