"""Pictures of the terminal: what `understudy top` and a race in `understudy chat` print."""

import re
from collections.abc import Callable
from io import StringIO
from itertools import islice
from pathlib import Path
from threading import Thread

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from server.cli.race import race
from server.cli.remote import Remote
from server.cli.top import view

WIDTH = 100
STATUS_AFTER = 2  # seconds of an answer
QUESTION = {
    "messages": [{"role": "user", "content": "What is Understudy?"}],
    "seed": 7,
    "stream": True,
    "stream_options": {"include_usage": True},
}
# The format's own fonts would be fetched from another host.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code", "DejaVu Sans Mono"
)


def record(out: Path, title: str, show: Callable[[Console], None]) -> None:
    """Write what is shown on a console as SVG."""
    console = Console(record=True, width=WIDTH, file=StringIO(), color_system="truecolor")
    show(console)
    out.write_text(console.export_svg(title=title, code_format=FORMAT))


def terminal_pictures(url: str, out: Path) -> None:
    """Write pictures of the commands with the server at `url`."""

    def connect() -> Remote:
        return Remote(url, "")

    def ask() -> None:
        with connect() as remote:
            for _ in remote.chat({**QUESTION, "max_tokens": 200}):
                pass

    record(out / "terminal-race.svg", "understudy chat", lambda to: race(connect, QUESTION, to))
    asking = Thread(target=ask)
    asking.start()
    with connect() as remote:
        status = next(islice(remote.watch(), STATUS_AFTER, None))
    record(
        out / "terminal-top.svg", "understudy top", lambda to: to.print(view(status, url, WIDTH))
    )
    asking.join()
