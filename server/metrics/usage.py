"""What an answer cost: the figures of all its choices taken together. Pure."""

from engine.messages import Stats, Tokens
from server.schemas.answers import Timings, Usage


class Totals:
    """Adds up the statistics of finished choices.

    Args:
        num_choices: how many will finish, also those that are generated but not shown.
        seed: reported, so that the answer can be had again.
    """

    def __init__(self, num_choices: int, seed: int) -> None:
        self._num_choices = num_choices
        self._seed = seed
        self._first: list[Stats] = []  # of the first choice of each prompt
        self._all: list[Stats] = []
        self._finishes: set[str] = set()
        self._num_reasoning = 0

    def add(self, tokens: Tokens) -> None:
        """Take the statistics that come with a choice's last tokens."""
        if tokens.stats is None:
            return
        if tokens.choice == 0:  # the choices of a prompt share its tokens
            self._first.append(tokens.stats)
        self._all.append(tokens.stats)
        if tokens.finish is not None:
            self._finishes.add(tokens.finish)

    def add_reasoning(self, num_tokens: int) -> None:
        """How many tokens of a finished choice are reasoning."""
        self._num_reasoning += num_tokens

    @property
    def complete(self) -> bool:
        """Whether all choices are finished."""
        return len(self._all) == self._num_choices

    @property
    def finish(self) -> str:
        """How the choices finished: "length" if one of them did not come to its end."""
        return "length" if "length" in self._finishes else min(self._finishes, default="")

    def usage(self) -> Usage:
        prompt = sum(s.prompt_tokens for s in self._first)
        completion = sum(s.completion_tokens for s in self._all)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(s.cached_tokens for s in self._first)},
            "completion_tokens_details": {
                "reasoning_tokens": self._num_reasoning,
                "accepted_prediction_tokens": sum(s.prediction_accepted for s in self._all),
                "rejected_prediction_tokens": sum(s.prediction_rejected for s in self._all),
            },
        }

    def summary(self) -> str:
        """For the log."""
        timings = self.timings()
        return (
            f"{timings['prompt_n']}+{timings['cache_n']} prompt tokens, "
            f"{timings['predicted_n']} tokens in {timings['passes']} passes "
            f"({timings['tokens_per_pass']:.1f} a pass), "
            f"{timings['predicted_per_second']:.1f} tokens/s"
        )

    def timings(self) -> Timings:
        """Sums of tokens, longest of times: the choices run side by side."""
        cached = sum(s.cached_tokens for s in self._first)
        predicted = sum(s.completion_tokens for s in self._all)
        later = predicted - len(self._all)  # the time begins with the first token of each choice
        passes = max((s.passes for s in self._all), default=0)
        predicted_ms = max((s.predicted_ms for s in self._all), default=0.0)
        return {
            "cache_n": cached,
            "prompt_n": sum(s.prompt_tokens for s in self._first) - cached,
            "prompt_ms": max((s.prompt_ms for s in self._all), default=0.0),
            "predicted_n": predicted,
            "predicted_ms": predicted_ms,
            "predicted_per_second": 1e3 * max(later, 0) / predicted_ms if predicted_ms > 0 else 0.0,
            "draft_n": sum(s.drafted for s in self._all),
            "draft_n_accepted": sum(s.accepted for s in self._all),
            "passes": passes,
            "tokens_per_pass": predicted / max(1, passes),
            "seed": self._seed,
        }
