"""The figures that a benchmark gives to the report: values, tables, plots and bars.

`python -m benchmarks.<name> --json` prints one `Figures` object. This module imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Bar:
    """A figure with the bound that it must reach."""

    quantity: str
    value: float
    relation: Literal[">=", "<="]
    bound: float
    unit: str = ""

    @property
    def is_reached(self) -> bool:
        """Return whether the value is within its bound; NaN never is."""
        return self.value >= self.bound if self.relation == ">=" else self.value <= self.bound

    def __str__(self) -> str:
        words = "at least" if self.relation == ">=" else "at most"
        verdict = "reached" if self.is_reached else "MISSED"
        unit = f" {self.unit}" if self.unit else ""
        value, bound = format_number(self.value), format_number(self.bound)
        return f"{self.quantity}: {value}{unit} ({words} {bound}), {verdict}"


@dataclass(frozen=True)
class Table:
    """A table whose cells are text or numbers; numbers are rounded when it is written."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def __str__(self) -> str:
        """Return the table as Markdown."""
        lines = [
            f"| {' | '.join(self.columns)} |",
            f"| {' | '.join('---' for _ in self.columns)} |",
        ]
        lines += [f"| {' | '.join(format_cell(value) for value in row)} |" for row in self.rows]
        return "\n".join([f"{self.caption}:" if self.caption else "", "", *lines]).strip()


@dataclass(frozen=True)
class Plot:
    """A plot of lines over one axis, which `benchmarks.plots` draws."""

    name: str  # file name without its ending
    x: str
    y: str
    lines: Mapping[str, Points]
    log_x: bool = False


@dataclass(frozen=True)
class Figures:
    """All figures of one benchmark."""

    name: str
    title: str
    values: Mapping[str, Any]
    tables: Sequence[Table]
    bars: Sequence[Bar] = ()
    plots: Sequence[Plot] = ()
    notes: Sequence[str] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as an object that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Figures":
        """Return the figures that `to_json` turned into `data`."""
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
        """Return values, notes, tables and bars as Markdown, without a heading."""
        parts = [values_line(self.values)] if self.values else []
        parts += [*self.notes, *map(str, self.tables)]
        if self.bars:
            parts.append("\n".join(f"- {bar}" for bar in self.bars))
        return "\n\n".join(parts)


def values_line(values: Mapping[str, Any]) -> str:
    """Return names and values as one sentence."""
    words = [f"{name.replace('_', ' ')} {format_cell(value)}" for name, value in values.items()]
    return ", ".join(words) + "."


def format_cell(value: Any) -> str:
    """Return the text of a table's cell."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return format_number(value) if isinstance(value, float) else str(value)


def format_number(value: float) -> str:
    """Return a number with three significant digits, or all digits before the point."""
    if value != value:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{value:.4f}" if "e" in text else text


def _points(lines: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Points]:
    return {name: [(point[0], point[1]) for point in points] for name, points in lines.items()}
