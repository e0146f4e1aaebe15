"""The command `understudy chat`: a conversation in the terminal, with a running server or its own.

A line that begins with a slash is a command; `/help` lists them. stdout has the answers and what a
command shows; statistics, notes and errors go to stderr.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from server.cli.conversation import Conversation
from server.cli.own_server import server_for
from server.cli.paint import Painter, shown_text
from server.cli.race import race
from server.cli.remote import Remote, RemoteError, connect_to
from server.cli.suggest import did_you_mean
from server.cli.word_wrap import WordWrap
from server.metrics.wait_status import RESTARTING
from server.schemas.status import ServerStatus
from server.sizes import several

HELP = """\
/paint        show in colours what proposed each token; again: plain text
/race [TEXT]  answer TEXT, or your last message, with and without drafting, side by side
/seed [N]     use this seed for all answers; without N a new one for each
/set [NAME [VALUE]]  set a parameter such as temperature; without VALUE the default
/history      show the conversation
/clear        begin a new one
/save FILE    write it to a new file (.md or .json); /save! FILE replaces one
/quit         end; Ctrl-D does too
Ctrl-C stops an answer. A line that ends in a backslash goes on in the next one."""
PROMPT = ">>> "
MORE = "... "


def chat(args: argparse.Namespace, env: Mapping[str, str], screen: Console, notes: Console) -> int:
    """Chat until the end of the input. Return 1 if the server cannot be used.

    Args:
        screen: shows the answers.
        notes: shows all else; it may be the same terminal.
    """
    with server_for(args, env, notes) as (url, name):
        with connect_to(url, args, env) as remote:
            model = _find_model(name, remote.status())
        if sys.stdin.isatty():
            notes.print(Text(f"{model} at {url}; /help lists the commands.", "dim"))
        session = _Session(lambda: connect_to(url, args, env), model, screen, notes)
        if args.system:
            session.conversation.messages.append({"role": "system", "content": args.system})
        session.run()
    return 0


def _find_model(name: str | None, status: ServerStatus) -> str:
    """Return the id of the model to talk to; without a name the default, else the loaded one.

    Raises `RemoteError` if the server has no such model.
    """
    models = status["models"]
    if name is None:
        wanted = [model["id"] for model in models if model["default"]]
        wanted += [model["id"] for model in models if model["state"] == "loaded"]
        if not wanted:
            raise RemoteError("the server has no default model; name one: understudy chat MODEL")
        return wanted[0]
    by_name = {word: model["id"] for model in models for word in (model["id"], *model["aliases"])}
    if name not in by_name:
        known = did_you_mean(name, by_name) or f" It has: {', '.join(by_name)}."
        raise RemoteError(f"the server has no model {name!r}.{known}")
    return by_name[name]


class _Session:
    """One chat: it reads lines, runs commands, and shows answers."""

    def __init__(
        self, connect: Callable[[], Remote], model: str, screen: Console, notes: Console
    ) -> None:
        self.conversation = Conversation(model)
        self._connect = connect
        self._screen = screen
        self._notes = notes
        self._painter = Painter()
        self._is_painting = False
        self._commands: dict[str, Callable[[str], str | None]] = {
            "paint": self._paint,
            "race": self._race,
            "seed": self.conversation.set_seed,
            "set": lambda words: self.conversation.set_parameter(words) or "all are the defaults",
            "history": self._history,
            "clear": self._clear,
            "save": self.conversation.save,
            "save!": lambda name: self.conversation.save(name, replace=True),
            "help": self._help,
        }

    def run(self) -> None:
        """Read lines and answer them until the end of the input or /quit."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # importing it gives `input` editing and history
        while (line := self._read()) is not None:
            try:
                if line.startswith("/"):
                    if line.strip() in ("/quit", "/exit", "/bye"):
                        return
                    self._run_command(line[1:])
                elif line.strip():
                    self._answer(line)
            except RemoteError as error:
                self._notes.print(Text(str(error), "red"))
            except KeyboardInterrupt:  # also a second one, while the first still ends an answer
                self._say("\nstopped")

    def _read(self) -> str | None:
        """Return the next message or command; None at the end of the input."""
        lines: list[str] = []
        while True:
            try:
                line = self._ask(MORE if lines else PROMPT)
            except EOFError:
                if sys.stdin.isatty():
                    self._notes.print()
                return None
            except KeyboardInterrupt:
                self._say("\n/quit or Ctrl-D ends the chat.")
                lines = []
                continue
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])

    def _ask(self, prompt: str) -> str:
        """Return the next line. A file or a pipe is not asked for it."""
        if sys.stdin.isatty() and not sys.stdout.isatty():
            self._notes.print(prompt, end="")  # `input` would write it among the answers
            return input()
        return input(prompt if sys.stdin.isatty() else "")

    def _run_command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name not in self._commands:
            commands = [f"/{own}" for own in self._commands]
            known = did_you_mean(f"/{name}", commands) or " /help lists the commands."
            raise RemoteError(f"unknown command /{name}.{known}")
        if note := self._commands[name](rest.strip()):
            self._say(note)

    def _answer(self, question: str) -> None:
        """Send a message, and show the answer as it arrives. An error takes the message back."""
        messages = self.conversation.messages
        messages.append({"role": "user", "content": question})
        answer = ""
        try:
            for content in self._stream(self.conversation.body(messages)):
                answer += content
        except KeyboardInterrupt:
            self._say("\nstopped")
        except RemoteError as error:
            messages.pop()
            begun = "\n" if answer else ""
            raise RemoteError(
                f"{begun}{error}\nYour message was taken back; send it again."
            ) from error
        if answer:
            messages.append({"role": "assistant", "content": answer})
        else:
            messages.pop()

    def _stream(self, body: dict[str, Any]) -> Iterator[str]:
        """Show the answer to a request, and yield the pieces of its content."""
        self._painter.begin()
        timings: Mapping[str, Any] = {}
        was_thinking = False
        writer = self._writer()
        with self._connect() as remote, contextlib.ExitStack() as waiting:
            spinner = waiting.enter_context(self._notes.status("waiting"))
            has_begun = is_told = False

            def tell(comment: str) -> None:
                nonlocal is_told
                if not has_begun:
                    spinner.update(shown_text(comment))
                elif comment == RESTARTING and not is_told:
                    is_told = True
                    writer.break_line()
                    self._say("The engine is restarting. The answer then goes on.")

            asked = {**body, "provenance": self._is_painting}
            with contextlib.closing(remote.chat(asked, tell)) as chunks:
                for chunk in chunks:
                    is_told = False
                    timings = chunk.get("timings", timings)
                    for choice in chunk["choices"]:
                        thought = choice["delta"].get("reasoning_content") or ""
                        content = choice["delta"].get("content") or ""
                        if self._is_painting:
                            piece = self._painter.paint(choice.get("provenance", ()))
                        else:
                            piece = _plain(thought, content, was_thinking=was_thinking)
                        if piece:
                            waiting.close()  # the spinner, before the first text
                            has_begun = True
                            writer.write(piece)
                        was_thinking = bool(thought) or (was_thinking and not content)
                        yield content
        self._screen.print()
        self._show_timings(timings)

    def _writer(self) -> "WordWrap | _AsItIs":
        """Return what shows the pieces of an answer, on a terminal broken between words."""
        is_able = self._screen.is_terminal and not self._screen.is_dumb_terminal
        return WordWrap(self._screen) if is_able else _AsItIs(self._screen)

    def _show_timings(self, timings: Mapping[str, Any]) -> None:
        if self._is_painting:
            self._notes.print(self._painter.legend())
        if timings:
            tokens = several(timings["predicted_n"], "token")
            self._say(
                f"{tokens}, {timings['tokens_per_pass']:.1f} a pass, "
                f"{timings['predicted_per_second']:.1f} tokens/s, seed {timings['seed']}"
            )

    def _say(self, note: str) -> None:
        self._notes.print(Text(note, "dim"))

    def _help(self, _: str) -> None:
        self._screen.print(Text(HELP, "dim"))

    def _paint(self, _: str) -> str:
        self._is_painting = not self._is_painting
        return "answers are painted" if self._is_painting else "answers are plain"

    def _race(self, question: str) -> None:
        asked = self.conversation.last_question()
        if question:
            asked = [*self.conversation.messages, {"role": "user", "content": question}]
        if not asked:
            raise RemoteError("write a message first, or give one: /race TEXT")
        try:
            race(self._connect, self.conversation.body(asked), self._screen)
        except KeyboardInterrupt:
            self._say("stopped")

    def _history(self, _: str) -> str | None:
        for one in self.conversation.messages:
            line = f"{one['role']}: {shown_text(one['content'])}"
            self._screen.print(Text(line, "dim"), soft_wrap=True)
        return None if self.conversation.messages else "nothing was said yet"

    def _clear(self, _: str) -> str:
        kept = [one for one in self.conversation.messages if one["role"] == "system"]
        self.conversation.messages[:] = kept
        return "a new conversation begins"


class _AsItIs:
    """Writes a text to a file, a pipe or a plain terminal."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen

    def write(self, piece: Text) -> None:
        """Show a piece of the text."""
        self._screen.print(piece, end="", soft_wrap=True)

    def break_line(self) -> None:
        """End the line that is begun, for a note below it, where the note is in sight."""
        if self._screen.is_terminal:
            self._screen.print()


def _plain(thought: str, content: str, *, was_thinking: bool) -> Text:
    """Return a piece of an answer; reasoning is faint, and a blank line is after it."""
    gap = "\n\n" if was_thinking and content else ""
    return Text.assemble((shown_text(thought), "dim italic"), gap + shown_text(content))
