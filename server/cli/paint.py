"""Text of a model for the terminal, with the colour of what proposed each token."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.text import Text

from engine.errors import escaped
from engine.messages import CONTINUED, PREDICTION, TARGET

# The target's own tokens are plain. Styles differ by more than their colour.
STYLES = {TARGET: "", "grammar": "italic magenta", PREDICTION: "underline cyan", CONTINUED: "dim"}
DRAFTS = ("bold green", "underline blue", "bold yellow", "underline red")  # by order of appearance
JOINER = "\u200d"  # joins the parts of an emoji; terminals do nothing else with it


def shown_text(text: str) -> str:
    """Return a model's text without characters that a terminal might interpret.

    Only ends of lines, tabs and joiners of emoji stay.
    """
    return "".join(c if c in f"\n\t{JOINER}" else escaped(c) for c in text)


class Painter:
    """Chooses the style of each source of tokens, and counts an answer's tokens by source."""

    def __init__(self) -> None:
        self._styles = dict(STYLES)
        self._counts: Counter[str] = Counter()

    def begin(self) -> None:
        """Count anew, for the next answer."""
        self._counts.clear()

    def paint(self, origins: Iterable[Mapping[str, Any]]) -> Text:
        """Return the text of tokens, given the entries of their `provenance`, and count them."""
        text = Text()
        for origin in origins:
            self._counts[origin["source"]] += 1
            text.append(shown_text(origin["token"]), self._style(origin["source"]))
        return text

    def legend(self) -> Text:
        """Return the sources of the answer's tokens in their styles, with their shares."""
        total = max(1, self._counts.total())
        parts = [
            Text(f"{source} {count / total:.0%}", self._style(source))
            for source, count in self._counts.most_common()
        ]
        return Text(", ").join(parts)

    def _style(self, source: str) -> str:
        num_drafts = len(self._styles) - len(STYLES)
        return self._styles.setdefault(source, DRAFTS[num_drafts % len(DRAFTS)])
