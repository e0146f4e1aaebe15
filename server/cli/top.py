"""The command `understudy top`: a live view of a server's models, queue, speed, link and memory."""

import argparse
from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from engine.errors import escaped
from server.cli.control import state_text, tiers_text
from server.cli.keys import leaving_by_q
from server.cli.remote import connect
from server.schemas.status import EngineStatus, PeerStatus, ServerStatus
from server.sizes import several

BAR = 24  # columns
NARROW = 72  # columns


def top(args: argparse.Namespace, env: Mapping[str, str], screen: Console) -> int:
    """Show a server until q, Ctrl-C or its end; once where the output is no terminal."""
    with connect(args, env) as remote:
        if args.once or not screen.is_terminal:
            screen.print(view(remote.status(), remote.url, screen.width))
            return 0
        try:
            with leaving_by_q(), Live(console=screen, screen=True, auto_refresh=False) as live:
                for status in remote.watch():
                    shown = Group(view(status, remote.url, screen.width), Text("\nq: leave", "dim"))
                    live.update(shown, refresh=True)
        except KeyboardInterrupt:
            return 0
    screen.print(f"The server at {escape(escaped(remote.url))} has stopped.")
    return 0


def view(status: ServerStatus, url: str, width: int) -> RenderableType:
    """Return the whole view of a status. A narrow one leaves out the bars and some columns."""
    head = Text.assemble(
        ("understudy ", "bold"), status["version"], f"  {url}  up {_duration(status)}"
    )
    if status["state"] != "running":
        head.append(f"  {status['state']}", "bold yellow")
    engine = status["engine"]
    parts: list[RenderableType] = [
        head,
        "",
        _models(status, is_narrow=width < NARROW),
        "",
        _queue(status),
    ]
    if engine is not None:
        parts += ["", _figures(engine, has_bars=width >= NARROW)]
    if status["peers"]:
        parts += ["", _peers(status["peers"])]
    if (together := status["together"]) is not None:
        parts.append(
            f"Together: {several(together['servers'], 'server')}, "
            f"{together['tokens_per_second']:.1f} tokens/s, "
            f"{several(together['requests'], 'request')}"
        )
    return Group(*parts)


def _duration(status: ServerStatus) -> str:
    minutes, seconds = divmod(int(status["uptime_seconds"]), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _models(status: ServerStatus, *, is_narrow: bool) -> Table:
    names = ("MODEL", "STATE") if is_narrow else ("MODEL", "STATE", "CONTEXT", "WEIGHTS", "DRAFT")
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    for model in status["models"]:
        style = {"loaded": "green", "unloaded": "dim"}.get(model["state"], "yellow")
        cells = (
            model["id"],
            state_text(model),
            f"{model['context']:,}" if "context" in model else "",
            tiers_text(model),
            model.get("draft", ""),
        )
        table.add_row(*(escape(escaped(cell)) for cell in cells[: len(names)]), style=style)
    return table


def _peers(peers: Sequence[PeerStatus]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("PEER", "STATE", "MODEL", "TOKENS/S", "REQUESTS", "OURS", "SENT", "LOST", "NOTE"):
        table.add_column(name, overflow="fold")
    for peer in peers:
        cells = (
            peer["url"],
            peer["state"],
            peer["model"] or "-",
            f"{peer['tokens_per_second']:.1f}",
            str(peer["requests"]),
            str(peer["running"]),
            str(peer["sent"]),
            str(peer["lost"]),
            peer["note"],
        )
        style = "green" if peer["state"] == "ready" else "yellow"
        table.add_row(*(escape(escaped(cell)) for cell in cells), style=style)
    return table


def _queue(status: ServerStatus) -> Text:
    queue = status["queue"]
    return Text(
        f"{several(queue['in_engine'], 'request')} in the engine; waiting for a pass: "
        f"{several(queue['waiting_for_pass'], 'sequence')}, for a model: "
        f"{several(queue['waiting_for_model'], 'request')}"
    )


def _figures(engine: EngineStatus, *, has_bars: bool) -> Table:
    recent, limit = engine["recent"], engine["link_limit_gbps"]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    if has_bars:
        table.add_column(width=BAR)
    table.add_column(overflow="fold")

    def add(name: str, figure: str, bar: ProgressBar | str, note: str) -> None:
        cells = (bar, note) if has_bars else (note,)
        table.add_row(name, figure, *cells)

    speed, per_pass = recent["tokens_per_second"], recent["tokens_per_pass"]
    add("tokens/s", f"{speed:.1f}", "", f"{several(recent['tokens'], 'token')} lately")
    add("tokens a pass", f"{per_pass:.1f}", "", f"{several(recent['passes'], 'pass')} lately")
    if limit:
        figure = f"{engine['link_gbps']:.2f}"
        note = f"of {limit:.2f} GB/s in the last pass"
        add("link", figure, _bar(engine["link_gbps"], limit), note)
    stalls = recent["stall_seconds"]
    waits = {"weights": stalls["copy"], "the draft": stalls["draft"], "the host": stalls["host"]}
    for what, seconds in waits.items():
        share = seconds / recent["seconds"] if recent["seconds"] else 0.0
        add(f"waits for {what}", f"{share:.0%}", _bar(share, 1.0), "of the time")
    used, pages = engine["kv_pages_used"], engine["kv_pages"]
    add("KV pages", f"{used:,}", _bar(used, pages), f"of {pages:,}")
    if (states := engine["states"]) is not None:
        used, room = states["sequences"] + states["prefixes"], states["room"]
        note = f"of {room:,}, {states['prefixes']:,} of stored prefixes"
        add("states", f"{used:,}", _bar(used, room), note)
    return table


def _bar(value: float, most: float) -> ProgressBar:
    return ProgressBar(total=max(most, 1e-9), completed=min(value, most), width=BAR)
