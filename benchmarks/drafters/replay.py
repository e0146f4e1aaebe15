"""A drafting method that replays a recorded answer, with a given mean number of right tokens.

It measures tokens/s as a function of the tokens per pass (A), whatever the text: each tree has the
next tokens of the recorded answer down to the depth that gives A in the mean, and wrong tokens
below. All trees have the same number of rows, so that a pass costs the same as with a real draft.
The drafting takes no time.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from engine.drafting.method import BuildDraft, DraftContext, MethodFacts
from engine.drafting.tree import Bounds, DraftTree
from engine.errors import ModelError
from engine.sampling.large_vocabularies.blocks import Matrix
from engine.sequences.sequence import TokenSequence

RIGHT, WRONG = -0.01, -1.0  # a row's score relative to its parent, which orders the rows
FACTS = MethodFacts(
    bounds=Bounds(depth=64, width=1, branch=1, budget=64),
    keys=frozenset({"source"}),
    required={"source": "a file of scripts"},
)


@dataclass(frozen=True)
class Script:
    """A recorded answer, and the mean number of its tokens that a pass shall emit."""

    tokens: tuple[int, ...]  # the prompt and the target's own greedy answer
    mean: float  # A; 1 proposes no right token
    seed: int = 0  # for the random rounding of a `mean` that is no whole number


def write_scripts(path: Path, scripts: dict[str, Script]) -> None:
    """Write scripts by request id into the file that `draft.source` names."""
    data = {name: asdict(script) for name, script in scripts.items()}
    path.write_text(json.dumps(data), encoding="utf-8")


def read_scripts(path: Path) -> dict[str, Script]:
    """Return the scripts of a file by request id. Raises `ModelError` if it has none."""
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
    """The drafting method: it proposes trees for requests that have a script."""

    scripts: dict[str, Script]
    vocab_size: int
    name: str = "replay"
    _random: dict[TokenSequence, random.Random] = field(default_factory=dict)

    def propose(self, sequence: TokenSequence, depth: int, rows: int) -> DraftTree | None:
        """Return the next tree of a sequence, None if its request has no script."""
        script = self.scripts.get(sequence.request_id)
        if script is None:
            return None
        at = len(sequence.tokens)
        if tuple(sequence.tokens) != script.tokens[:at]:
            raise ModelError(
                f"replay: {sequence.request_id} departs from its recording: record "
                "it again with the same weights and strict numerics"
            )
        right = script.tokens[at : at + min(self._depth(sequence, script), depth, rows - 1)]
        after = script.tokens[at + len(right) : at + len(right) + 1]
        wrong = [] if len(right) >= depth else self._wrong(sequence, after, rows - 1 - len(right))
        return _tree(sequence.tokens[-1], right, wrong, self.name)

    def _depth(self, sequence: TokenSequence, script: Script) -> int:
        """Return the number of right tokens of the next tree, whose mean is `mean` - 1."""
        if sequence not in self._random:
            self._random[sequence] = random.Random(script.seed)
        whole, part = divmod(script.mean - 1, 1)
        return int(whole) + (self._random[sequence].random() < part)

    def _wrong(self, sequence: TokenSequence, after: Sequence[int], count: int) -> list[int]:
        """Return `count` tokens that are not in `after` and would not end the answer."""
        wrong: list[int] = []
        for token in range(self.vocab_size):
            if len(wrong) == count:
                break
            if token not in after and not sequence.is_terminal(token):
                wrong.append(token)
        return wrong

    def observe(self, tokens: Sequence[int], logits: Matrix) -> None:
        """Do nothing: the script has all tokens."""

    def release(self, sequence: TokenSequence) -> None:
        """Forget the random numbers of a sequence."""
        self._random.pop(sequence, None)


def _tree(root: int, right: Sequence[int], wrong: Sequence[int], source: str) -> DraftTree:
    """Return a chain of right tokens whose last node has the wrong tokens as children."""
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
    """Read the scripts and return a function that returns the draft."""
    source = context.spec.draft.source
    if source is None:
        raise ModelError("draft.source: method replay needs a file of scripts")
    replay = Replay(read_scripts(Path(source)), context.vocab_size)
    return lambda target: replay
