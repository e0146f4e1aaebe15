"""Replay: a draft that knows the target's own answer, and is right exactly as often as it is told.

Tokens/s against tokens a pass (A), whatever the text: each tree holds the next tokens of the
recorded answer down to the depth that gives A in the mean, wrong ones below, and always the same
number of rows, so that a pass costs what it would with a real draft. Drafting itself costs nothing.
"""

import json
import random
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field
from pathlib import Path

from engine.drafting.method import BuildDraft, DraftContext, MethodFacts
from engine.drafting.tree import Bounds, DraftTree
from engine.errors import ModelError
from engine.sampling.large_vocabularies.blocks import Matrix
from engine.sequences.sequence import Sequence

RIGHT, WRONG = -0.01, -1.0  # a row's score behind its parent: the order in which rows are kept
FACTS = MethodFacts(
    bounds=Bounds(depth=64, width=1, branch=1, budget=64),
    keys=frozenset({"source"}),
    required={"source": "a file of scripts"},
)


@dataclass(frozen=True)
class Script:
    """A recorded answer, and how many of its tokens each pass shall emit in the mean."""

    tokens: tuple[int, ...]  # the prompt and the target's own greedy answer
    mean: float  # A: 1 is what no draft gives
    seed: int = 0  # of the rounding, where `mean` is no whole number


def write_scripts(path: Path, scripts: dict[str, Script]) -> None:
    """Scripts by request id: the file that `draft.source` names."""
    data = {name: asdict(script) for name, script in scripts.items()}
    path.write_text(json.dumps(data), encoding="utf-8")


def read_scripts(path: Path) -> dict[str, Script]:
    """Raises `ModelError` for a file that is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: Script(tuple(script["tokens"]), script["mean"], script["seed"])
            for name, script in data.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"draft.source: {path} holds no scripts of replay: {error!r}") from error


@dataclass
class Replay:
    """Trees by script. Only for requests that have one."""

    scripts: dict[str, Script]
    vocab_size: int
    name: str = "replay"
    _random: dict[Sequence, random.Random] = field(default_factory=dict)

    def propose(self, sequence: Sequence, depth: int, rows: int) -> DraftTree | None:
        script = self.scripts.get(sequence.request_id)
        if script is None:
            return None
        at = len(sequence.tokens)
        if tuple(sequence.tokens) != script.tokens[:at]:
            raise ModelError(
                f"replay: {sequence.request_id} departs from its recording: record "
                "it anew, with the same weights and strict numerics"
            )
        right = script.tokens[at : at + min(self._depth(sequence, script), depth, rows - 1)]
        after = script.tokens[at + len(right) : at + len(right) + 1]
        wrong = [] if len(right) >= depth else self._wrong(sequence, after, rows - 1 - len(right))
        return _tree(sequence.tokens[-1], right, wrong, self.name)

    def _depth(self, sequence: Sequence, script: Script) -> int:
        """Right tokens of the next tree: the mean of all is `mean` - 1."""
        if sequence not in self._random:
            self._random[sequence] = random.Random(script.seed)
        whole, part = divmod(script.mean - 1, 1)
        return int(whole) + (self._random[sequence].random() < part)

    def _wrong(self, sequence: Sequence, after: Seq[int], count: int) -> list[int]:
        """So many tokens that are not `after`, and that would not end the answer."""
        wrong: list[int] = []
        for token in range(self.vocab_size):
            if len(wrong) == count:
                break
            if token not in after and not sequence.is_terminal(token):
                wrong.append(token)
        return wrong

    def observe(self, tokens: Seq[int], logits: Matrix) -> None:
        """The script tells all there is to know."""

    def release(self, sequence: Sequence) -> None:
        self._random.pop(sequence, None)


def _tree(root: int, right: Seq[int], wrong: Seq[int], source: str) -> DraftTree:
    """A chain of right tokens, and the wrong ones side by side below it."""
    end = len(right)
    count = 1 + end + len(wrong)
    return DraftTree(
        tokens=(root, *right, *wrong),
        parents=(-1, *range(end), *(end,) * len(wrong)),
        depths=(*range(end + 1), *(end + 1,) * len(wrong)),
        scores=(*(RIGHT * d for d in range(end + 1)), *(RIGHT * end + WRONG,) * len(wrong)),
        sources=("", *(source,) * (count - 1)),
    )


def prepare(context: DraftContext) -> BuildDraft:
    source = context.spec.draft.source
    if source is None:
        raise ModelError("draft.source: method replay needs a file of scripts")
    replay = Replay(read_scripts(Path(source)), context.vocab_size)
    return lambda target: replay
