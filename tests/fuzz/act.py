"""What a case does with its folder: the real paths of the commands and of the engine."""

import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

from engine.errors import ModelError
from engine.messages import Failed, Generate, SamplingParams
from engine.planning import probe
from engine.runtime.engine import Engine
from engine.spec import DraftSpec, MemorySpec, ModelSpec, StreamSpec, TargetSpec
from server.cli import main as command_line, serve
from server.text.limits import LANES
from server.text.tokenizer import load_tokenizer, template_file
from server.text.trial import tried

NAMES_A_FILE = re.compile(r"\.(json|jinja|safetensors|yaml|model|txt)\b|/model\b|target\.source")


def quicken() -> None:
    """Time passes only once: how fast the machine is matters to no case."""
    probe.SECONDS, probe.RUNS = 0.0, 1


def act(what: str, folder: Path) -> str:
    """Return the error that the folder gives, "" if there is none. Raises what must not be."""
    done: Callable[[Path], str] = {
        "plan": lambda folder: _command(["plan", str(folder), "--json"], folder),
        "plan for a card": lambda folder: _command(
            ["plan", str(folder), "--json", "--device-memory", "8GiB", "--ram", "16GiB"], folder
        ),
        "load": _load,
        "tokenizer": _tokenizer,
        "serve": _serve,
    }[what]
    return done(folder)


def _serve(folder: Path) -> str:
    async def stop(*_: object) -> int:
        return 0

    serve._run = stop  # type: ignore[assignment]  # everything but running until a signal comes
    return _command(["serve", "--config", str(folder), "--port", "0"], folder)


def _command(arguments: list[str], folder: Path) -> str:
    said = folder.parent / "said"
    with (
        said.open("w", encoding="utf-8", errors="replace") as file,
        contextlib.redirect_stderr(file),
        contextlib.redirect_stdout(sys.__stderr__),
    ):
        code = command_line.main(arguments)
    return said.read_text(encoding="utf-8") if code else ""


def _tokenizer(folder: Path) -> str:
    try:
        loaded = load_tokenizer(str(folder), None)
        loaded.decode(loaded.encode("Hello there", special=True))
        list(loaded.bytes)
    except ModelError as error:
        return str(error)
    reason = tried(loaded.compile_template, LANES[0]).reason
    return f"{template_file(str(folder), None)}: {reason}" if reason else ""


def _load(folder: Path) -> str:
    spec = ModelSpec(
        id="hostile",
        target=TargetSpec(str(folder)),
        draft=DraftSpec("ngram"),
        device="cpu",
        memory=MemorySpec(device=256 << 20),
        stream=StreamSpec(tier="ram", slots=2),
    )
    try:
        engine = Engine.load(spec, lambda step: None)
    except ModelError as error:
        return str(error)
    for grammar in ("", 'start: "a"'):
        params = SamplingParams(temperature=0.0, max_tokens=2, grammar=grammar)
        try:
            engine.add(Generate(grammar or "plain", (1, 2, 3), params, 1, ""))
        except Exception as error:
            if type(error).__name__ != "RequestError":
                raise
        while engine.has_work():
            for event in engine.step():
                assert not isinstance(event, Failed) or event.message
    engine.close()
    return ""
