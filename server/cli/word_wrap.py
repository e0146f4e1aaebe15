"""Text that arrives in pieces, broken between words at the width of the terminal.

Each piece is shown at once: a word that turns out to be too long for its line is taken back and
begins the next one.
"""

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

FENCE = "```"
TAB = 4


class WordWrap:
    """Writes a text to a terminal. Lines of code between fences are left as they are."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._ready = Text()  # what is still to be printed
        self._word = Text()  # what the line ends in, without a blank in it
        self._line = ""  # what the line begins with: enough to know a fence
        self._column = 0
        self._is_code = False

    def write(self, piece: Text) -> None:
        """Show a piece of the text."""
        for character in _characters(piece):
            if character.plain == "\n":
                self._end_line()
            else:
                self._add(character)
        self._print()

    def _end_line(self) -> None:
        self._is_code ^= self._line.lstrip().startswith(FENCE)
        self._line = ""
        self._break()

    def _break(self) -> None:
        self._ready.append("\n")
        self._word = Text()
        self._column = 0

    def _add(self, character: Text) -> None:
        width = cell_len(character.plain)
        most = self._screen.width - 1  # a full line would move the cursor
        is_over = self._column + width > most and not self._is_fenced()
        if character.plain.isspace():
            if is_over:
                self._break()  # the blank is the break
                return
            self._word = Text()
        elif is_over:
            self._move_word(most - width)
        if width == 2:  # East Asian scripts are broken between characters
            self._word = Text()
        elif not character.plain.isspace():
            self._word.append_text(character)
        if len(self._line) <= TAB + len(FENCE):
            self._line += character.plain
        self._ready.append_text(character)
        self._column += width

    def _is_fenced(self) -> bool:
        return self._is_code or self._line.lstrip().startswith(FENCE)

    def _move_word(self, most: int) -> None:
        """Begin a line with the word that the current one ends in, unless it fills that line."""
        word, width = self._word, cell_len(self._word.plain)
        if width == self._column or width > most:
            self._break()
            return
        self._print()
        if width:
            back = (ControlType.CURSOR_BACKWARD, width)
            self._screen.control(Control(back, (ControlType.ERASE_IN_LINE, 0)))
        self._break()
        self._ready.append_text(word)
        self._word, self._column = word, width

    def _print(self) -> None:
        if self._ready:
            self._screen.print(self._ready, end="", soft_wrap=True)
            self._ready = Text()


def _characters(piece: Text) -> Iterator[Text]:
    """Yield a text in pieces that stay together: each with the marks that combine with it."""
    text = piece.copy()
    text.expand_tabs(TAB)
    start = 0
    for end in range(1, len(text.plain) + 1):
        if end == len(text.plain) or _begins(text.plain, end):
            yield text[start:end]
            start = end


def _begins(text: str, at: int) -> bool:
    """Return whether a character does not combine with the one before it."""
    return text[at] == "\n" or text[at - 1] == "\n" or cell_len(text[at]) > 0
