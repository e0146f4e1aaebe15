"""Tests with aider: the edits that a model writes as text are made in files, in three formats."""

from pathlib import Path

import pytest

from tests.clients.documented import TASK, setup_of
from tests.clients.program import Program, installed
from tests.clients.scripted.script import Script, Step, Turn
from tests.clients.scripted.server import ScriptedServer

POEM = "Roses are red,\n    violets are <b>blue</b> & é 漢.\n"
EDITED = POEM.replace("red", "white")
AGAIN = "Change the color."
SAID = "It is all done now."

# The text of an answer that makes `POEM`, and of one that makes it `EDITED`.
WHOLE = ("poem.txt\n```\n" + POEM + "```\n", "poem.txt\n```\n" + EDITED + "```\n")
CHANGE = "<<<<<<< SEARCH\nRoses are red,\n=======\nRoses are white,\n>>>>>>> REPLACE\n"
DIFF = (
    "poem.txt\n```\n<<<<<<< SEARCH\n=======\n" + POEM + ">>>>>>> REPLACE\n```\n",
    "poem.txt\n```\n" + CHANGE + "```\n",
)
UNIFIED = (
    "```diff\n--- /dev/null\n+++ poem.txt\n@@ ... @@\n"
    + "".join(f"+{line}\n" for line in POEM.splitlines())
    + "```\n",
    "```diff\n--- poem.txt\n+++ poem.txt\n@@ ... @@\n-Roses are red,\n+Roses are white,\n```\n",
)


def aider(server: ScriptedServer, model: str, home: Path, edits: str = "diff") -> Program:
    """Return aider, set up as its section of docs/clients.md says."""
    setup = setup_of("aider").of(server.origin, model)
    settings = setup.files[".aider.conf.yml"]
    assert "edit-format: diff" in settings
    setup.files[".aider.conf.yml"] = settings.replace("edit-format: diff", f"edit-format: {edits}")
    return Program(installed("aider", "aider"), setup, home)


@pytest.mark.parametrize(
    ("edits", "texts", "form"),
    [("whole", WHOLE, "mistral"), ("diff", DIFF, "harmony"), ("udiff", UNIFIED, "hermes")],
)
def test_edits_are_made_and_changed(
    scripted: ScriptedServer, tmp_path: Path, edits: str, texts: tuple[str, str], form: str
) -> None:
    first, second = texts
    steps = [
        Turn(TASK, Step(f"I write it.\n\n{first}\n{SAID}", "A poem has lines.")),
        Turn(AGAIN, Step(f"I change it.\n\n{second}\n{SAID}", "White is a color.")),
    ]
    model = scripted.play(form, Script(*steps))
    program = aider(scripted, model, tmp_path, edits)
    poem = program.work / "poem.txt"
    assert SAID in program.run()
    assert poem.read_text(encoding="utf-8") == POEM
    assert SAID in program.run(AGAIN)
    assert poem.read_text(encoding="utf-8") == EDITED
    assert scripted.failed() == []
    assert {r.ignored for r in scripted.requests()} == {""}


def test_the_demo_is_asked(scripted: ScriptedServer, tmp_path: Path) -> None:
    """It cannot edit; its context must be large enough for what aider sends."""
    aider(scripted, "demo-64k", tmp_path).run()
    assert scripted.requests() and scripted.failed() == []
