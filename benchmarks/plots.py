"""Draw small PNG plots of benchmarks; the only file that imports matplotlib."""

from pathlib import Path

from benchmarks.report_format import Plot

INCHES = (6.0, 3.4)
DPI = 80  # about 20 kB a plot


def file_name(plot: Plot) -> str:
    """Return the name of the plot's PNG file, without blanks."""
    return plot.name.replace(" ", "-") + ".png"


def draw(plot: Plot, folder: Path) -> Path:
    """Draw the plot and return its file in `folder`. A line of one point becomes a point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in plot.lines.items():
        xs, ys = zip(*sorted(points), strict=True)
        axes.plot(xs, ys, marker="o", markersize=3, linewidth=1.2, label=name)
    if plot.log_x:
        axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.y)
    axes.grid(alpha=0.3)
    if len(plot.lines) > 1:
        axes.legend(fontsize=7)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(plot)
    figure.savefig(path, metadata={"Software": None})
    return path
