"""The commands `understudy ps` and `stop`: the models of running servers, and their end."""

import argparse
import json
import os
import signal
from collections.abc import Mapping

from server.cli.console import Console, columns, records, table
from server.cli.remote import Remote, RemoteError, choose_url, connect, connect_to
from server.cli.servers import running_servers, wait_for_end
from server.config.environment import ENV_URL
from server.metrics.load_speed import step_text
from server.schemas.status import ModelStatus, PeerStatus, ServerStatus

END_S = 60.0  # for a server whose requests end; its own limit is `shutdown_timeout`
HEADER = ("MODEL", "STATE", "CONTEXT", "WEIGHTS", "DRAFT", "REQUESTS", "TOKENS/S", "SERVER")


def health(args: argparse.Namespace, env: Mapping[str, str], console: Console) -> int:
    """Return 0 if a server runs. It needs no key."""
    with connect(args, env) as remote:
        remote.check_health()
    return 0


def ps(args: argparse.Namespace, env: Mapping[str, str], console: Console) -> int:
    """List the models that running servers have in memory; with `--all` the others too."""
    urls = [server.url for server in running_servers(env)]
    if args.url or env.get(ENV_URL) or len(urls) < 2:
        urls = [choose_url(args.url, env)]
    found: dict[str, ServerStatus] = {}
    code = 0
    for url in urls:
        try:
            with connect_to(url, args, env) as remote:
                found[remote.url] = remote.status()
        except RemoteError as error:
            console.error(error)
            code = 1
    if not found:
        return code
    if args.json:
        print(json.dumps(found, indent=2))
        return code
    rows = [
        _row(model, status, url)
        for url, status in found.items()
        for model in status["models"]
        if args.all or model["state"] != "unloaded"
    ]
    rows += [_peer_row(peer) for status in found.values() for peer in status["peers"]]
    if rows:
        has_servers = len({row[-1] for row in rows}) > 1  # or a server and its peers
        print(_listing(rows, width=columns(), has_servers=has_servers))
    else:
        print(f"No model is loaded at {', '.join(found)}.")
    return code


def _listing(rows: list[tuple[str, ...]], *, width: int | None, has_servers: bool) -> str:
    """Return the list of models: a table, or on a terminal of less columns than that blocks.

    Args:
        width: the columns of the terminal; None: the output is none, and has all columns.
        has_servers: whether the models are of several servers.
    """
    if width is None:
        return table(HEADER, rows)
    header: tuple[str, ...] = HEADER
    if not has_servers:
        header, rows = HEADER[:-1], [row[:-1] for row in rows]
    listing = table(header, rows)
    is_too_wide = max(map(len, listing.split("\n"))) > width
    return records(header, rows) if is_too_wide else listing


def _row(model: ModelStatus, status: ServerStatus, url: str) -> tuple[str, ...]:
    engine = status["engine"]
    is_running = engine is not None and engine["model"] == model["id"]
    speed = engine["recent"]["tokens_per_second"] if engine is not None else 0.0
    return (
        model["id"],
        state_text(model),
        str(model.get("context", "-")),
        tiers_text(model),
        model.get("draft", "-"),
        str(status["queue"]["in_engine"]) if is_running else "-",
        f"{speed:.1f}" if is_running else "-",
        url,
    )


def _peer_row(peer: PeerStatus) -> tuple[str, ...]:
    note = f": {peer['note']}" if peer["note"] else ""
    model, state = peer["model"] or "-", f"peer, {peer['state']}{note}"
    return (model, state, "-", "-", "-", str(peer["requests"]), "-", peer["url"])


def state_text(model: ModelStatus) -> str:
    """Return the state of a model, with what its load has reached, or how long it stays."""
    step = model.get("step")
    if step is None:
        left, ago = model.get("unloads_in"), model.get("idle_unloaded_ago")
        if left is not None:
            return f"{model['state']}, {left:.0f} s left"
        return model["state"] if ago is None else f"{model['state']} {ago:.0f} s ago, idle"
    return f"{model['state']}: {step_text(step)}"


def tiers_text(model: ModelStatus) -> str:
    """Return where the units of a model's weights are, such as "12 resident, 20 ram"."""
    tiers = model.get("tiers", {})
    return ", ".join(f"{count} {tier}" for tier, count in sorted(tiers.items())[::-1]) or "-"


def stop(args: argparse.Namespace, env: Mapping[str, str], console: Console) -> int:
    """Unload a model, or end a server."""
    if args.server:
        return _stop_server(args, env, console)
    with connect(args, env) as remote:
        model = args.model or _model_in_memory(remote)
        if model is None:
            console.line(f"No model is loaded at {remote.url}.")
            return 0
        remote.unload(model, args.grace)
    console.line(f"{model} is unloaded. The next request for it loads it again.")
    return 0


def _model_in_memory(remote: Remote) -> str | None:
    models = remote.status()["models"]
    return next((model["id"] for model in models if model["state"] != "unloaded"), None)


def _stop_server(args: argparse.Namespace, env: Mapping[str, str], console: Console) -> int:
    """End a server of this user on this machine with SIGTERM, which lets requests finish.

    There is no request for it, so that nothing in a browser can end a server.
    """
    if args.model is not None or args.grace is not None:
        raise RemoteError("--server ends the whole server; give no MODEL and no --grace")
    url = choose_url(args.url, env).rstrip("/").removesuffix("/v1")
    server = next((own for own in running_servers(env) if own.url == url), None)
    if server is None:
        raise RemoteError(
            f"no server of this user runs on this machine at {url}. End one that runs elsewhere, "
            "or in a container, where it was started."
        )
    os.kill(server.pid, signal.SIGTERM)
    if not wait_for_end(server, env, END_S):
        raise RemoteError(f"{url} (process {server.pid}) has not ended in {END_S:g} s")
    console.line(f"The server at {url} has ended.")
    return 0
