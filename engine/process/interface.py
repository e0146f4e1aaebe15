"""What the front end needs of an engine, wherever that runs."""

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from engine.messages import Generate, ModelInfo, Tokens
from engine.moves import LimitMemory
from engine.process.engine_process import State


class Engine(Protocol):
    """One model that is loaded and runs requests: `EngineClient` has a process of its own for it.

    All methods are called in the event loop that called `start`.
    """

    @property
    def state(self) -> State:
        """Whether it takes requests."""

    @property
    def info(self) -> ModelInfo | None:
        """The properties of the model; None before it is loaded."""

    @property
    def num_outstanding(self) -> int:
        """The number of requests that were accepted and have not finished."""

    @property
    def num_prompt_tokens_left(self) -> int:
        """The number of prompt tokens of all requests that no pass has run yet."""

    def position(self, request_id: str) -> int:
        """Return a waiting request's position in the queue, from 1; 0 if it is not known."""

    async def start(self) -> ModelInfo:
        """Load the model and describe it. Raise `ModelError` or `EngineDied`."""

    async def ready(self, timeout: float) -> ModelInfo:
        """Wait until the model is loaded, and describe it. Raise `TimeoutError` too."""

    def run(
        self,
        message: Generate,
        *,
        on_prompt: Callable[[int], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> AsyncGenerator[Tokens, None]:
        """Return the stream of a request, as `EngineClient.run` says."""

    def limit_memory(self, limits: LimitMemory) -> None:
        """Set limits of memory, which hold until the next ones."""

    def drain(self, reason: str) -> None:
        """Refuse new and waiting requests with this reason."""

    async def close(self) -> None:
        """Give the model up. Running requests get an error."""
