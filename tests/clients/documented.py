"""The settings of each client in docs/clients.md, which the tests use.

This file needs only the standard library: tests in the environments of other projects import it.
"""

import re
from dataclasses import dataclass

from tests.demo_server import ROOT

DOCUMENT = ROOT / "docs" / "clients.md"
ORIGIN, MODEL = "http://127.0.0.1:8000", "my-model"  # stand for the user's own
TASK = "Write a poem to poem.txt."
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PATH = re.compile(r"`~/([^`]+)`")


@dataclass(frozen=True)
class Setup:
    """How a client is set up.

    Args:
        files: the texts of files by their paths in the home folder.
        commands: the lines of the shell that set variables and run the client with `TASK`.
    """

    files: dict[str, str]
    commands: str

    def of(self, origin: str, model: str) -> "Setup":
        """Return the setup for another server and model."""
        return self.with_replaced(ORIGIN, origin).with_replaced(MODEL, model)

    def with_replaced(self, old: str, new: str) -> "Setup":
        """Return the setup with another text in place of `old`."""
        files = {path: text.replace(old, new) for path, text in self.files.items()}
        return Setup(files, self.commands.replace(old, new))


def setup_of(heading: str) -> Setup:
    """Return what the section of the document with this heading says."""
    files: dict[str, str] = {}
    commands = ""
    text = _section(heading)
    for block in _BLOCK.finditer(text):
        if block[1] == "sh":
            commands += block[2]
        else:
            files[_PATH.findall(text, 0, block.start())[-1]] = block[2]
    return Setup(files, commands)


def headings() -> list[str]:
    """Return the headings of the document, one for each client."""
    return re.findall(r"^## (.+)$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)


def _section(heading: str) -> str:
    _, _, after = DOCUMENT.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    return after.partition("\n## ")[0]
