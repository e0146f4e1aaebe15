"""What a benchmark hands to the report: values, tables, plots, and bars that are reached or not.

`python -m benchmarks.<name> --json` prints one such object. Nothing heavy is imported here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Bar:
    """A figure and what it must reach."""

    quantity: str
    value: float
    relation: Literal[">=", "<="]
    bound: float
    unit: str = ""

    @property
    def is_reached(self) -> bool:
        return self.value >= self.bound if self.relation == ">=" else self.value <= self.bound

    def __str__(self) -> str:
        words = "at least" if self.relation == ">=" else "at most"
        verdict = "reached" if self.is_reached else "MISSED"
        unit = f" {self.unit}" if self.unit else ""
        return (
            f"{self.quantity}: {number(self.value)}{unit} ({words} {number(self.bound)}), {verdict}"
        )


@dataclass(frozen=True)
class Table:
    """Cells are text or numbers; numbers are rounded when they are written."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def __str__(self) -> str:
        """As Markdown."""
        lines = [
            f"| {' | '.join(self.columns)} |",
            f"| {' | '.join('---' for _ in self.columns)} |",
        ]
        lines += [f"| {' | '.join(cell(value) for value in row)} |" for row in self.rows]
        return "\n".join([f"{self.caption}:" if self.caption else "", "", *lines]).strip()


@dataclass(frozen=True)
class Plot:
    """Lines over one axis; drawn by `benchmarks.plots`."""

    name: str  # of the file, without its ending
    x: str
    y: str
    lines: Mapping[str, Points]
    log_x: bool = False


@dataclass(frozen=True)
class Figures:
    """All that one benchmark measured."""

    name: str
    title: str
    values: Mapping[str, Any]
    tables: Sequence[Table]
    bars: Sequence[Bar] = ()
    plots: Sequence[Plot] = ()
    notes: Sequence[str] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Figures":
        """The inverse of `to_json`."""
        plots = [Plot(**{**plot, "lines": _points(plot["lines"])}) for plot in data["plots"]]
        return cls(
            **{
                **data,
                "tables": [Table(**table) for table in data["tables"]],
                "bars": [Bar(**bar) for bar in data["bars"]],
                "plots": plots,
            }
        )

    def __str__(self) -> str:
        """As Markdown without the heading: values, notes, tables, bars."""
        parts = [values_line(self.values)] if self.values else []
        parts += [*self.notes, *map(str, self.tables)]
        if self.bars:
            parts.append("\n".join(f"- {bar}" for bar in self.bars))
        return "\n\n".join(parts)


def values_line(values: Mapping[str, Any]) -> str:
    """Names and values as one sentence."""
    words = [f"{name.replace('_', ' ')} {cell(value)}" for name, value in values.items()]
    return ", ".join(words) + "."


def cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return number(value) if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """Three digits that count, or all of a large number."""
    if value != value:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{value:.4f}" if "e" in text else text


def _points(lines: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Points]:
    return {name: [(point[0], point[1]) for point in points] for name, points in lines.items()}
