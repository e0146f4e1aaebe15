"""The race of the command `understudy chat`: one request with and without drafting, side by side.

Both run at once in the same engine, with the same seed. Their tokens are the same; only the number
of tokens that a forward pass brings differs.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from engine.messages import NO_DRAFT
from server.cli.paint import Painter
from server.cli.remote import Remote, RemoteError
from server.sizes import several

REFRESH_S = 0.1
LINES = 16  # of the end of each text that are shown while it grows


@dataclass
class Lane:
    """One of the two answers."""

    title: str
    text: Text = field(default_factory=Text)  # each token in the colour of what proposed it
    ids: list[int] = field(default_factory=list)
    timings: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    painter: Painter = field(default_factory=Painter)

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Add a chunk of the answer."""
        self.timings = chunk.get("timings", self.timings)
        for choice in chunk["choices"]:
            self.text.append_text(self.painter.paint(choice.get("provenance", ())))
            self.ids += choice.get("token_ids", ())

    def caption(self) -> str:
        """Return the title with what is known of the speed."""
        tokens = several(len(self.ids), "token")
        if not self.timings:
            return f"{self.title}: {tokens}"
        return (
            f"{self.title}: {tokens}, {self.timings['tokens_per_pass']:.1f} a pass, "
            f"{self.timings['predicted_per_second']:.1f} tokens/s"
        )


def race(connect: Callable[[], Remote], body: Mapping[str, Any], screen: Console) -> None:
    """Run a request twice at once, show both answers, and say whether they are identical.

    Args:
        connect: returns a client of the server, one for each answer.
    """
    lanes = (Lane("drafted"), Lane("plain"))
    asked = {**body, "return_token_ids": True, "provenance": True}
    bodies = (asked, {**asked, "speculation": {"method": NO_DRAFT}})
    stop = threading.Event()
    threads = [
        threading.Thread(target=_run, args=(connect, own, lane, stop), daemon=True)
        for own, lane in zip(bodies, lanes, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        with Live(_view(lanes, screen), console=screen, auto_refresh=False, transient=True) as live:
            for thread in threads:
                while thread.is_alive():
                    thread.join(REFRESH_S)
                    live.update(_view(lanes, screen), refresh=True)
    finally:
        stop.set()  # after Ctrl-C the answers end at their next tokens
    screen.print(_view(lanes, screen, whole=True))
    screen.print(verdict(lanes))


def _run(
    connect: Callable[[], Remote], body: Mapping[str, Any], lane: Lane, stop: threading.Event
) -> None:
    try:
        with connect() as remote:
            for chunk in remote.chat(body):
                lane.add(chunk)
                if stop.is_set():
                    return
    except RemoteError as error:
        lane.error = str(error)


def verdict(lanes: tuple[Lane, Lane]) -> Text:
    """Return the sentence that says whether the answers are identical."""
    for lane in lanes:
        if lane.error:
            return Text(f"{lane.title}: {lane.error}", "red")
    first, second = (lane.ids for lane in lanes)
    most = max(len(first), len(second))
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    identical = f"identical: {same} of {several(most, 'token')}"
    if same == most:
        return Text(identical, "bold green")
    return Text(
        f"{identical}. The answers differ from there on, which only `numerics: fast` allows.",
        "bold yellow",
    )


def _view(lanes: tuple[Lane, Lane], screen: Console, *, whole: bool = False) -> Table:
    table = Table(expand=True, box=None, padding=(0, 1))
    width = max(1, screen.width // 2 - 2)
    cells = []
    for lane in lanes:
        table.add_column(Text(lane.caption()), width=width, overflow="fold")
        lines = lane.text.wrap(screen, width)
        shown = [*lines, lane.painter.legend()] if whole else lines[-LINES:]
        cells.append(Text("\n").join(shown))
    table.add_row(*cells)
    return table
