"""Run the command that the command line names."""

import os
from collections.abc import Sequence

from engine.errors import EngineError
from server.cli.arguments import build_parser
from server.cli.console import Console
from server.cli.signals import EndSignals
from server.config.files import ConfigError


def run(argv: Sequence[str] | None, signals: EndSignals) -> int:
    """Run one command and return its exit code. Errors are printed on stderr."""
    args = build_parser().parse_args(argv)
    console = Console()
    try:
        if args.command == "serve":
            signals.expect_server()
            from server.cli.serve import (
                serve,  # imports the web stack, which the other commands do not need
            )

            return serve(args, os.environ, console, signals)
        from server.cli import commands

        command = {
            "models": commands.models,
            "plan": commands.plan,
            "pull": commands.pull,
            "prune": commands.prune,
        }[args.command]
        return command(args, os.environ, console)
    except (ConfigError, EngineError) as error:
        console.line(f"understudy: error: {error}")
        return 1
