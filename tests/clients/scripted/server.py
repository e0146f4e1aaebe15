"""Start a server with scripted models, give them scripts, and read what their clients sent.

This file needs only the standard library: tests in the environments of other projects import it.

    with scripted_server(python, folder) as server:
        model = server.play("hermes", Script(Turn("Hello", Step("Good day."))))
        ...  # a client asks `model` at `server.url`
        assert server.failed() == []
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients.scripted.formats import FORMATS, TEMPLATES, ModelFormat
from tests.clients.scripted.script import Script
from tests.demo_server import ROOT, running_server

DEMO = ROOT / "configs" / "demo" / "target"


@dataclass(frozen=True)
class Recorded:
    """A request of a client, with the status and text of the answer."""

    method: str
    path: str
    headers: dict[str, str]
    body: str
    status: int
    ignored: str  # the header x-understudy-ignored of the answer
    answer: str


@dataclass(frozen=True)
class ScriptedServer:
    """A running server. Its models are the demo models, and one for each of `FORMATS`.

    Args:
        url: the base URL, which ends with /v1.
        folder: has the models and the record of requests.
    """

    url: str
    folder: Path

    @property
    def origin(self) -> str:
        """The base URL without /v1."""
        return self.url.removesuffix("/v1")

    def play(self, name: str, script: Script) -> str:
        """Let the model of the format `name` answer by `script`. Return the model's id."""
        script.write(self.folder / "sources" / name / "script.json")
        return model_id(name)

    def requests(self) -> list[Recorded]:
        """Return the requests that were answered since the start, or since `forget`."""
        path = self._record
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [Recorded(**json.loads(line)) for line in lines]

    def forget(self) -> None:
        """Start the record of requests anew."""
        self._record.unlink(missing_ok=True)

    def failed(self) -> list[str]:
        """Return a line for each request that was refused or failed."""
        return [
            f"{r.status} {r.method} {r.path}: {r.answer[:500]}"
            for r in self.requests()
            if r.status >= 400
        ]

    @property
    def _record(self) -> Path:
        return self.folder / "requests.jsonl"


def model_id(name: str) -> str:
    """Return the id of the scripted model of a format."""
    return f"scripted-{name}"


@contextmanager
def scripted_server(python: str, folder: Path) -> Iterator[ScriptedServer]:
    """Run a server with the interpreter `python`, and yield it once a scripted model is loaded."""
    for name, form in FORMATS.items():
        write_model(folder, name, form)
    # Clients with a short patience must get a signal in time.
    (folder / "understudy.yaml").write_text("keepalive: 1\n")
    command = ["-m", "tests.clients.scripted.serve", str(folder / "requests.jsonl"), "serve"]
    command += [model_id("hermes"), "--config", str(folder), "--port", "0"]
    with running_server([python, *command], folder) as (_, url):
        yield ScriptedServer(url, folder)


def write_model(folder: Path, name: str, form: ModelFormat) -> None:
    """Write the folder and the YAML file of a scripted model, with the demo's vocabulary."""
    source = folder / "sources" / name
    source.mkdir(parents=True)
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    _add_marks(tokenizer["added_tokens"], form.marks, len(tokenizer["model"]["vocab"]))
    settings: dict[str, Any] = json.loads((DEMO / "tokenizer_config.json").read_text())
    settings["eos_token"] = form.ends[0]
    del settings["model_max_length"]
    files = {
        "tokenizer.json": json.dumps(tokenizer),
        "tokenizer_config.json": json.dumps(settings),
        "format.json": json.dumps(name),
        "chat_template.jinja": (TEMPLATES / f"{name}.jinja").read_text(),
    }
    for file, text in files.items():
        (source / file).write_text(text, encoding="utf-8")
    Script().write(source / "script.json")
    (folder / "models").mkdir(exist_ok=True)
    yaml = folder / "models" / f"{model_id(name)}.yaml"
    yaml.write_text(f"target: {{source: {source}}}\n")


def _add_marks(added: list[dict[str, Any]], marks: tuple[str, ...], size: int) -> None:
    """Add those `marks` that the vocabulary does not have, with ids from `size` on."""
    known = {token["content"] for token in added}
    size = max(size, *(token["id"] + 1 for token in added))
    new = [mark for mark in marks if mark not in known]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added += [
        {"id": size + i, "content": mark, **flags, "special": True} for i, mark in enumerate(new)
    ]
