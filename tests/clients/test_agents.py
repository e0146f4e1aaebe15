"""Tests with coding agents: tools are called and files are edited, in every format."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.clients.documented import TASK, setup_of
from tests.clients.program import TIMEOUT_S, Program, installed
from tests.clients.scripted.formats import FORMATS
from tests.clients.scripted.script import Call, Script, Step, Turn
from tests.clients.scripted.server import ScriptedServer

POEM = 'Roses are "red",\n\tviolets are <b>blue</b> & \\n é 漢.\n'
EDITED = POEM.replace('"red"', "'white'")
PATCH = """apply_patch <<'EOF'
*** Begin Patch
*** Update File: poem.txt
@@
-Roses are "red",
+Roses are 'white',
*** End Patch
EOF
"""
pytestmark = pytest.mark.timeout(3 * TIMEOUT_S)  # a test has at most two runs
DONE, AGAIN, DONE_AGAIN = "It is all done now.", "Read it once more.", "I have read it."
LONG_DEMO = "demo-64k"  # whatever it says
ANSWER_LIMIT = "8192"  # tokens, in the settings of the clients that have such a limit
CHANGE = {"old_?[sS]tring": '"red"', "new_?[sS]tring": "'white'"}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg=="
)


@dataclass(frozen=True)
class Agent:
    """A coding agent, and the calls by which it does the task.

    Args:
        name: the folder in which it is installed.
        program: the file that runs it.
        resume: the options that continue its last conversation.
        shell: returns a call that runs a command.
        write: returns a call that writes `POEM` to a file.
        edit: returns the calls that make it `EDITED`, for the model of a format.
        look: returns calls whose results are not only text.
        left_out: what of its requests the server leaves out.
    """

    name: str
    program: str
    resume: str
    shell: Callable[[str], Call]
    write: Callable[[Path], Call]
    edit: Callable[[Path, str], Sequence[Call]]
    look: Callable[[Path], Sequence[Call]] = lambda _: ()
    left_out: frozenset[str] = frozenset()


def _codex_shell(command: str) -> Call:
    return Call("exec_command", {"cmd": command})


def _shell(command: str) -> Call:
    return Call("Bash|bash", {"command": command})


def _claude_shell(command: str) -> Call:
    return Call("Bash", {"command": command, "description": "Run it"})


def _write(path: Path) -> Call:
    return Call("Write|write", {"file_path|filePath|filepath": str(path), "content": POEM})


def _edit(path: Path, _form: str) -> list[Call]:
    return [Call("Edit|edit", {"file_path|filePath": str(path), **CHANGE})]


def _continue_edit(path: Path, form: str) -> list[Call]:
    """Return calls of Continue, which offers `MultiEdit` to models with certain names."""
    read = Call("Read", {"filepath": str(path)})
    if form.startswith(("qwen", "llama", "mistral")):
        edits = [{"old_string": '"red"', "new_string": "'white'"}]
        return [read, Call("MultiEdit", {"file_?path": str(path), "edits": edits})]
    return [read, *_edit(path, form)]


AGENTS = {
    "Codex CLI": Agent(
        "codex",
        "codex",
        "resume --last",
        _codex_shell,
        lambda path: _codex_shell(f"cat > {path.name} <<'EOF'\n{POEM}EOF"),
        lambda path, form: [_codex_shell(PATCH)],
        lambda work: [Call("view_image", {"path": str(work / "dot.png")})],
        frozenset({"web_search", "input_image in a tool result"}),
    ),
    "Claude Code": Agent(
        "claude-code",
        "claude",
        "--continue",
        _claude_shell,
        _write,
        _edit,
        lambda work: [
            Call("Read", {"file_path": str(work / "dot.png")}),
            Call("ToolSearch", {"query": "select:WebFetch", "max_results": 1}),
        ],
        frozenset({"image in a tool result"}),
    ),
    "OpenCode": Agent("opencode", "opencode", "--continue", _shell, _write, _edit),
    "Continue CLI": Agent("continue", "cn", "--resume", _shell, _write, _continue_edit),
}


def program_of(heading: str, server: ScriptedServer, model: str, home: Path) -> Program:
    """Return an agent that is set up for a model as its section of the document says."""
    agent = AGENTS[heading]
    binaries = installed(agent.name, agent.program)
    return Program(binaries, setup_of(heading).of(server.origin, model), home)


def script_of(agent: Agent, work: Path, form: str) -> Script:
    """Return a script that writes, edits and copies the poem, and reads it in a second turn."""
    path = work / "poem.txt"
    copy, fail = agent.shell("cp poem.txt copy.txt && wc copy.txt"), agent.shell("false")
    last = [[copy], [fail]] if FORMATS[form].has_one_call else [[copy, fail]]
    calls = [*agent.edit(path, form), *agent.look(work)]
    return Script(
        Turn(
            TASK,
            Step("I write it.", "A poem has lines.", [agent.write(path)]),
            *(Step(calls=[call]) for call in calls),
            *(Step("", "Now the copy.", each) for each in last),
            Step(DONE, "That was all."),
        ),
        Turn(AGAIN, Step(calls=[agent.shell("cat copy.txt > again.txt")]), Step(DONE_AGAIN)),
    )


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("heading", AGENTS)
def test_an_agent_edits_files_and_goes_on(
    scripted: ScriptedServer, tmp_path: Path, heading: str, form: str
) -> None:
    agent = AGENTS[heading]
    program = program_of(heading, scripted, f"scripted-{form}", tmp_path)
    program.work.mkdir()
    (program.work / "dot.png").write_bytes(PNG)
    scripted.play(form, script_of(agent, program.work, form))
    assert DONE in program.run()
    assert (program.work / "poem.txt").read_text(encoding="utf-8") == EDITED
    assert (program.work / "copy.txt").read_text(encoding="utf-8") == EDITED

    assert DONE_AGAIN in program.run(AGAIN, agent.resume)
    assert (program.work / "again.txt").read_text(encoding="utf-8") == EDITED
    assert scripted.failed() == []
    assert left_out(scripted) <= agent.left_out


def left_out(server: ScriptedServer) -> set[str]:
    """Return what the server left out of the requests, without its place."""
    named = {part for r in server.requests() for part in r.ignored.split(", ") if part}
    return {part.partition("] ")[2] or part for part in named}


@pytest.mark.parametrize("heading", AGENTS)
def test_an_agent_gets_answers_of_the_demo(
    scripted: ScriptedServer, tmp_path: Path, heading: str
) -> None:
    program = program_of(heading, scripted, LONG_DEMO, tmp_path)
    program = replace(program, setup=program.setup.with_replaced(ANSWER_LIMIT, "64"))
    program.run()
    assert scripted.failed() == []
    assert LONG_DEMO in scripted.requests()[-1].body


def test_codex_waits_for_a_model_that_is_silent(scripted: ScriptedServer, tmp_path: Path) -> None:
    """Only Codex has a limit of its own that comments do not reset; it is five minutes."""
    program = program_of("Codex CLI", scripted, "scripted-hermes", tmp_path)
    wire = 'wire_api = "responses"\n'
    setup = program.setup.with_replaced(wire, f"{wire}stream_idle_timeout_ms = 4000\n")
    scripted.play("hermes", Script(Turn(TASK, Step(DONE)), first_after_s=12.0))
    assert DONE in replace(program, setup=setup).run()
    assert len(scripted.requests()) == 1  # it has not asked again
