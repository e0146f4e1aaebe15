"""Text that a draft knows by heart, in trees of any number of rows, at the cost of any model.

For benchmarks of mechanisms, where a text that the draft misses now and then would be measured
instead. The model counts: after token t comes token t + 1. Its layers cost what those of any model
of their shape cost and add exactly zero (`benchmarks.grow`), so that a 4-bit copy counts as well.
A sure draft's tree is a chain; `Filler` adds rows that are never right.
"""

from collections.abc import Iterator, Sequence as Seq
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.random_model import SCALE, TOKENIZER, Checkpoint, Shape, write_checkpoint
from benchmarks.runs import Session
from engine.drafting.tree import DraftTree
from engine.sampling.large_vocabularies.blocks import Matrix
from engine.sequences.sequence import Sequence

FIRST = 300  # a prompt counts from here: no special token is near
SURE = 16.0  # logit of the next token; the others' are noise around 0
UNLIKELY = -3.0  # log-probability of a filler's row


def counting_model(folder: Path, shape: Shape) -> Checkpoint:
    """Write a bfloat16 checkpoint that counts; a finished one is left."""
    config = shape.config().to_json_string()
    recipe = f"counting to {SURE} {shape}"
    return write_checkpoint(folder, config, _shards(shape), tokenizer=TOKENIZER, recipe=recipe)


def counting_prompt(length: int) -> list[int]:
    """Token ids that the model goes on with."""
    return list(range(FIRST, FIRST + length))


def fill_trees(served: Session, rows: int) -> None:
    """From now on every tree has so many rows; the look-ups, which know the text too, are gone."""
    served.loaded.drafting._lookups = (Filler(rows),)


def _shards(shape: Shape) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def noise(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.bfloat16).normal_(0.0, SCALE, generator=generator)

    embedding = noise(shape.vocabulary, shape.hidden)
    for number, shapes in enumerate(shape.shards()):
        if number == 0:
            yield {"model.embed_tokens.weight": embedding}
        elif number <= shape.layers:  # norms of zero: attention and MLP give zero
            yield {
                name: noise(*size) if len(size) == 2 else torch.zeros(size, dtype=torch.bfloat16)
                for name, size in shapes.items()
            }
        else:
            norm = torch.ones(shape.hidden, dtype=torch.bfloat16)
            head = embedding.roll(1, 0) * (SURE / (SCALE * shape.hidden))
            yield {"model.norm.weight": norm, "lm_head.weight": head}


class Filler:
    """A look-up whose rows stand side by side below the root and never count on."""

    name = "filler"

    def __init__(self, rows: int) -> None:
        """`rows` of a full tree, the root among them."""
        self.rows = rows

    def propose(self, sequence: Sequence, depth: int, rows: int) -> DraftTree | None:
        count, last = self.rows - 1, sequence.tokens[-1]
        return DraftTree(
            tokens=(last, *range(last + 2, last + 2 + count)),  # not the next one
            parents=(-1, *(0,) * count),
            depths=(0, *(1,) * count),
            scores=(0.0, *(UNLIKELY,) * count),
            sources=("", *(self.name,) * count),
        )

    def observe(self, tokens: Seq[int], logits: Matrix) -> None:
        """It learns nothing."""

    def release(self, sequence: Sequence) -> None:
        """It keeps nothing."""
