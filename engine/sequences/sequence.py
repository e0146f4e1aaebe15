"""Requests and their sequences: the state of what is being answered, and its questions."""

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import Enum
from threading import Event

from engine.kv.page_table import PageTable
from engine.messages import PREDICTION, TARGET, Generate, Origin, Stats, TokenLogprob, Tokens
from engine.sampling.grammar.constraint import Constraint
from engine.sampling.logit_rules import TokenCounts
from engine.text.stop import StopRules


@dataclass(frozen=True)
class Limits:
    """What the loaded model sets for every sequence."""

    max_tokens: int  # the longest prompt plus answer
    eos_token_ids: frozenset[int]
    original_length: int | None  # tokens where the rope's frequencies change, else None


@dataclass(eq=False)
class Request:
    """What a client asked for. `cancelled` is set from the thread that reads the pipe."""

    message: Generate
    limits: Limits
    constraint: Constraint | None = None  # before the first token
    cancelled: Event = field(default_factory=Event)
    arrived: float = field(default_factory=time.monotonic)
    num_ended: int = 0  # of its choices

    def end_choice(self) -> bool:
        """Count a choice that has ended. Return True if it was the last one."""
        self.num_ended += 1
        return self.num_ended == self.message.n


class Status(Enum):
    """Where a sequence is on its way through the scheduler."""

    WAITING = "waiting"  # for its first pass
    RUNNING = "running"  # it owns KV pages and takes part in passes
    PAUSED = "paused"  # it ran, gave its pages back, and goes on before any waiting one
    FINISHED = "finished"  # its answer is complete, its client left, or its pass failed


class Sequence:
    """One choice of a request: token ids, stop rules, KV pages, figures.

    It answers for its request: who asked, what was asked for, and whether the client has left.
    """

    def __init__(
        self,
        request: Request,
        choice: int,
        rules: StopRules,
        num_cached: int | None = None,
        passes: int = 0,
    ) -> None:
        """Begin with the prompt; a fork has the cached tokens and passes of its first choice."""
        message = request.message
        self.request = request
        self.request_id = message.request_id
        self.key = message.key  # whose request it is, for round robin
        self.params = message.params
        self.speculation = message.speculation
        self.prediction = message.prediction
        self.cancelled = request.cancelled  # set when the client has left, from another thread
        self.original_length = request.limits.original_length
        self.choice = choice
        self.rules = rules
        self.constraint = request.constraint and request.constraint.copy()

        self.status = Status.WAITING
        self.table: PageTable | None = None  # of a running sequence
        self.tokens = list(message.prompt)  # and what was emitted
        self.num_prompt = len(message.prompt)
        self.counts = TokenCounts(self.tokens)
        self.finish: str | None = None
        self.stop_reason: str | int | None = None
        self.num_scored = self.num_prompt  # tokens whose log-probability is known or unwanted

        self.num_cached = num_cached  # prompt tokens found in the cache at first admission
        self.passes = passes
        self.drafted = 0
        self.accepted = 0
        self.prediction_checked = 0  # rows that the request's prediction drafted
        self.prediction_accepted = 0  # tokens emitted from such rows
        self.first_token_at: float | None = None

        self._num_reported = self.num_prompt
        self._text = ""  # since the last report, like what follows
        self._logprobs: list[TokenLogprob] = []
        self._origins: list[Origin] = []
        self._prompt_logprobs: list[TokenLogprob | None] = []
        if choice == 0 and self.params.prompt_logprobs is not None:
            self._prompt_logprobs.append(None)  # no row tells of the first token
            self.num_scored = 1

    @property
    def is_cancelled(self) -> bool:
        return self.cancelled.is_set()

    @property
    def pages(self) -> PageTable:
        """The page table of a running sequence."""
        assert self.table is not None, "the sequence is not running"
        return self.table

    @property
    def num_pending(self) -> int:
        """Tokens whose KV is not stored; the last of them is the root of the next tree."""
        return len(self.tokens) - self.pages.length

    @property
    def reusable(self) -> Seq[int]:
        """The tokens whose rows may be taken from the prefix cache: all but the last one's.

        Rows whose logits are still to score the prompt have to run.
        """
        return self.tokens if self.num_scored == self.num_prompt else self.tokens[: self.num_scored]

    @property
    def is_decoding(self) -> bool:
        """Whether it drafts: its prompt has been answered, and all but the last token is stored.

        The row that ends a prompt is walked by all choices of the request, which go on from the
        same KV: it gets no draft, however little of the prompt is left to run.
        """
        return self.num_pending == 1 and len(self.tokens) > self.num_prompt

    @property
    def is_long(self) -> bool:
        """Whether the long rope frequencies hold at this length."""
        return self.original_length is not None and len(self.tokens) > self.original_length

    @property
    def max_new_tokens(self) -> int:
        """How many tokens may still be emitted."""
        return self.num_left(len(self.tokens))

    def num_left(self, length: int) -> int:
        """How many tokens may be emitted behind the first `length`, the prompt's among them."""
        longest = self.request.limits.max_tokens - length
        wanted = self.params.max_tokens
        return longest if wanted is None else min(longest, wanted - (length - self.num_prompt))

    @property
    def max_draft_depth(self) -> int:
        """Levels of a tree that could be emitted: a pass emits one token more than its depth.

        Rows behind the border of a length-dependent rope would need other KV: none are drafted.
        """
        depth = self.max_new_tokens - 1
        if self.original_length is not None and not self.is_long:
            depth = min(depth, self.original_length - len(self.tokens))
        return max(depth, 0)

    def is_terminal(self, token: int) -> bool:
        """Whether emitting this token would end the sequence."""
        if token in self.params.stop_token_ids:
            return True
        ignored = self.params.ignore_eos and self.constraint is None
        return not ignored and token in self.request.limits.eos_token_ids

    def banned(self, position: int) -> Seq[int]:
        """Tokens that must not be chosen at an absolute position (`min_tokens`).

        An end-of-sequence token always ends an answer that is held to a grammar; where it is to be
        ignored, it is not chosen.
        """
        eos = self.request.limits.eos_token_ids
        if position - self.num_prompt >= self.params.min_tokens:
            return tuple(eos) if self.constraint is not None and self.params.ignore_eos else ()
        return (*eos, *self.params.stop_token_ids)

    def run(self, table: PageTable) -> None:
        """Take part in passes from now on, with these pages."""
        self.status, self.table = Status.RUNNING, table
        if self.num_cached is None:
            self.num_cached = table.length

    def pause(self) -> None:
        """Take no part in passes until there is room again. The pages are given back."""
        self.status, self.table = Status.PAUSED, None

    def leave(self) -> None:
        """Take part in no pass any more. The pages are given back."""
        self.status, self.table = Status.FINISHED, None

    def count_pass(self) -> None:
        """Count a pass that ran rows of this sequence."""
        self.passes += 1

    def count_drafted(self, rows: int, accepted: int, predicted: int) -> None:
        """Count the rows of a verified tree: drafted, accepted, and out of the prediction."""
        self.drafted += rows
        self.accepted += accepted
        self.prediction_checked += predicted

    def end_at_limit(self) -> None:
        """End without a token: only the prompt was to be scored."""
        self.finish = "length"

    def score(self, logprobs: Seq[TokenLogprob]) -> None:
        """Take the log-probabilities of the prompt's next tokens."""
        self._prompt_logprobs += logprobs
        self.num_scored += len(logprobs)

    def emit(
        self,
        token: int,
        logprob: TokenLogprob | None = None,
        source: str = TARGET,
        depth: int = 0,
    ) -> bool:
        """Append a token the target chose, with its `DraftTree.origin`; whether it is the last.

        Raises `RequestError` where the sequence's grammar can be followed no further.
        """
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        self.tokens.append(token)
        self.counts.add(token)
        complete = self.constraint is not None and self.constraint.emit(token)
        verdict = self.rules.push(token, last=complete)
        self._text += verdict.text
        if logprob is not None:
            self._logprobs.append(logprob)
        self._origins.append(Origin(source, depth, self.passes))
        self.prediction_accepted += source == PREDICTION
        self.finish, self.stop_reason = verdict.finish, verdict.stop_reason
        return verdict.finish is not None

    def report(self) -> Tokens:
        """What was emitted since the last report."""
        tokens = Tokens(
            request_id=self.request_id,
            choice=self.choice,
            ids=tuple(self.tokens[self._num_reported :]),
            text=self._text,
            logprobs=tuple(self._logprobs),
            prompt_logprobs=tuple(self._prompt_logprobs),
            origins=tuple(self._origins),
            finish=self.finish,
            stop_reason=self.stop_reason,
            stats=None if self.finish is None else self.stats(),
        )
        self._num_reported, self._text = len(self.tokens), ""
        for reported in (self._logprobs, self._origins, self._prompt_logprobs):
            reported.clear()
        return tokens

    def stats(self) -> Stats:
        now = time.monotonic()
        first = self.first_token_at if self.first_token_at is not None else now
        return Stats(
            prompt_tokens=self.num_prompt,
            cached_tokens=self.num_cached or 0,
            completion_tokens=len(self.tokens) - self.num_prompt,
            passes=self.passes,
            drafted=self.drafted,
            accepted=self.accepted,
            prompt_ms=(first - self.request.arrived) * 1e3,
            predicted_ms=(now - first) * 1e3,
            prediction_accepted=self.prediction_accepted,
            prediction_rejected=self.prediction_checked - self.prediction_accepted,
        )
