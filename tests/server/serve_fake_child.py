"""Run `understudy` with the engine process of tests.engine.fake_engine, and a fake tokenizer.

The command is `python -m tests.server.serve_fake_child serve NAME --config DIR`.
"""

import functools
import sys
from unittest.mock import patch

from engine.process.client import EngineClient
from server.cli import main as cli
from server.http.app import create_app
from tests.engine import fake_engine
from tests.server.fake_text import FakeText


def main() -> int:
    engines = functools.partial(EngineClient, target=fake_engine.main)
    fake = functools.partial(create_app, text=FakeText())
    with (
        patch("server.cli.backend.EngineClient", engines),
        patch("server.cli.serve.create_app", fake),
    ):
        return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
