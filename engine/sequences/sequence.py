"""Requests and their sequences: the state of the answers that are being generated."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from threading import Event

from engine.kv.page_table import PageTable
from engine.messages import PREDICTION, TARGET, Generate, Origin, Stats, Tail, TokenLogprob, Tokens
from engine.sampling.grammar.constraint import Constraint
from engine.sampling.logit_rules import TokenCounts
from engine.sampling.thinking import ThinkingState, forced_tokens
from engine.text.stop import StopRules

REPORT_SECONDS = 1.0  # between two reports of how far a prompt is


@dataclass(frozen=True)
class Limits:
    """Limits that the loaded model sets for every sequence."""

    max_tokens: int  # of prompt and answer together
    eos_token_ids: frozenset[int]
    original_length: int | None  # length where rope frequencies change (longrope)
    suppressed: tuple[int, ...] = ()  # tokens that are never chosen, by generation_config.json


@dataclass(eq=False)
class Request:
    """A client's request, shared by the sequences of all its choices.

    `cancelled` is set when the client has left, from the thread that reads the pipe.
    """

    message: Generate
    limits: Limits
    constraint: Constraint | None = None  # its state before the first token
    thinking: ThinkingState | None = None  # the same of its thinking budget
    cancelled: Event = field(default_factory=Event)
    arrived: float = field(default_factory=time.monotonic)
    num_ended: int = 0  # choices that have ended here
    # Choices that another engine has begun; they start when the first of them has run the prompt.
    resumed: "list[TokenSequence]" = field(default_factory=list)
    _next_report: float = 0.0  # the monotonic time from which the prompt's progress is reported

    def end_choice(self) -> bool:
        """Count a choice that has ended. Return True if it was the last one."""
        self.num_ended += 1
        return self.num_ended == self.message.num_unfinished

    def is_report_due(self, now: float, *, is_first: bool) -> bool:
        """Return whether to report how far the prompt is, and note the report if so.

        `is_first`: no pass with the prompt is complete. `now` is the monotonic time.
        """
        is_due = is_first or now >= self._next_report
        if is_due:
            self._next_report = now + REPORT_SECONDS
        return is_due


class Status(Enum):
    """The status of a sequence in the scheduler."""

    WAITING = "waiting"  # it has not run yet
    RUNNING = "running"  # it owns KV pages and takes part in passes
    PAUSED = "paused"  # it has no pages at present, and resumes before waiting ones
    FINISHED = "finished"  # its answer is complete, its client left, or its pass failed


class TokenSequence:
    """One choice of a request: its token ids, stop rules, KV pages and statistics.

    The request's parameters, its key and whether its client has left can be read from it too.
    """

    def __init__(
        self,
        request: Request,
        choice: int,
        rules: StopRules,
        num_cached: int | None = None,
        passes: int = 0,
    ) -> None:
        """Create a sequence that consists of the prompt.

        Args:
            request: the request that this is a choice of.
            choice: its number among the request's choices.
            rules: decides when the choice ends.
            num_cached: prompt tokens found in the prefix cache; None before the first admission.
                A fork has the number of its first choice.
            passes: passes so far; a fork has the number of its first choice.
        """
        message = request.message
        self.request = request
        self.request_id = message.request_id
        self.key = message.key  # keys are served round robin
        self.params = message.params
        self.speculation = message.speculation
        self.prediction = message.prediction
        self.cancelled = request.cancelled
        self.original_length = request.limits.original_length
        self.choice = choice
        self.rules = rules
        self.constraint = request.constraint and request.constraint.copy()
        self.thinking = request.thinking

        self.status = Status.WAITING
        self.table: PageTable | None = None  # None unless the sequence runs
        self.tokens = list(message.prompt)  # the prompt and all emitted tokens
        self.num_prompt = len(message.prompt)
        self.counts = TokenCounts(self.tokens)
        self.finish: str | None = None
        self.stop_reason: str | int | None = None
        self.num_scored = self.num_prompt  # tokens whose log-probabilities are known or unneeded
        self.num_to_score = self.num_prompt  # tokens whose log-probabilities come with the prompt

        self.num_cached = num_cached
        self.passes = passes
        self.drafted = self.accepted = 0
        self.prediction_checked = 0  # verified rows that came from the request's prediction
        self.prediction_accepted = 0  # emitted tokens that came from it
        self.has_run = False  # whether a pass here has run rows of it
        self.first_token_at: float | None = None
        self._prompt_ms = 0.0  # until the first token
        # The tokens before the first one that is emitted here, and those that need no message.
        self._num_begun = self._num_reported = self.num_prompt
        self._text = self._lookahead = ""  # since the last report, like the following
        self._logprobs: list[TokenLogprob] = []
        self._origins: list[Origin] = []
        self._scored: list[TokenLogprob | None] = []  # of the prompt, or of the tail
        self._replayed: Tokens | None = None  # the tokens of a tail, until they are sent
        if choice == 0 and self.params.prompt_logprobs is not None:
            self._scored.append(None)  # no row predicts the first token
            self.num_scored = 1

    @property
    def is_cancelled(self) -> bool:
        """Whether the client has left."""
        return self.cancelled.is_set()

    @property
    def pages(self) -> PageTable:
        """The page table of this sequence, which must be running."""
        assert self.table is not None, "the sequence is not running"
        return self.table

    @property
    def num_pending(self) -> int:
        """The number of tokens whose KV is not stored; the last of them roots the next tree."""
        return len(self.tokens) - self.pages.length

    @property
    def reusable(self) -> Sequence[int]:
        """The leading tokens whose KV may be taken from the prefix cache.

        `KVCache.open` never takes the last one. If log-probabilities of known tokens are requested,
        the rows that give them have to run, so only tokens with known log-probabilities count.
        """
        is_scored = self.num_scored == self.num_to_score
        return self.tokens if is_scored else self.tokens[: self.num_scored]

    @property
    def scored_top(self) -> int:
        """The number of alternatives to each token that is scored with the prompt."""
        top = self.params.prompt_logprobs if self._replayed is None else self.params.logprobs
        assert top is not None, "no log-probabilities are requested"
        return top

    @property
    def is_decoding(self) -> bool:
        """Whether the sequence may have a draft: only its last token is pending, and was emitted.

        The last row of a prompt gets no draft: all choices of the request choose their first token
        at this row and continue from the same KV.
        """
        return self.num_pending == 1 and len(self.tokens) > self.num_prompt

    @property
    def is_long(self) -> bool:
        """Whether the sequence is long enough for the long rope frequencies."""
        return self.original_length is not None and len(self.tokens) > self.original_length

    @property
    def is_beginning(self) -> bool:
        """Whether no token was emitted here yet: the prompt, with the tail if any, has to run."""
        return len(self.tokens) == self._num_begun

    @property
    def max_new_tokens(self) -> int:
        """The number of tokens that may still be emitted."""
        return self.num_left(len(self.tokens))

    def num_left(self, length: int) -> int:
        """Return how many tokens may follow the first `length` tokens of prompt and answer."""
        longest = self.request.limits.max_tokens - length
        wanted = self.params.max_tokens
        return longest if wanted is None else min(longest, wanted - (length - self.num_prompt))

    @property
    def max_draft_depth(self) -> int:
        """The deepest level of a draft tree that can still be emitted.

        A pass emits one token more than the depth of its tree. A tree ends at the original length
        of a length-dependent rope, since rows beyond it need KV with other frequencies.
        """
        depth = self.max_new_tokens - 1
        if self.original_length is not None and not self.is_long:
            depth = min(depth, self.original_length - len(self.tokens))
        return max(depth, 0)

    def is_terminal(self, token: int) -> bool:
        """Return True if emitting this token would end the sequence."""
        if token in self.params.stop_token_ids:
            return True
        ignored = self.params.ignore_eos and self.constraint is None
        return not ignored and token in self.request.limits.eos_token_ids

    def can_force(self, depth: int) -> bool:
        """Return whether a grammar or a thinking budget may force a token after a drafted path.

        Args:
            depth: the most tokens of the path.
        """
        if self.constraint is not None:
            return True
        return self.thinking is not None and self.thinking.num_free <= depth

    def forced(self, path: Sequence[int] = ()) -> tuple[int, ...]:
        """Return the tokens that the thinking budget forces after drafted tokens."""
        return forced_tokens(self.thinking, self.constraint, path)

    def banned(self, position: int) -> Sequence[int]:
        """Return the tokens that must not be chosen at an absolute position.

        The model's suppressed tokens are banned everywhere, and tokens that end the answer for its
        first `min_tokens` tokens. An end-of-sequence token always ends an answer that has a
        grammar; so with `ignore_eos`, it is always banned there.
        """
        limits = self.request.limits
        if position - self.num_prompt < self.params.min_tokens:
            return (*limits.suppressed, *limits.eos_token_ids, *self.params.stop_token_ids)
        if self.constraint is not None and self.params.ignore_eos:
            return (*limits.suppressed, *limits.eos_token_ids)
        return limits.suppressed

    def run(self, table: PageTable) -> None:
        """Set the status to running, with these pages."""
        self.status, self.table = Status.RUNNING, table
        if table.reading is None:
            self.note_cached()

    def note_cached(self) -> None:
        """Note how much of the prompt was stored when the sequence was first admitted."""
        if self.num_cached is None:
            self.num_cached = min(self.pages.length, self.num_prompt)

    def pause(self) -> None:
        """Set the status to paused. The caller has freed the pages."""
        self.status, self.table = Status.PAUSED, None

    def mark_finished(self) -> None:
        """Set the status to finished. The caller has freed the pages."""
        self.status, self.table = Status.FINISHED, None

    def count_pass(self) -> None:
        """Count a pass that ran rows of this sequence."""
        self.has_run = True
        self.passes += 1

    def count_drafted(self, rows: int, accepted: int, predicted: int) -> None:
        """Add the rows of a verified tree to the statistics.

        Args:
            rows: drafted rows.
            accepted: drafted rows that were accepted.
            predicted: drafted rows that came from the request's prediction.
        """
        self.drafted += rows
        self.accepted += accepted
        self.prediction_checked += predicted

    def end_at_limit(self) -> None:
        """Finish without emitting a token, for a request that only scores its prompt."""
        self.finish = "length"

    def score(self, logprobs: Sequence[TokenLogprob]) -> None:
        """Append the log-probabilities of the next tokens of the prompt, or of those replayed."""
        self._scored += logprobs
        self.num_scored += len(logprobs)

    def emit(
        self,
        token: int,
        logprob: TokenLogprob | None = None,
        source: str = TARGET,
        depth: int = 0,
    ) -> bool:
        """Append a token that the target chose. Return True if it ends the sequence.

        Args:
            logprob: its log-probabilities, if the request asks for them.
            source, depth: where it was drafted, as `DraftTree.origin` returns it.

        Raises `RequestError` if the grammar is too complex to be followed any further.
        """
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
            self._prompt_ms = (self.first_token_at - self.request.arrived) * 1e3
        self.tokens.append(token)
        self.counts.add(token)
        if self.thinking is not None:
            self.thinking = self.thinking.after(token)
        complete = self.constraint is not None and self.constraint.emit(token)
        result = self.rules.push(token, last=complete)
        self._text, self._lookahead = self._text + result.text, result.lookahead
        if logprob is not None:
            self._logprobs.append(logprob)
        self._origins.append(Origin(source, depth, self.passes))
        self.prediction_accepted += source == PREDICTION
        self.finish, self.stop_reason = result.finish, result.stop_reason
        return result.finish is not None

    def resume(self, tail: Tail) -> None:
        """Note that all tokens of the answer so far are those of a tail."""
        self._num_begun = len(self.tokens)
        self.first_token_at = None
        if self._num_begun > self.num_prompt:  # sent with the first token
            self._scored.clear()
            self.num_scored = self.num_prompt
        if tail.ids and not tail.is_read:
            if self.params.logprobs is not None and self.finish is None:
                self.num_to_score = self._num_begun
            self._replayed = replace(self.report(), is_replayed=True)
        self._num_reported = self._num_begun
        self._text = self._lookahead = ""
        self._origins.clear()
        if (before := tail.stats) is not None:
            self.num_cached, self.passes = before.cached_tokens, before.passes
            self.drafted, self.accepted = before.drafted, before.accepted
            self.prediction_accepted = before.prediction_accepted
            self.prediction_checked = before.prediction_accepted + before.prediction_rejected
            self._prompt_ms = before.prompt_ms
            self.first_token_at = self.request.arrived - before.predicted_ms / 1e3

    def take_reports(self) -> list[Tokens]:
        """Return everything emitted since the last report, after the replay of a tail if any."""
        replayed, self._replayed = self._replayed, None
        if replayed is None:
            return [self.report()]
        scored = tuple(own for own in self._scored if own is not None)
        self._scored.clear()
        replayed = replace(replayed, logprobs=scored)
        return [replayed] if self.is_beginning else [replayed, self.report()]

    def report(self) -> Tokens:
        """Return everything emitted since the last report, as a message for the front end."""
        tokens = Tokens(
            request_id=self.request_id,
            choice=self.choice,
            ids=tuple(self.tokens[self._num_reported :]),
            text=self._text,
            logprobs=tuple(self._logprobs),
            prompt_logprobs=tuple(self._scored),
            origins=tuple(self._origins),
            finish=self.finish,
            stop_reason=self.stop_reason,
            lookahead=self._lookahead,
            stats=self.stats(),
        )
        self._num_reported, self._text = len(self.tokens), ""
        for reported in (self._logprobs, self._origins, self._scored):
            reported.clear()
        return tokens

    def stats(self) -> Stats:
        """Return the statistics of this sequence up to now. Times are in milliseconds."""
        now = time.monotonic()
        first = self.first_token_at
        return Stats(
            prompt_tokens=self.num_prompt,
            cached_tokens=self.num_cached or 0,
            completion_tokens=len(self.tokens) - self.num_prompt,
            passes=self.passes,
            drafted=self.drafted,
            accepted=self.accepted,
            prompt_ms=(now - self.request.arrived) * 1e3 if first is None else self._prompt_ms,
            predicted_ms=0.0 if first is None else (now - first) * 1e3,
            prediction_accepted=self.prediction_accepted,
            prediction_rejected=self.prediction_checked - self.prediction_accepted,
        )
