"""`understudy serve`: settings, registry, a socket, the app, and the default model."""

import argparse
import asyncio
import errno
import resource
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from engine.errors import EngineError
from engine.messages import ModelInfo
from server.cli.console import Console
from server.config.files import ConfigError, asked_folder, save_folder, search_path
from server.config.registry import ModelEntry, Registry, entry_yaml, make_entry, read_entries
from server.config.settings import Settings, load_settings
from server.http.app import create_app
from server.http.auth import ENV_KEY, ApiKeys, is_loopback, read_keys
from server.http.protocol import bounded_protocol
from server.http.state import App
from server.models.lending import Models

SHUTDOWN_S = 5  # for the answers of requests that ran when the server was told to end
OPEN_FILES = 16_384  # most of them connections
KEEP_CONNECTION_S = 75  # an idle connection; longer than clients and proxies keep theirs


class Server(uvicorn.Server):
    """Ends the engine before the connections: running requests are told, not cut off."""

    def __init__(self, config: uvicorn.Config, models: Models) -> None:
        super().__init__(config)
        self._models = models

    def end(self) -> None:
        """Stop the server in the same way as a signal does."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._models.close()
        await super().shutdown(sockets)


def open_registry(folders: Sequence[Path], settings: Settings) -> Registry:
    """Every model file, and the default model even when it has none."""
    entries = read_entries(folders)
    name = settings.default_model
    if not any(name in (entry.id, *entry.aliases) for entry in entries):
        made = make_entry(name)
        _refuse_taken_id(made, entries)
        entries.append(made)
        name = made.id
    return Registry(entries, name, strict=settings.strict_model)


def _refuse_taken_id(made: ModelEntry, entries: Sequence[ModelEntry]) -> None:
    """A folder is called by its name: another model of that name would be served in its place."""
    for entry in entries:
        same = entry.spec.target.source == made.spec.target.source
        if made.id in (entry.id, *entry.aliases) and not same:
            raise ConfigError(
                f"{made.spec.target.source}: its id {made.id!r} is taken by {entry.path}. Rename "
                "the folder, or write a file with another name for it."
            )


def serve(args: argparse.Namespace, env: Mapping[str, str], console: Console) -> int:
    """Run the server until it is told to end; returns the exit code."""
    explicit = asked_folder(args.config, env)
    folders = search_path(explicit, Path.cwd(), env)
    options = {
        "host": args.host,
        "port": args.port,
        "default_model": args.model,
        "api_key_file": args.api_key_file,
        "insecure": args.insecure or None,
    }
    settings = load_settings(folders, env, options)
    keys = read_keys(env, settings.api_key_file, args.api_key)
    _refuse_open_door(settings, keys)
    registry = open_registry(folders, settings)
    entry = registry.find(None)
    console.take_logs(settings.log_level)
    if args.api_key is not None:
        console.line(f"--api-key shows in the list of processes; {ENV_KEY} does not")
    _tell_file(entry, save_folder(explicit, Path.cwd(), env), args.save, console)
    listener = bind(settings.host, settings.port, settings.client_timeout)
    app = create_app(settings, registry, keys=keys, progress=console.progress)
    config = http_config(app, settings.client_timeout)
    allow_connections()
    with listener, asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        try:
            server = Server(config, app.shared.models)
            return runner.run(_run(app, server, listener, entry, keys, console))
        except KeyboardInterrupt:
            return 0


async def _run(
    app: App,
    server: Server,
    listener: socket.socket,
    entry: ModelEntry,
    keys: ApiKeys,
    console: Console,
) -> int:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    loading = asyncio.create_task(app.shared.models.preload(entry))
    try:
        await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            console.line(banner(entry, loading.result(), listener, keys))
        await serving
    except EngineError as error:
        console.line(f"understudy: error: {error}")
        server.end()
        await serving
        return 1
    finally:  # told to end while loading
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
    return 0


def banner(entry: ModelEntry, info: ModelInfo, listener: socket.socket, keys: ApiKeys) -> str:
    """What is served, where, and how to try it."""
    address, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(address, address)
    url = f"http://{host}:{port}/v1"
    key = " -H 'Authorization: Bearer YOUR_KEY'" if keys else ""
    return (
        f"\nUnderstudy serves {entry.id} at {url}\n"
        f"  {info.plan}\n"
        f"  context {info.context_length} tokens, up to {info.max_sequences} sequences at once, "
        f"{info.numerics} numerics\n\n"
        f"Try it:\n  curl {url}/chat/completions{key} -H 'Content-Type: application/json' \\\n"
        '    -d \'{"messages": [{"role": "user", "content": "Hello!"}]}\'\n'
    )


def http_config(app: FastAPI, client_timeout: float = 60.0) -> uvicorn.Config:
    """How HTTP is spoken: with clients that send and take what they must within a time."""
    return uvicorn.Config(
        app,
        http=bounded_protocol(client_timeout),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        timeout_keep_alive=KEEP_CONNECTION_S,
        server_header=False,
    )


def allow_connections() -> None:
    """Have as many open files as the system allows this process, up to `OPEN_FILES`.

    The usual limit of 1024 would let some hundreds of idle connections keep everybody else out
    until their time is over. A limit there is: each takes some KB of memory.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def bind(host: str, port: int, client_timeout: float = 60.0) -> socket.socket:
    """A socket bound to host and port. Raises `ConfigError` that says why it cannot be.

    A connection is cut when its client takes nothing of what was sent for `client_timeout` s,
    however little it is: only the kernel sees that. (See `server.http.protocol` for those that
    take a byte now and then.)
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        family, kind, protocol, _, address = found  # without its protocol asyncio leaves Nagle on
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections inherit it
            milliseconds = round(1e3 * client_timeout)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            reason = "it is in use; end the other server, or choose another with --port"
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}") from error
    return listener


def _refuse_open_door(settings: Settings, keys: ApiKeys) -> None:
    if not (is_loopback(settings.host) or keys or settings.insecure):
        raise ConfigError(
            f"host {settings.host} can be reached by others and no API key is set. Set "
            "UNDERSTUDY_API_KEY or --api-key-file, or allow it with --insecure."
        )


def _tell_file(entry: ModelEntry, folder: Path, save: bool, console: Console) -> None:
    """Print the file of a model that has none, and write it when asked to."""
    if entry.path is not None:
        if save:
            console.line(f"{entry.id} already has a file: {entry.path}")
        return
    path = folder / "models" / f"{entry.id}.yaml"
    text = entry_yaml(entry)
    console.line(f"# {path}" + ("  (saved)" if save else "  (--save writes it)") + f"\n{text}")
    if save:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
