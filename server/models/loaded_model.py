"""A model whose engine was started, which requests borrow."""

from dataclasses import dataclass, replace
from typing import Self

from engine.messages import ModelInfo
from engine.moves import Replanned
from engine.parsing.selection import FALLBACK, Formats, known_formats
from engine.process.client import EngineClient
from server.config.model_file import SamplingSection
from server.config.registry import ModelEntry
from server.errors import ApiError
from server.models.statistics import EngineStatistics
from server.text.messages import TextFacts
from server.text.work import TextWork


@dataclass
class LoadedModel:
    """A model whose engine was started, with the number of requests that hold it."""

    entry: ModelEntry
    engine: EngineClient
    info: ModelInfo
    text: TextWork  # runs work with the model's tokenizer
    facts: TextFacts
    statistics: EngineStatistics
    formats: Formats  # the formats of tool calls and reasoning in its answers
    num_borrowers: int = 0

    @property
    def sampling(self) -> SamplingSection:
        """The sampling defaults: of the model's file, else of its generation_config.json."""
        return self.entry.sampling.over(self.info.sampling)

    def borrow(self) -> Self:
        """Count one more request that holds the model, and return the model."""
        self.num_borrowers += 1
        return self

    def give_back(self) -> None:
        """Count one request less that holds the model."""
        self.num_borrowers -= 1

    def note_move(self, moved: Replanned) -> None:
        """Note where units of weights are, after some have moved."""
        self.info = replace(
            self.info, plan=moved.plan, tiers=moved.tiers, tier_bytes=moved.tier_bytes
        )

    async def restart(self, timeout: float) -> None:
        """Wait until the restarting engine is ready again.

        Raises `ApiError` 503 after `timeout` seconds.
        """
        try:
            self.info = await self.engine.ready(timeout)
        except TimeoutError as error:
            message = "The engine restarts; try again later."
            raise ApiError.unavailable(message, "model_loading") from error

    @property
    def has_tool_format(self) -> bool:
        """Whether answers are read in a known format of tool calls, not in words of the server."""
        return self.formats.tools is not known_formats()[FALLBACK]

    @property
    def usable(self) -> bool:
        """Whether the engine can still serve; if not, the model has to be loaded again."""
        return self.engine.state not in ("failed", "closed")
