"""The arguments of each command, and the texts of `--help`."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from server.cli.numbers import number, size
from server.cli.suggest import did_you_mean
from server.schemas.plans import MAX_GBPS, MAX_USERS, MIN_GBPS
from server.schemas.status import LONGEST_GRACE_S
from server.version import version

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

SERVE = """\
MODEL is an id of the registry (a file configs/models/<id>.yaml), a Hugging Face
hub id (owner/name) or a folder. For a model without a file, the tier of its
weights and its draft are chosen to fit this machine, and a file with the same
choices is printed.

Command-line options override environment variables (UNDERSTUDY_HOST,
UNDERSTUDY_PORT, UNDERSTUDY_DEFAULT_MODEL, ...), which override understudy.yaml.
That file and the files of models are searched in --config, else in ./configs and
~/.config/understudy, and then in the built-in demo.

API keys: UNDERSTUDY_API_KEY, or --api-key-file with one key a line (read again when
it changes).
"""

PLAN = """\
MODEL is the same as for `serve`. Of a hub id that is not downloaded, only config.json
is fetched. Without --device-memory the plan is for this machine. Speeds are forecasts;
the assumptions of each are listed below it.

Exit code 2: the model cannot be served within these limits; the reason is on stderr.
"""


STOP = """\
MODEL is an id or an alias. Without it, the model in memory is unloaded. Requests that
run may finish within the grace; the next request for the model loads it again.
--server ends a server of this user on this machine, as Ctrl-C does.
"""

CLUSTER = """\
Needs the extra of Ray: pip install 'understudy[cluster]'. MODEL is the same as for
`serve`; each replica loads it. Without --address a Ray cluster is started on this
machine, which nothing else can reach, and which ends with this command. The model is
one application of Ray Serve. See docs/cluster.md.
"""

COMPLETION = """\
bash: understudy completion bash > ~/.local/share/bash-completion/completions/understudy
zsh:  understudy completion zsh >> ~/.zshrc
fish: understudy completion fish > ~/.config/fish/completions/understudy.fish
"""

CHAT = """\
If no server runs and none is named with --url or UNDERSTUDY_URL, one is started for
MODEL, which may then be anything that `serve` takes, and ended after the chat.
UNDERSTUDY_API_KEY is sent to servers with keys.
"""

SERVER = """\
The server is the one that runs on this machine for this user, or that of --url or
UNDERSTUDY_URL. UNDERSTUDY_API_KEY is sent to servers with keys. The certificate of a
server on this machine is trusted; --ca or UNDERSTUDY_CA names those of others.
"""

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
SHELLS = ("bash", "zsh", "fish")
CLUSTER_ACTIONS = ("serve",)
LIST_MODELS = "models"  # instead of a shell: what the scripts call


@dataclass(frozen=True)
class Parsers:
    """The parser of the whole command line, and that of each command."""

    main: argparse.ArgumentParser
    commands: Mapping[str, argparse.ArgumentParser]

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Return the arguments; the result names the command in `command`.

        Exit with code 2 and a suggestion where a command or an option is not known.
        """
        if argv and not argv[0].startswith("-"):
            self.check_command(argv[0])
        args, unknown = self.main.parse_known_args(argv)
        if unknown:
            name = unknown[0].partition("=")[0]
            known = self.options(args.command) if name.startswith("-") else ()
            self.commands[args.command].error(
                f"unknown argument {name}.{did_you_mean(name, known)}"
            )
        return args

    def check_command(self, name: str) -> None:
        """Exit with code 2 and a suggestion where there is no such command."""
        if name not in self.commands:
            known = ", ".join(self.commands)
            suggestion = did_you_mean(name, self.commands) or f" There are: {known}."
            self.main.error(f"unknown command {name!r}.{suggestion}")

    def options(self, command: str) -> list[str]:
        """Return the long options of a command."""
        return sorted(set(OPTION.findall(self.commands[command].format_usage())) | {"--help"})


def build_parsers() -> Parsers:
    """Return the parsers of the command line."""
    parser = argparse.ArgumentParser(
        prog="understudy",
        description="Serve models that do not fit your GPU, over the OpenAI API, with exactly "
        "the tokens the full model would have produced.",
    )
    parser.add_argument("--version", action="version", version=version_line())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_cluster(commands)
    _add_control(commands)
    _add_plan(commands)
    models = commands.add_parser("models", help="list models, downloads and the cache")
    pull = commands.add_parser("pull", help="download a model (and its draft) ahead of time")
    pull.add_argument("id", metavar="ID", help="id of the registry, or hub id (owner/name)")
    prune = commands.add_parser("prune", help="empty the cache, which is filled again on use")
    prune.add_argument("--yes", action="store_true", help="do not ask")
    doctor = commands.add_parser("doctor", help="check this machine, and say what would go wrong")
    doctor.add_argument("--json", action="store_true", help="print everything as JSON")
    completion = _add_described(
        commands,
        "completion",
        "print a script that completes commands in a shell",
        "Print a script that completes commands, options and models.",
        COMPLETION,
    )
    completion.add_argument("shell", choices=(*SHELLS, LIST_MODELS), metavar="|".join(SHELLS))
    for command in (models, pull, doctor, completion):
        _add_config(command)
    commands.add_parser("version", help="print the version")
    about = commands.add_parser("help", help="print the help of a command")
    about.add_argument("topic", nargs="?", metavar="COMMAND")
    return Parsers(parser, commands.choices)


def version_line() -> str:
    """Return the program's name and version."""
    return f"understudy {version(if_not_installed='(not installed)')}"


def _add_described(
    commands: Commands, name: str, summary: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    """Add a command, and return its parser. Its help ends with the paragraphs of `epilog`."""
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_serve(commands: Commands) -> None:
    serve = _add_described(
        commands, "serve", "serve a model", "Serve a model over the OpenAI API.", SERVE
    )
    _add_server_options(serve)


def _add_cluster(commands: Commands) -> None:
    cluster = _add_described(
        commands,
        "cluster",
        "serve a model by replicas on many machines",
        "Serve a model by replicas on the machines of a Ray cluster.",
        CLUSTER,
    )
    cluster.add_argument(
        "action", choices=CLUSTER_ACTIONS, metavar="serve", help="the only one so far"
    )
    _add_server_options(cluster)
    cluster.add_argument(
        "--replicas", type=_replicas, default=1, metavar="N", help="replicas (default: 1)"
    )
    cluster.add_argument(
        "--max-replicas",
        type=_replicas,
        metavar="N",
        help="add replicas up to this number while requests wait (default: --replicas)",
    )
    cluster.add_argument(
        "--up-wait",
        type=_scale_seconds,
        default=2.0,
        metavar="S",
        help="add one where the 90th percentile of the queue wait is longer (default: 2)",
    )
    cluster.add_argument(
        "--down-idle",
        type=_scale_seconds,
        default=600.0,
        metavar="S",
        help="take one away that has had no request for this time (default: 600)",
    )
    cluster.add_argument(
        "--gpus",
        type=_gpus,
        metavar="N",
        help="GPUs of each replica (default: 1 where the cluster has any)",
    )
    cluster.add_argument(
        "--address", help="the Ray cluster: auto for the one that this machine belongs to"
    )
    cluster.add_argument(
        "--attach",
        action="store_true",
        help="use the replicas that another command or a RayService has deployed",
    )


def _add_server_options(serve: argparse.ArgumentParser) -> None:
    """Add the options of a server, and its model."""
    serve.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="what to serve (default: default_model, the built-in demo)",
    )
    _add_config(serve)
    serve.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=_port, help="port to listen on; 0 picks one (default: 8000)")
    serve.add_argument(
        "--api-key",
        metavar="KEY",
        help="the key that clients must send; other users can see it in the list of processes",
    )
    serve.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="file of keys, one on each line"
    )
    serve.add_argument(
        "--tls-cert", type=Path, metavar="FILE", help="certificate in PEM format: serve https only"
    )
    serve.add_argument(
        "--tls-key", type=Path, metavar="FILE", help="its key (default: in the same file)"
    )
    serve.add_argument(
        "--insecure", action="store_true", help="allow other machines to connect without a key"
    )
    serve.add_argument(
        "--log-format", metavar="FORMAT", help="text, or json for programs (default: text)"
    )
    serve.add_argument(
        "--access-log", action="store_true", help="write a line to the log for each request"
    )
    serve.add_argument("--save", action="store_true", help="write a file for a model without one")


def _add_control(commands: Commands) -> None:
    """Add the commands that talk to a running server."""
    chat = _add_described(
        commands,
        "chat",
        "talk to a model in the terminal",
        "Talk to a model in the terminal. /help lists what can be done there.",
        CHAT,
    )
    chat.add_argument("model", nargs="?", metavar="MODEL", help="default: the server's own")
    chat.add_argument("--system", metavar="TEXT", help="a system message")
    ps = _add_described(
        commands,
        "ps",
        "list the models that are loaded",
        "List the models that running servers have in memory.",
        SERVER,
    )
    ps.add_argument("--all", action="store_true", help="list models that are not loaded too")
    ps.add_argument("--json", action="store_true", help="print the whole status as JSON")
    top = _add_described(
        commands,
        "top",
        "watch a server: models, queue, speed, link, memory",
        "Show models, queue, tokens per second, link, stalls and KV pages every second. q leaves.",
        SERVER,
    )
    top.add_argument("--once", action="store_true", help="print it once")
    stop = _add_described(
        commands,
        "stop",
        "unload a model, or end a server",
        "Unload a model, or end a server.",
        f"{STOP}\n{SERVER}",
    )
    stop.add_argument("model", nargs="?", metavar="MODEL", help="what to unload")
    stop.add_argument("--server", action="store_true", help="end the server")
    stop.add_argument(
        "--grace",
        type=_seconds,
        metavar="S",
        help="seconds that running requests have (default: the server's shutdown_timeout)",
    )
    health = _add_described(
        commands,
        "health",
        "check that a server answers",
        "Ask a server whether it runs. Exit code 1: it does not answer, or is stopping.",
        SERVER,
    )
    _add_server(health)
    for command in (chat, ps, top, stop):
        _add_server(command)
        command.add_argument(
            "--api-key",
            metavar="KEY",
            help="its key; other users can see it in the list of processes",
        )


def _add_server(command: argparse.ArgumentParser) -> None:
    """Add the options that name a server."""
    command.add_argument("--url", help="the server, such as http://127.0.0.1:8000")
    command.add_argument(
        "--ca", type=Path, metavar="FILE", help="certificates to trust, for a self-signed one"
    )


def _add_plan(commands: Commands) -> None:
    plan = _add_described(
        commands,
        "plan",
        "show the memory a model would take, and its forecast speed",
        "Show where the weights would be, how fast the model would run, and which change "
        "would speed it up most.",
        PLAN,
    )
    plan.add_argument("model", metavar="MODEL", help="id of the registry, hub id, or folder")
    _add_config(plan)
    plan.add_argument(
        "--device-memory", type=size, metavar="SIZE", help="plan for a CUDA card of this size"
    )
    plan.add_argument("--ram", type=size, metavar="SIZE", help="RAM for weights, for example 24GiB")
    plan.add_argument(
        "--link-gbps", type=_gbps, metavar="B", help="GB/s at which weights reach the device"
    )
    plan.add_argument(
        "--disk-gbps", type=_gbps, metavar="B", help="GB/s at which weights are read from disk"
    )
    plan.add_argument(
        "--device-gbps",
        type=_gbps,
        metavar="B",
        help="GB/s of the memory of the card that --device-memory describes",
    )
    plan.add_argument(
        "--users",
        type=_users,
        default=8,
        metavar="N",
        help="concurrent users in the second forecast (default: 8)",
    )
    plan.add_argument("--json", action="store_true", help="print everything as JSON")


_gbps = number(float, MIN_GBPS, MAX_GBPS)
_users = number(int, 1, MAX_USERS)
_port = number(int, 0, 65535)
_seconds = number(float, 0, LONGEST_GRACE_S)
_replicas = number(int, 1, 1000)
_scale_seconds = number(float, 0.1, 86_400)
_gpus = number(float, 0, 64)


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config", type=Path, metavar="DIR", help="folder of understudy.yaml and models/"
    )
