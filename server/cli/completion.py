"""The command `understudy completion`: scripts that complete commands, options and models."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from server.cli.arguments import CLUSTER_ACTIONS, LIST_MODELS, SHELLS, Parsers
from server.config.files import asked_folder, search_path
from server.config.registry import read_entries

TAKES_MODEL = ("serve", "cluster", "plan", "pull", "stop", "chat")  # as their last argument
ACTIONS = {"cluster": CLUSTER_ACTIONS}  # the words of commands that come before all others

BASH = """\
_understudy() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" known=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        known="{commands} --help --version"
    else
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$known" -- "$word"))
}}
complete -o default -F _understudy understudy
"""
CASE = """\
        {command}) known="{words}" ;;"""
CASE_OF_ACTION = """\
        {command}) known="{words}"
            if [ "$COMP_CWORD" -eq 2 ]; then known="{actions}"; fi ;;"""
ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"


def completion(args: argparse.Namespace, env: Mapping[str, str], parsers: Parsers) -> int:
    """Print the script for a shell, or the models that the scripts offer."""
    if args.shell == LIST_MODELS:
        folders = search_path(asked_folder(args.config, env), Path.cwd(), env)
        print("\n".join(sorted({entry.id for entry in read_entries(folders)})))
    else:
        print(script(args.shell, parsers), end="")
    return 0


def script(shell: str, parsers: Parsers) -> str:
    """Return the text of the script for one of `SHELLS`."""
    return _fish(parsers) if shell == "fish" else (ZSH if shell == "zsh" else "") + _bash(parsers)


def _bash(parsers: Parsers) -> str:
    cases = []
    for command in parsers.commands:
        words = [*_words(command, parsers), *parsers.options(command)]
        if command in TAKES_MODEL:
            words.append(f"$(understudy completion {LIST_MODELS} 2>/dev/null)")
        actions = " ".join([*ACTIONS.get(command, ()), "--help"])
        case = CASE_OF_ACTION if command in ACTIONS else CASE
        cases.append(case.format(command=command, words=" ".join(words), actions=actions))
    return BASH.format(commands=" ".join(parsers.commands), cases="\n".join(cases))


def _fish(parsers: Parsers) -> str:
    start = "complete -c understudy"
    lines = [f"{start} -n __fish_use_subcommand -f -a '{' '.join(parsers.commands)}'"]
    for command in parsers.commands:
        within = f"{start} -n '__fish_seen_subcommand_from {command}'"
        names = (name.removeprefix("--") for name in parsers.options(command))
        lines += [f"{within} -l {name}" for name in names]
        if words := _words(command, parsers):
            lines.append(f"{within} -f -a '{' '.join(words)}'")
        for action in ACTIONS.get(command, ()):
            is_next = f"{within[:-1]}; and not __fish_seen_subcommand_from {action}'"
            lines.append(f"{is_next} -f -a {action}")
        if command in TAKES_MODEL:
            lines.append(f"{within} -a '(understudy completion {LIST_MODELS} 2>/dev/null)'")
    return "\n".join(lines) + "\n"


def _words(command: str, parsers: Parsers) -> list[str]:
    """Return the words that may follow a command."""
    return {"help": list(parsers.commands), "completion": list(SHELLS)}.get(command, [])
