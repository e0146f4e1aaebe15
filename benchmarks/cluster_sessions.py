"""Sessions of several turns, drawn from a seed: when they begin, and how long their texts are."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

LEAST_ANSWER, LONGEST_ADDED = 20, 30_000  # tokens


@dataclass(frozen=True)
class TurnPlan:
    """One turn of a session.

    Args:
        added: tokens that it adds to the prompt.
        answer: tokens of its answer.
        pause: seconds between the end of the turn before and this one.
    """

    added: int
    answer: int
    pause: float


@dataclass(frozen=True)
class SessionPlan:
    """A session, whose prompts begin with a system prompt that sessions share.

    Args:
        begins: the second in which its first turn comes.
        template: the number of its system prompt.
        template_tokens: the tokens of the system prompt.
    """

    number: int
    begins: float
    template: int
    template_tokens: int
    turns: tuple[TurnPlan, ...]


@dataclass(frozen=True)
class Traffic:
    """The sessions that come. Numbers of tokens, turns and seconds are means where nothing is said.

    Args:
        rate: new sessions a second.
        added: the mean and the standard deviation of the logarithm of the tokens that a turn adds.
        templates: the number of system prompts.
        more_turns: turns after the first one.
        answer: tokens of an answer, beyond the least ones of short answers.
        longest: the most tokens of a prompt and its answer; a session ends before.
    """

    rate: float
    added: tuple[float, float]
    templates: int = 20
    template_tokens: int = 2048
    more_turns: float = 6.0
    answer: float = 300.0
    pause: float = 20.0
    longest: int = 32_768
    seed: int = 1

    def sessions(self) -> Iterator[SessionPlan]:
        """Yield sessions in the order in which they begin, without an end."""
        arrivals, begins, number = Random(self.seed), 0.0, 0
        while True:
            begins += arrivals.expovariate(self.rate)
            number += 1
            own = Random(self.seed * 1_000_003 + number)
            template = own.randrange(self.templates)
            turns = tuple(self._turns(own))
            yield SessionPlan(number, begins, template, self.template_tokens, turns)

    def _turns(self, own: Random) -> Iterator[TurnPlan]:
        tokens = self.template_tokens
        for number in range(1 + int(own.expovariate(1 / self.more_turns))):
            pause = own.expovariate(1 / self.pause) if number else 0.0
            answer = max(LEAST_ANSWER, int(own.expovariate(1 / self.answer)))
            added = min(1 + int(math.exp(own.gauss(*self.added))), LONGEST_ADDED)
            tokens += added + answer
            if tokens > self.longest:
                return
            yield TurnPlan(added, answer, pause)


def agents(rate: float) -> Traffic:
    """Return the traffic of agents, whose turns add long results of tools."""
    return Traffic(rate, added=(7.6, 1.1))


def chats(rate: float) -> Traffic:
    """Return the traffic of chats, whose turns are short questions."""
    return Traffic(rate, added=(6.2, 0.9))
