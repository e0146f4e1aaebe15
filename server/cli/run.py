"""Run the command that the command line names."""

import argparse
import os
import sys
from collections.abc import Sequence

from engine.errors import EngineError
from server.cli.arguments import Parsers, build_parsers, version_line
from server.cli.asked_settings import asked_settings
from server.cli.console import Console
from server.cli.signals import INTERRUPTED, EndSignals
from server.config.environment import unknown_variables
from server.config.files import ConfigError

# Commands that use no variables, or whose output programs read; a server warns in its log.
QUIET = ("serve", "cluster", "help", "version", "completion")


def run(argv: Sequence[str] | None, signals: EndSignals) -> int:
    """Run one command and return its exit code. Errors are printed on stderr."""
    parsers = build_parsers()
    given = sys.argv[1:] if argv is None else argv
    if not given:
        parsers.main.print_help()
        return 0
    args = parsers.parse(given)
    console = Console()
    try:
        if args.command not in QUIET:
            _warn_of_variables(console)
        return _run(args, parsers, console, signals)
    except (ConfigError, EngineError) as error:
        console.error(error)
        return 1
    except KeyboardInterrupt:  # of commands that use `raise_interrupts`
        return INTERRUPTED


def _run(args: argparse.Namespace, parsers: Parsers, console: Console, signals: EndSignals) -> int:
    """Run one command. Each imports what it needs: the web stack and rich take a while."""
    match args.command:
        case "serve" | "cluster":
            signals.expect_server()
            return _run_server(args, console, signals)
        case "help":
            return _print_help(args.topic, parsers)
        case "version":
            print(version_line())
            return 0
        case "completion":
            from server.cli.completion import completion

            return completion(args, os.environ, parsers)
        case "health" | "ps" | "stop":
            from server.cli import control

            command = {"health": control.health, "ps": control.ps, "stop": control.stop}[
                args.command
            ]
            return command(args, os.environ, console)
        case "top":
            import rich.console

            from server.cli.top import top

            signals.raise_interrupts()
            return top(args, os.environ, rich.console.Console(highlight=False))
        case "chat":
            import rich.console

            from server.cli.chat import chat

            signals.raise_interrupts()
            notes = rich.console.Console(stderr=True, highlight=False)
            return chat(args, os.environ, rich.console.Console(highlight=False), notes)
        case "doctor":
            import rich.console

            from server.cli.doctor import doctor

            return doctor(args, os.environ, rich.console.Console(highlight=False))
    from server.cli import commands

    return {
        "models": commands.models,
        "plan": commands.plan,
        "pull": commands.pull,
        "prune": commands.prune,
    }[args.command](args, os.environ, console)


def _run_server(args: argparse.Namespace, console: Console, signals: EndSignals) -> int:
    """Run a server. Its settings are read before anything else: they say how lines are written."""
    settings = asked_settings(args, os.environ)
    with console.taking_logs(settings) as drain:
        console.line("Starting the server.")  # importing its libraries takes seconds
        _warn_of_variables(console)
        if args.command == "serve":
            from server.cli.serve import serve

            return serve(args, os.environ, settings, console, signals, drain)
        from server.cli.cluster import serve_cluster

        return serve_cluster(args, os.environ, settings, console, signals, drain)


def _warn_of_variables(console: Console) -> None:
    for warning in unknown_variables(os.environ):
        console.warning(warning)


def _print_help(topic: str | None, parsers: Parsers) -> int:
    if topic is not None:
        parsers.check_command(topic)
    parser = parsers.main if topic is None else parsers.commands[topic]
    parser.print_help()
    return 0
