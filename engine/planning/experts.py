"""The experts of mixtures: how many of them the rows of a pass are expected to choose."""

from dataclasses import dataclass

from engine.spec import TILE


@dataclass(frozen=True)
class Experts:
    """The mixtures of experts of a model, whose layers are taken to be alike.

    Rows are taken to choose experts independently of each other.
    """

    chosen: int  # by a row in each layer
    count: int  # in a layer
    share: float  # of the model's dense weights, that of experts
    units: frozenset[int]  # of layers with experts

    def expected(self, rows: int) -> float:
        """Return how many experts of a layer are chosen by at least one of some rows."""
        return self.count * (1 - (1 - self.chosen / self.count) ** rows)

    def used_share(self, rows: int) -> float:
        """Return the products of experts with a tile of rows, as a share of the number of experts.

        Each expert multiplies the rows that chose it, which are not whole tiles.
        """
        chosen = self.expected(rows)
        return max(chosen, chosen / 2 + rows * self.chosen / TILE) / self.count
