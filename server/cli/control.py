"""The commands `understudy ps` and `stop`: the models of running servers, and their end."""

import argparse
import json
import os
import signal
from collections.abc import Mapping

from server.cli.console import Console, table
from server.cli.remote import ENV_URL, Remote, RemoteError, choose_url, connect, connect_to
from server.cli.servers import running_servers, wait_for_end
from server.metrics.load_speed import step_text
from server.schemas.status import ModelStatus, PeerStatus, ServerStatus

END_S = 60.0  # for a server whose requests end; its own limit is `shutdown_timeout`
HEADER = ("MODEL", "STATE", "CONTEXT", "WEIGHTS", "DRAFT", "REQUESTS", "TOKENS/S", "SERVER")


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
            console.line(f"understudy: error: {error}")
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
    print(table(HEADER, rows) if rows else f"No model is loaded at {', '.join(found)}.")
    return code


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
        left = model.get("unloads_in")
        return model["state"] if left is None else f"{model['state']}, {left:.0f} s left"
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
