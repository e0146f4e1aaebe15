"""Text that arrives in pieces, broken between words at the width of the terminal.

Each piece is shown at once: a word that turns out to be too long for its line is taken back and
begins the next one.
"""

from rich.cells import cell_len
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.style import Style
from rich.text import Text

FENCE = "```"
TAB = 4


class WordWrap:
    """Writes a text to a terminal. Lines of code between fences are left as they are."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._ready = _Runs()  # what is still to be printed
        self._word = _Runs()  # what the line ends in, without a blank in it
        self._line = ""  # what the line begins with: enough to know a fence
        self._column = 0
        self._is_code = False

    def write(self, piece: Text) -> None:
        """Show a piece of the text."""
        text = piece.copy()
        text.expand_tabs(TAB)
        for at, character in enumerate(text.plain):
            if character == "\n":
                self._end_line()
            else:
                self._add(character, text.get_style_at_offset(self._screen, at))
        self._print()

    def break_line(self) -> None:
        """End the unfinished line, so that a note can be printed before the text goes on."""
        if self._column:
            self._break()
            self._print()

    def _end_line(self) -> None:
        self._is_code ^= self._line.lstrip().startswith(FENCE)
        self._line = ""
        self._break()

    def _break(self) -> None:
        self._ready.add("\n", Style.null())
        self._word = _Runs()
        self._column = 0

    def _add(self, character: str, style: Style) -> None:
        width = cell_len(character)
        room = self._screen.width - 1 - self._column  # a full line would move the cursor
        is_over = width > room and not self._is_fenced()
        if is_over and character.isspace():
            self._break()  # the blank becomes the end of the line
            return
        if is_over:
            self._move_word(width)
        if character.isspace() or width == 2:  # East Asian scripts are broken between characters
            self._word = _Runs()
        else:
            self._word.add(character, style)
        if len(self._line) <= TAB + len(FENCE):
            self._line += character
        self._ready.add(character, style)
        self._column += width

    def _is_fenced(self) -> bool:
        return self._is_code or self._line.lstrip().startswith(FENCE)

    def _move_word(self, width: int) -> None:
        """Begin a line with the word that the current one ends in, unless it fills that line.

        Args:
            width: the columns of the next character, which has no room.
        """
        word, columns = self._word, cell_len(self._word.plain)
        if columns == self._column or width == 2:
            self._break()
            return
        self._print()
        if columns:
            back = (ControlType.CURSOR_BACKWARD, columns)
            self._screen.control(Control(back, (ControlType.ERASE_IN_LINE, 0)))
        self._break()
        self._ready.extend(word)
        self._word, self._column = word, columns

    def _print(self) -> None:
        self._screen.print(self._ready.text(), end="", soft_wrap=True)
        self._ready = _Runs()


class _Runs:
    """Characters with their styles; equal styles that follow each other are one run."""

    def __init__(self) -> None:
        self._runs: list[tuple[str, Style]] = []

    @property
    def plain(self) -> str:
        return "".join(run for run, _ in self._runs)

    def add(self, characters: str, style: Style) -> None:
        if self._runs and self._runs[-1][1] == style:
            characters = self._runs.pop()[0] + characters
        self._runs.append((characters, style))

    def extend(self, others: "_Runs") -> None:
        for characters, style in others._runs:
            self.add(characters, style)

    def text(self) -> Text:
        return Text.assemble(*self._runs)
