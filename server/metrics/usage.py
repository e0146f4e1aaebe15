"""The usage and the timings of an answer, summed over all its choices. Pure."""

from engine.messages import Stats, Tokens
from server.schemas.answers import Timings, Usage

DIGITS = 3  # after the point of times and rates: people read them


class Totals:
    """The tokens of all choices so far, and the sums of the statistics of those that have finished.

    Args:
        num_choices: the number of choices that will finish, also those that are not shown.
        seed: the seed, reported so that the answer can be reproduced.
        num_prompt: the number of tokens of all prompts.
        num_given: the number of tokens that the client has given, of answers that go on. They count
            in the usage, but not in the figures of the work that was done.
    """

    def __init__(self, num_choices: int, seed: int, num_prompt: int, num_given: int = 0) -> None:
        self.num_emitted = 0  # tokens that were written into the answer
        self.num_generated = 0  # tokens that the engine has sent
        self.num_begun = 0  # tokens of the prompts that the engine has begun
        self._num_given = num_given
        self._num_choices = num_choices
        self._seed = seed
        self._num_prompt = num_prompt
        self._begun: dict[int, int] = {}  # by prompt: its tokens in the cache when it began
        self._first: list[Stats] = []  # the statistics of each prompt's first choice
        self._all: list[Stats] = []
        self._finishes: set[str] = set()
        self._num_reasoning = 0
        self._num_resumed: dict[int, int] = {}  # by prompt: restarts of the engine

    def add(self, tokens: Tokens) -> None:
        """Count tokens of a choice, and add the statistics that come with its last ones."""
        if not tokens.is_replayed:
            self.num_emitted += len(tokens.ids)
        if tokens.finish is None or tokens.stats is None:
            return
        if tokens.choice == 0:  # the choices of a prompt share its tokens
            self._first.append(tokens.stats)
        self._all.append(tokens.stats)
        self._finishes.add(tokens.finish)

    def note_begun(self, prompt: int, num_cached: int, num_tokens: int) -> None:
        """Note how much of a prompt is in the cache when it is begun; only the first call counts.

        Args:
            prompt: the index of the prompt.
            num_tokens: the length of the prompt.
        """
        if prompt not in self._begun:
            self._begun[prompt] = num_cached
            self.num_begun += num_tokens

    def note_generated(self, num_tokens: int) -> None:
        """Count tokens that the engine has sent, whether or not the client will get them."""
        self.num_generated += num_tokens

    def note_lost(self, prompt: int) -> None:
        """Count a restart of the engine, after which the answer to a prompt goes on."""
        self._num_resumed[prompt] = self._num_resumed.get(prompt, 0) + 1

    def add_reasoning(self, num_tokens: int) -> None:
        """Add the number of tokens of a finished choice that are reasoning."""
        self._num_reasoning += num_tokens

    @property
    def is_complete(self) -> bool:
        """Return whether all choices have finished."""
        return len(self._all) == self._num_choices

    @property
    def finish(self) -> str:
        """Return one finish reason for all choices: "length" if the limit cut off any of them."""
        return "length" if "length" in self._finishes else min(self._finishes, default="")

    def counts(self) -> Usage:
        """Return the numbers of tokens so far; a prompt counts once for all its choices."""
        completion = self._num_given + self.num_emitted
        counts: Usage = {
            "prompt_tokens": self._num_prompt,
            "completion_tokens": completion,
            "total_tokens": self._num_prompt + completion,
        }
        if self._begun:
            counts["prompt_tokens_details"] = {"cached_tokens": sum(self._begun.values())}
        return counts

    def usage(self) -> Usage:
        """Return the numbers of tokens, with details when all choices have finished."""
        usage = self.counts()
        if self.is_complete:
            usage["prompt_tokens_details"] = {"cached_tokens": self.num_cached}
            usage["completion_tokens_details"] = {
                "reasoning_tokens": self._num_reasoning,
                "accepted_prediction_tokens": sum(s.prediction_accepted for s in self._all),
                "rejected_prediction_tokens": sum(s.prediction_rejected for s in self._all),
            }
        return usage

    @property
    def num_begun_cached(self) -> int:
        """Return the number of tokens of begun prompts that were in the cache."""
        return sum(self._begun.values())

    @property
    def seconds_per_token(self) -> float | None:
        """Return the mean time from one token of a choice to the next; None for single tokens."""
        timings = self.timings()
        per_second = timings["predicted_per_second"]
        return 1 / per_second if self.is_complete and per_second > 0 else None

    @property
    def num_cached(self) -> int:
        """Return the number of prompt tokens whose KV was reused, of choices that have finished."""
        return sum(s.cached_tokens for s in self._first)

    def summary(self) -> str:
        """Return the most important figures as text for the log."""
        timings = self.timings()
        return (
            f"{timings['prompt_n']}+{timings['cache_n']} prompt tokens, "
            f"{timings['predicted_n']} tokens in {timings['passes']} passes "
            f"({timings['tokens_per_pass']:.1f} a pass), "
            f"{timings['predicted_per_second']:.1f} tokens/s"
        )

    def timings(self) -> Timings:
        """Return sums of tokens, but the longest of times, since choices run at the same time."""
        cached = self.num_cached
        predicted = self.num_emitted
        later = predicted - len(self._all)  # the time begins with the first token of each choice
        passes = max((s.passes for s in self._all), default=0)
        predicted_ms = max((s.predicted_ms for s in self._all), default=0.0)
        per_second = 1e3 * max(later, 0) / predicted_ms if predicted_ms > 0 else 0.0
        return {
            "cache_n": cached,
            "prompt_n": self._num_prompt - cached,
            "prompt_ms": round(max((s.prompt_ms for s in self._all), default=0.0), DIGITS),
            "predicted_n": predicted,
            "predicted_ms": round(predicted_ms, DIGITS),
            "predicted_per_second": round(per_second, DIGITS),
            "draft_n": sum(s.drafted for s in self._all),
            "draft_n_accepted": sum(s.accepted for s in self._all),
            "passes": passes,
            "tokens_per_pass": round(predicted / max(1, passes), DIGITS),
            "seed": self._seed,
            "resumed": max(self._num_resumed.values(), default=0),
        }
