"""Serve the fake engine in a process of its own: `python -m tests.server.serve_fake [--key KEY]`.

The first line of output is the port on which the server listens.
"""

import argparse
import logging

import uvicorn

from server.cli.serve import bind, http_config
from server.config.registry import Registry
from server.config.settings import Settings
from server.http.app import create_app
from server.http.auth import ApiKeys
from server.models.planner import Planner
from tests.server.conftest import entry
from tests.server.fake_engine import FakeEngines
from tests.server.fake_text import FakeText
from tests.server.models import plan_targets


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--key", action="append", default=[])
    keys = ApiKeys(parser.parse_args().key)
    logging.disable()
    registry = Registry([entry("main"), entry("org/other")], "main", strict=True)
    planner = Planner(plan_targets.small_plan)
    app = create_app(
        Settings(), registry, FakeEngines(), keys=keys, text=FakeText(), planner=planner
    )
    with bind("127.0.0.1", 0) as listener:
        print(listener.getsockname()[1], flush=True)
        uvicorn.Server(http_config(app)).run([listener])


if __name__ == "__main__":
    main()
