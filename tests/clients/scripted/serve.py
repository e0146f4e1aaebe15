"""Run `understudy` with scripted models, and record the requests of its clients.

The command is `python -m tests.clients.scripted.serve RECORD serve NAME --config DIR`. The front
end, the text process, and models that are not scripted are the real ones. Each request is a line
of the file RECORD.
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.process.client import EngineClient
from server.cli import main as cli
from server.config.registry import Registry
from server.config.settings import Settings
from server.http.app import create_app
from server.http.state import App
from tests.clients.scripted import engine

IGNORED = "x-understudy-ignored"


class Recorder:
    """A middleware that appends each request, and the status of its answer, to a file.

    It does so before the client gets the end of the answer.
    """

    def __init__(self, app: ASGIApp, path: Path) -> None:
        self._app = app
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, answer = bytearray(), bytearray()
        found: dict[str, Any] = {"status": 0, "ignored": "", "method": scope["method"]}
        found |= {"path": scope["path"], "headers": _text_of(scope["headers"])}

        def write() -> None:
            texts = {
                "body": body.decode(errors="replace"),
                "answer": answer.decode(errors="replace"),
            }
            line = json.dumps(found | texts) + "\n"
            with self._path.open("ab", buffering=0) as file:  # one write: readers see whole lines
                file.write(line.encode())

        async def receive_recorded() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        has_ended = False

        async def send_recorded(message: Message) -> None:
            nonlocal has_ended
            if message["type"] == "http.response.start":
                found["status"] = message["status"]
                found["ignored"] = _text_of(message["headers"]).get(IGNORED, "")
            else:
                answer.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    has_ended = True
                    write()
            await send(message)

        try:
            await self._app(scope, receive_recorded, send_recorded)
        finally:
            if not has_ended:  # the client has left
                write()


def _text_of(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}


def main() -> int:
    """Run the command line."""
    path, arguments = Path(sys.argv[1]), sys.argv[2:]

    def recorded_app(settings: Settings, registry: Registry, **kwargs: Any) -> App:
        engines = functools.partial(EngineClient, target=engine.main)
        app = create_app(settings, registry, engines, **kwargs)
        app.add_middleware(Recorder, path=path)
        return app

    with patch("server.cli.serve.create_app", recorded_app):
        return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
