"""A model whose text its draft always predicts, with trees of any number of rows.

Benchmarks of a mechanism use it, because with other texts they would measure how often the draft is
right. The model counts: token t + 1 follows token t. Its layers cost the same as those of any model
of their shape and add exactly zero (`benchmarks.grow`), so its 4-bit copy counts as well. The tree
of a draft that is certain is a chain; `Filler` adds rows that are never right.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.random_model import SCALE, TOKENIZER, Checkpoint, Shape, write_checkpoint
from benchmarks.runs import Session
from engine.drafting.tree import DraftTree
from engine.sampling.large_vocabularies.blocks import Matrix
from engine.sequences.sequence import TokenSequence

FIRST = 300  # first token of a prompt, far from special tokens
SURE = 16.0  # logit of the next token; all other logits are noise around 0
UNLIKELY = -3.0  # log-probability of an added row


def counting_model(folder: Path, shape: Shape) -> Checkpoint:
    """Write a bfloat16 checkpoint that counts; a finished one is not written again."""
    config = shape.config().to_json_string()
    recipe = f"counting to {SURE} {shape}"
    return write_checkpoint(folder, config, _shards(shape), tokenizer=TOKENIZER, recipe=recipe)


def counting_prompt(length: int) -> list[int]:
    """Return a prompt of `length` token ids that the model continues."""
    return list(range(FIRST, FIRST + length))


def fill_trees(served: Session, rows: int) -> None:
    """Give every later tree `rows` rows; the other look-ups, which know the text, are removed."""
    served.loaded.drafting._lookups = (Filler(rows),)


def _shards(shape: Shape) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def noise(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.bfloat16).normal_(0.0, SCALE, generator=generator)

    embedding = noise(shape.vocabulary, shape.hidden)
    for number, shapes in enumerate(shape.shards()):
        if number == 0:
            yield {"model.embed_tokens.weight": embedding}
        elif number <= shape.layers:  # with norms of zero, attention and MLP return zero
            yield {
                name: noise(*size) if len(size) == 2 else torch.zeros(size, dtype=torch.bfloat16)
                for name, size in shapes.items()
            }
        else:
            norm = torch.ones(shape.hidden, dtype=torch.bfloat16)
            head = embedding.roll(1, 0) * (SURE / (SCALE * shape.hidden))
            yield {"model.norm.weight": norm, "lm_head.weight": head}


class Filler:
    """A look-up that proposes wrong tokens, all of them children of the root."""

    name = "filler"

    def __init__(self, rows: int) -> None:
        """Take the number of rows of a full tree, with its root."""
        self.rows = rows

    def propose(self, sequence: TokenSequence, depth: int, rows: int) -> DraftTree | None:
        """Return the root with `rows` - 1 tokens, none of which is the next one."""
        count, last = self.rows - 1, sequence.tokens[-1]
        return DraftTree(
            tokens=(last, *range(last + 2, last + 2 + count)),  # not the next one
            parents=(-1, *(0,) * count),
            depths=(0, *(1,) * count),
            scores=(0.0, *(UNLIKELY,) * count),
            sources=("", *(self.name,) * count),
        )

    def observe(self, tokens: Sequence[int], logits: Matrix) -> None:
        """Do nothing: no text changes the proposals."""

    def release(self, sequence: TokenSequence) -> None:
        """Do nothing: no state is kept for a sequence."""
