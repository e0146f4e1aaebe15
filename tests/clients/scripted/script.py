"""A script: the answers of the scripted engine, chosen by what the prompt contains.

    write = Call("write|Write", {"(file_)?path": "poem.txt", "content": "Roses"})
    Script(Turn("Write a poem", Step("I write it.", calls=[write]), Step("It is in poem.txt.")))

A prompt is answered by the turn whose `after` occurs last in it, so a conversation of several
questions is several turns. The steps of a turn follow each other: a step is taken when the prompt
has, after the place of `after`, the results of all calls of the steps before it. A prompt without
any `after`, or without tools where a step calls one, is answered by `otherwise`: clients ask for
titles in requests of their own. If only the tool of a call is missing, the answer says so.

This file needs only the standard library: tests in the environments of other projects import it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Call:
    """A call of a tool that the request offers.

    Args:
        tool: a regular expression; the first tool whose whole name matches it is called.
        arguments: the values by a regular expression of the argument's name, which is looked up
            in the schema of the tool.
    """

    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One answer: a thought, a text, and calls. Formats without thoughts leave the thought out."""

    text: str = ""
    thought: str = ""
    calls: Sequence[Call] = ()


class Turn:
    """The answers to one question of the user.

    Args:
        after: a text of the question.
        steps: the answers in order; the last is given again to what follows.
    """

    def __init__(self, after: str, *steps: Step) -> None:
        self.after = after
        self.steps = steps


class Script:
    """The answers of a scripted model, and their speed.

    Args:
        turns: the answers, by what the prompt contains.
        otherwise: the answer to prompts of no turn.
        first_after_s: seconds before the first token.
        pass_s: seconds between two passes of `tokens_per_pass` tokens.
    """

    def __init__(
        self,
        *turns: Turn,
        otherwise: str = "A title",
        first_after_s: float = 0.0,
        pass_s: float = 0.0,
        tokens_per_pass: int = 8,
    ) -> None:
        self.turns = turns
        self.otherwise = Step(otherwise)
        self.first_after_s = first_after_s
        self.pass_s = pass_s
        self.tokens_per_pass = tokens_per_pass

    def write(self, path: Path) -> None:
        """Write the script to a file, whole: the engine reads it at each request."""
        data = {
            "turns": [
                {"after": t.after, "steps": [asdict(s) for s in t.steps]} for t in self.turns
            ],
            "otherwise": self.otherwise.text,
            "first_after_s": self.first_after_s,
            "pass_s": self.pass_s,
            "tokens_per_pass": self.tokens_per_pass,
        }
        new = path.with_suffix(".new")
        new.write_text(json.dumps(data), encoding="utf-8")
        new.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` has written."""
        data = json.loads(path.read_text(encoding="utf-8"))
        turns = [Turn(t["after"], *map(_step, t["steps"])) for t in data.pop("turns")]
        return cls(*turns, **data)


def _step(data: dict[str, Any]) -> Step:
    return Step(data["text"], data["thought"], [Call(**call) for call in data["calls"]])
