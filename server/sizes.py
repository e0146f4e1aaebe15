"""Sizes and durations as text, for people."""


def size_text(nbytes: float) -> str:
    """Return a number of bytes as text, such as "7.2 GB"."""
    size = float(nbytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def duration_text(seconds: float) -> str:
    """Return a duration as text, such as "4 min"."""
    for unit, length, most in (("s", 1, 100), ("min", 60, 100)):
        if seconds < most * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"


def several(count: int, noun: str) -> str:
    """Return a count with its noun: "1 token", "2 tokens", "3 passes"."""
    if count != 1:
        noun += "es" if noun.endswith("s") else "s"
    return f"{count} {noun}"
