"""A model whose engine was started, which requests borrow."""

import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from cluster.held_pages import PageBooks
from engine.messages import Generate, ModelInfo, Tokens
from engine.moves import Replanned
from engine.parsing.selection import FALLBACK, Formats, format_names, known_formats
from engine.process.interface import Engine
from server.config.model_file import SamplingSection
from server.config.registry import ModelEntry
from server.errors import ApiError
from server.models.contents import Contents
from server.models.statistics import EngineStatistics
from server.text.messages import TextFacts
from server.text.work import TextWork

if TYPE_CHECKING:  # it imports an HTTP client, which only a server with peers needs
    from cluster.streams import PeerStreams


log = logging.getLogger("understudy")

ENDED = ("failed", "closed")  # states of an engine that serves no more

NO_FORMAT = (
    "%s: the chat template asks for no known format of tool calls. Tools are described to the "
    "model in words, and calls are read as the format `generic` says. If the model has another "
    "format, name it in the model's file, `parsers: {tools: NAME}`: %s"
)
NO_TEMPLATE = (
    "%s: there is no chat template, so only /v1/completions can be used. Set `chat_template` in "
    "the model's file to a .jinja file, such as that of the repository that the model is made of"
)


@dataclass
class LoadedModel:
    """A model whose engine was started, with the number of requests that hold it."""

    entry: ModelEntry
    engine: Engine
    info: ModelInfo
    text: TextWork  # runs work with the model's tokenizer
    facts: TextFacts
    statistics: EngineStatistics
    formats: Formats  # the formats of tool calls and reasoning in its answers
    books: PageBooks = field(default_factory=PageBooks)  # the pages that its engine holds
    contents: Contents = field(default_factory=Contents)
    streams: "PeerStreams | None" = None  # None: there are no peers
    num_borrowers: int = 0

    @property
    def sampling(self) -> SamplingSection:
        """The sampling defaults: of the model's file, else of its generation_config.json."""
        return self.entry.sampling.over(self.info.sampling)

    @property
    def fingerprints(self) -> frozenset[str]:
        """The fingerprints of the engines that may run a request, that of peers included."""
        own = frozenset({self.info.fingerprint})
        return own if self.streams is None else self.streams.fingerprints

    def run(
        self,
        message: Generate,
        *,
        fingerprint: str | None,
        first_choice: int,
        on_prompt: Callable[[int], None],
        on_lost: Callable[[], None],
        on_tokens: Callable[[int], None],
    ) -> AsyncGenerator[Tokens, None]:
        """Return the stream of a request, which runs here or at a peer.

        Args:
            fingerprint: the one that its engine must have; None: any.
            first_choice: the number that its first choice has in the answer.
            on_prompt, on_lost, on_tokens: as in `EngineClient.run`.
        """
        if self.streams is None:
            return self.engine.run(
                message, on_prompt=on_prompt, on_lost=on_lost, on_tokens=on_tokens
            )
        return self.streams.run(
            message,
            fingerprint=fingerprint,
            first_choice=first_choice,
            on_prompt=on_prompt,
            on_lost=on_lost,
            on_tokens=on_tokens,
        )

    def run_at_peers(self, streams: "PeerStreams") -> None:
        """Let requests run at peers too."""
        self.streams = streams

    def read_contents(self) -> None:
        """Begin to read the bytes of its files, by which peers compare it with theirs."""
        self.contents.begin(
            self.info, lambda: not self.num_borrowers, lambda: self.engine.state in ENDED
        )

    def fingerprint_of(self, request_id: str) -> str | None:
        """Return the fingerprint of the engine that runs a request, as far as it is known."""
        found = None if self.streams is None else self.streams.fingerprint(request_id)
        return found or (None if self.engine.info is None else self.engine.info.fingerprint)

    def log_remarks(self) -> None:
        """Log what its chat template lacks."""
        if not self.facts.template:
            log.warning(NO_TEMPLATE, self.entry.id)
        elif not self.has_tool_format:
            log.warning(NO_FORMAT, self.entry.id, ", ".join(format_names("tools")))

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
        return self.engine.state not in ENDED
