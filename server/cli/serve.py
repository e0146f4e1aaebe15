"""The command `understudy serve`: read settings, bind a socket, serve, and load the model."""

import argparse
import asyncio
import contextlib
import errno
import resource
import signal
import socket
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from multiprocessing import active_children
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI

from engine.cache_files import check_cache
from engine.errors import EngineError, system_reason
from engine.messages import ModelInfo
from server.cli.backend import OpenBackend, here
from server.cli.console import Console
from server.cli.servers import announced
from server.cli.signals import INTERRUPTED, EndSignals
from server.cli.suggest import did_you_mean
from server.config.environment import ENV_KEY
from server.config.files import ConfigError, asked_folder, save_folder, search_path
from server.config.registry import ModelEntry, Registry, entry_yaml, make_entry, read_entries
from server.config.settings import Settings
from server.http.app import create_app
from server.http.auth import ApiKeys, is_loopback, read_keys
from server.http.certificate import Certificate, read_certificate
from server.http.measure import client_trace
from server.http.protocol import bounded_protocol
from server.http.state import AppState

if TYPE_CHECKING:
    from server.traces.exporting import ExportedTraces  # it imports OpenTelemetry, an extra

END_POLL_S = 0.02
LAST_S = 1  # for the end of the engine and for unsent answers, after the last request has ended
OPEN_FILES = 16_384  # nearly all of them are connections
KEEP_CONNECTION_S = 75  # for an idle connection; longer than clients and proxies keep theirs


class Server(uvicorn.Server):
    """A server that lets running requests finish within a time limit when it stops.

    Requests that exceed the limit get an error. The port is open until then: new requests are
    refused with an answer, and monitoring still works.

    Args:
        shared: the state of the app that is served.
        announce: prints a line about the end of the server.
    """

    def __init__(
        self, config: uvicorn.Config, shared: AppState, announce: Callable[[str], None]
    ) -> None:
        super().__init__(config)
        self._shared = shared
        self._announce = announce

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signals to `server.cli.signals`."""
        yield

    def end(self) -> None:
        """Ask the server to stop. Signal handlers may call it."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, wait for the running ones, and close models and connections."""
        in_flight, models = self._shared.in_flight, self._shared.models
        timeout = self._shared.settings.shutdown_timeout
        was_loading = models.loading is not None
        in_flight.stop()
        models.drain()
        self._announce(stopping_text(in_flight.num_running, timeout, was_loading=was_loading))
        await in_flight.all_ended(timeout)
        for server in self.servers:
            server.close()
        closing = asyncio.create_task(models.close())
        for connection in list(self.server_state.connections):
            connection.shutdown()  # closes it once it has been answered
        ended = asyncio.create_task(self._wait_for_connections())
        await asyncio.wait({closing, ended}, timeout=LAST_S)
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # its client does not read
        await asyncio.wait({ended}, timeout=LAST_S)
        self.force_exit = not (closing.done() and ended.done())
        await super().shutdown(sockets)

    async def _wait_for_connections(self) -> None:
        while self.server_state.connections or self.server_state.tasks:
            await asyncio.sleep(END_POLL_S)


def stopping_text(num_running: int, timeout: float, *, was_loading: bool) -> str:
    """Return the line that says what a stopping server waits for.

    Args:
        timeout: seconds for which running requests may go on.
        was_loading: whether a model was being loaded.
    """
    if not num_running:
        return "Stopping; a model was still being loaded." if was_loading else "Stopping."
    running = "1 request is running" if num_running == 1 else f"{num_running} requests are running"
    if not timeout:
        return f"Stopping; {running} and cannot finish."
    return f"{running}; stopping in at most {timeout:g} s. Ctrl-C again stops at once."


def open_traces(settings: Settings, env: Mapping[str, str]) -> "ExportedTraces | None":
    """Return the traces that the settings ask for. Raise `ConfigError` if they are not possible."""
    if not settings.traces:
        return None
    try:
        from server.traces.exporting import export_traces
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"traces: the package {error.name} is not installed: pip install 'understudy[traces]'"
        ) from error
    return export_traces(env)


def open_registry(folders: Sequence[Path], settings: Settings) -> Registry:
    """Return the registry of all model files, and of the default model even without a file."""
    entries = read_entries(folders)
    name = settings.default_model
    if not any(name in (entry.id, *entry.aliases) for entry in entries):
        try:
            made = make_entry(name)
        except ConfigError as error:
            known = [word for entry in entries for word in (entry.id, *entry.aliases)]
            raise ConfigError(
                f"{error}.{did_you_mean(name, known)} The command line, UNDERSTUDY_DEFAULT_MODEL "
                "or default_model in understudy.yaml names it"
            ) from error
        _refuse_taken_id(made, entries)
        entries.append(made)
        name = made.id
    return Registry(entries, name, strict=settings.strict_model)


def _refuse_taken_id(made: ModelEntry, entries: Sequence[ModelEntry]) -> None:
    """Raise `ConfigError` where another model has the id of `made`, and would be served instead.

    The id of a model that is given as a folder is the name of the folder.
    """
    for entry in entries:
        same = entry.spec.target.source == made.spec.target.source
        if made.id in (entry.id, *entry.aliases) and not same:
            raise ConfigError(
                f"{made.spec.target.source}: its id {made.id!r} is taken by {entry.path}. Rename "
                "the folder, or write a file with another name for it."
            )


def serve(
    args: argparse.Namespace,
    env: Mapping[str, str],
    settings: Settings,
    console: Console,
    signals: EndSignals,
    drain: Callable[[], None],
    open_backend: OpenBackend = here,
) -> int:
    """Run the server until a signal or an error ends it, and return the exit code.

    Args:
        drain: waits until `console` has printed all that was written to stderr.
    """
    asked = asked_folder(args.config, env)
    check_cache()
    keys = read_keys(env, settings.api_key_file, args.api_key)
    _refuse_open_host(settings, keys)
    certificate = read_certificate(settings.tls_cert, settings.tls_key)
    registry = open_registry(search_path(asked, Path.cwd(), env), settings)
    entry = registry.find(None)
    _note_options(args, entry, console)
    saved = save_folder(asked, Path.cwd(), env) / "models" / f"{entry.id}.yaml"
    listener = bind(settings.host, settings.port, settings.client_timeout)
    traces = open_traces(settings, env)
    backend = open_backend(settings, registry)
    app = create_app(
        settings,
        backend.registry,
        backend.engines,
        keys=keys,
        ended=traces.record if traces is not None else lambda _: None,
        trace=traces.headers if traces is not None else client_trace,
        progress=console.progress,
        peers=backend.peers,
    )
    config = http_config(app, settings.client_timeout, certificate)
    url = local_url(listener, is_tls=certificate is not None)
    allow_connections()
    with (
        listener,
        announced(url, env, settings.tls_cert),
        asyncio.Runner(loop_factory=config.get_loop_factory()) as runner,
    ):
        server = Server(config, app.shared, console.line)
        signals.ask_first(server.end, kill_children)
        loading = app.shared.models.preload(entry)

        def greeting(info: ModelInfo) -> str:
            file = "" if entry.path is not None else offer_file(entry, info, saved, save=args.save)
            return file + banner(entry, url, keys, info)

        code = runner.run(_run(server, listener, loading, signals, console, greeting))
        backend.close()
        if traces is not None:
            traces.close()
        if signals.first is not None:
            drain()
            signals.end(code)  # without waiting for threads that tokenize or compile a grammar
        return code


def _note_options(args: argparse.Namespace, entry: ModelEntry, console: Console) -> None:
    if args.api_key is not None:
        console.line(f"other users can see --api-key in the list of processes; set {ENV_KEY}")
    if args.save and entry.path is not None:
        console.line(f"{entry.id} already has a file: {entry.path}")


async def _run(
    server: Server,
    listener: socket.socket,
    load: Coroutine[Any, Any, ModelInfo],
    signals: EndSignals,
    console: Console,
    greeting: Callable[[ModelInfo], str],
) -> int:
    """Load the model, serve until the server is asked to stop, and return the exit code.

    Args:
        load: loads the default model.
        greeting: returns the text to print once the model is loaded.
    """
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    loading = asyncio.create_task(load)
    code = 0
    try:
        await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            console.line(greeting(loading.result()))
    except EngineError as error:
        code = INTERRUPTED if signals.first is signal.SIGINT else 0
        if signals.first is None:
            console.error(error)
            server.end()
            code = 1
    try:
        await serving
    finally:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
    return code


def kill_children() -> None:
    """Kill the processes that this process has started."""
    for child in active_children():
        child.kill()


def banner(entry: ModelEntry, url: str, keys: ApiKeys, info: ModelInfo) -> str:
    """Return the text that says which model is served at which URL, with a request to try."""
    key = " -H 'Authorization: Bearer YOUR_KEY'" if keys else ""
    return (
        f"\nUnderstudy serves {entry.id} at {url}/v1\n"
        f"Open {url}/ in a browser to chat.\n"
        f"  {info.plan}\n"
        f"  context {info.context_length} tokens, up to {info.max_sequences} sequences at once, "
        f"{info.numerics} numerics\n\n"
        f"Try it:\n  curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' \\\n"
        '    -d \'{"messages": [{"role": "user", "content": "Hello!"}]}\'\n'
    )


def local_url(listener: socket.socket, *, is_tls: bool) -> str:
    """Return the URL at which this machine reaches the server, without /v1."""
    address, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if is_tls else 'http'}://{host}:{port}"


def http_config(
    app: FastAPI, client_timeout: float = 60.0, certificate: Certificate | None = None
) -> uvicorn.Config:
    """Return uvicorn's configuration for `app`.

    Args:
        client_timeout: seconds within which clients must send a request or read an answer.
        certificate: that of a server which speaks TLS.
    """
    config = uvicorn.Config(
        app,
        http=bounded_protocol(client_timeout),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=LAST_S,
        timeout_keep_alive=KEEP_CONNECTION_S,
        server_header=False,
    )
    if certificate is not None:
        config.load()  # which would replace the context
        config.ssl = certificate.context
    return config


def allow_connections() -> None:
    """Raise the limit of open files to what the system allows, at most `OPEN_FILES`.

    With the usual limit of 1024, some hundreds of idle connections could block all other clients
    until they time out. There must be a limit, because each connection takes some KB of memory.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def bind(host: str, port: int, client_timeout: float = 60.0) -> socket.socket:
    """Return a listening socket on host and port. Raise `ConfigError` with the reason if it fails.

    The kernel cuts a connection whose client acknowledges nothing of what was sent for
    `client_timeout` seconds. (`server.http.protocol` limits clients that read slowly.)
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
        reason = system_reason(error)
        if error.errno == errno.EADDRINUSE:
            reason = "it is in use; end the other server, or choose another with --port"
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}") from error
    return listener


def _refuse_open_host(settings: Settings, keys: ApiKeys) -> None:
    if not (is_loopback(settings.host) or keys or settings.insecure):
        raise ConfigError(
            f"host {settings.host} can be reached by others and no API key is set. Set "
            "UNDERSTUDY_API_KEY or --api-key-file, or allow it with --insecure."
        )


def offer_file(entry: ModelEntry, info: ModelInfo, path: Path, *, save: bool) -> str:
    """Return the text of a file for a loaded model that has none, and write it if `save` is set."""
    text = entry_yaml(entry, info)
    if save:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return f"# {path}" + ("  (saved)" if save else "  (--save writes it)") + f"\n{text}"
