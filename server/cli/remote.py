"""A running server as the commands use it: which one, its status, and requests to it."""

import argparse
import json
import ssl
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx

from engine.errors import escaped, system_reason
from server.cli.servers import running_servers
from server.config.environment import ENV_CA, ENV_KEY, ENV_URL
from server.config.files import ConfigError
from server.config.settings import variable_value
from server.http.certificate import first_certificate, pinned_context
from server.schemas.status import ServerStatus

DEFAULT_PORT = "8000"
EXAMPLE_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
DONE = "data: [DONE]"
CONNECT_S = 5.0  # for a connection; an answer may take as long as the load of a model
HEALTH_S = 10.0  # for the answer of a health check


class RemoteError(ConfigError):
    """The server cannot be reached, or it refused the request; the message says what to do."""


class Unreachable(RemoteError):
    """Nothing answers, or the connection broke."""


class Remote:
    """A client of one server; a context manager that closes its connections.

    Args:
        url: the URL of the server, with or without /v1.
        key: its API key; "" if it has none.
        transport: carries requests; tests give one.
        trust: says which certificates are trusted; None: those that the system trusts.
    """

    def __init__(
        self,
        url: str,
        key: str,
        transport: httpx.BaseTransport | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(None, connect=CONNECT_S)
        try:
            self._client = httpx.Client(
                base_url=self.url,
                headers=headers,
                timeout=timeout,
                transport=transport,
                verify=True if trust is None else trust,
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise RemoteError(f"{escaped(url)} is not a URL of a server: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def check_health(self) -> None:
        """Raise `RemoteError` unless the server answers that it runs."""
        with self._failures():
            answer = self._client.get("/health", timeout=HEALTH_S)
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            raise RemoteError(f"{self.url} answers 503: it is stopping")
        if not answer.is_success:
            raise _refusal(answer)

    def status(self) -> ServerStatus:
        """Return the state of the server."""
        status: ServerStatus = self._json("GET", "/v1/status")
        return status

    def watch(self) -> Iterator[ServerStatus]:
        """Yield the state of the server every second, until it stops."""
        yield from self.events("GET", "/v1/status?watch")

    def load(self, model: str) -> None:
        """Load a model, and wait until it is loaded."""
        self._json("POST", f"/v1/models/{quote(model)}/load")

    def unload(self, model: str, grace: float | None) -> None:
        """Unload a model, and wait until it is gone."""
        self._json("POST", f"/v1/models/{quote(model)}/unload", {"grace": grace})

    def chat(
        self, body: Mapping[str, Any], on_wait: Callable[[str], None] = lambda _: None
    ) -> Generator[Any, None, None]:
        """Yield the chunks of a streamed chat completion. Closing the generator stops the answer.

        Args:
            on_wait: is called with what the request waits for.
        """
        answer = self.events("POST", "/v1/chat/completions", body, on_wait, has_mark=True)
        with closing(answer) as chunks:
            for chunk in chunks:
                if "error" in chunk:
                    raise RemoteError(str(chunk["error"]["message"]))
                yield chunk

    def events(
        self,
        method: str,
        path: str,
        body: Any = None,
        on_comment: Callable[[str], None] = lambda _: None,
        *,
        has_mark: bool = False,
    ) -> Generator[Any, None, None]:
        """Yield the data of each event of a stream. Closing the generator ends the request.

        Args:
            has_mark: whether the stream ends with [DONE]; one that ends before was cut off.
        """
        with self._failures(), self._client.stream(method, path, json=body) as answer:
            if not answer.is_success:
                answer.read()
                raise _refusal(answer)
            for line in _lines(answer, self.url):
                if line == DONE:
                    return
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))
                elif line.startswith(":"):
                    on_comment(line.removeprefix(":").strip())
        if has_mark:
            raise Unreachable(f"{self.url} has cut the answer off.")

    def _json(self, method: str, path: str, body: Any = None) -> Any:
        with self._failures():
            answer = self._client.request(method, path, json=body)
        if not answer.is_success:
            raise _refusal(answer)
        return answer.json()

    def _failures(self) -> "_Failures":
        return _Failures(self.url)


def _lines(answer: httpx.Response, url: str) -> Iterator[str]:
    """Yield the lines of an answer that has begun."""
    try:
        yield from answer.iter_lines()
    except httpx.TransportError as error:
        raise Unreachable(f"{url} has ended in the middle of its answer ({error}).") from error


class _Failures:
    """A context manager that turns errors of the connection into `Unreachable`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, httpx.TransportError) and (hint := _tls_hint(error, self._url)):
            raise Unreachable(f"the connection to {self._url} failed: {hint}") from error
        if isinstance(error, httpx.UnsupportedProtocol):
            raise Unreachable(
                f"{escaped(self._url)} is not a URL of a server; write for example {EXAMPLE_URL}"
            ) from error
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            raise Unreachable(
                f"no server answers at {self._url}. Start one with `understudy serve`, or name "
                f"another with --url or {ENV_URL}."
            ) from error
        if isinstance(error, httpx.TransportError):
            raise Unreachable(f"the connection to {self._url} broke: {error}") from error


def _tls_hint(error: httpx.TransportError, url: str) -> str:
    """Return what to do about an error of TLS; "" for other errors."""
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.partition("CERTIFICATE_VERIFY_FAILED]")[2].strip() or text
        return (
            f"its certificate is not trusted ({reason}). Name the file of the certificate, or of "
            f"its authority, with --ca or {ENV_CA}."
        )
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        return "it does not speak TLS; try http:// instead of https://."
    if url.startswith("http://") and isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        return f"{text.rstrip('.')}. If it speaks TLS, use https:// instead of http://."
    return ""


def _refusal(answer: httpx.Response) -> RemoteError:
    """Return the error that says why a request was refused."""
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"{answer.url} answered with status {answer.status_code}; is it an Understudy?"
    if answer.status_code == 401:
        message += f" Put it into {ENV_KEY}."
    return RemoteError(message)


def choose_url(asked: str | None, env: Mapping[str, str]) -> str:
    """Return the URL of the server to use: the given one, else the one that runs.

    Raises `RemoteError` if several run and none is named.
    """
    if named := asked or env.get(ENV_URL):
        return named
    urls = [server.url for server in running_servers(env)]
    if len(urls) > 1:
        raise RemoteError(f"several servers run; name one with --url: {', '.join(urls)}")
    scheme = "https" if env.get("UNDERSTUDY_TLS_CERT") else "http"
    port = variable_value("UNDERSTUDY_PORT", env) or DEFAULT_PORT
    return urls[0] if urls else f"{scheme}://127.0.0.1:{port}"


def connect(args: argparse.Namespace, env: Mapping[str, str]) -> Remote:
    """Return a client of the server that the command line names, or of the one that runs."""
    return connect_to(choose_url(args.url, env), args, env)


def connect_to(url: str, args: argparse.Namespace, env: Mapping[str, str]) -> Remote:
    """Return a client of the server at `url`, with the key of the command line."""
    key = (getattr(args, "api_key", None) or env.get(ENV_KEY) or "").strip()
    return Remote(url, key, trust=_trust(url, args.ca, env))


def _trust(url: str, ca: Path | None, env: Mapping[str, str]) -> ssl.SSLContext | None:
    """Return which certificates are trusted; None: those that the system trusts.

    Of a server of this user on this machine it is its own certificate, whatever name that has: the
    server's file says which one it is. Raises `RemoteError` for a file without certificates.
    """
    named = ca or (Path(env[ENV_CA]) if env.get(ENV_CA) else None)
    if named is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # one that is its own authority
        try:
            context.load_verify_locations(named)
        except OSError as error:  # ssl.SSLError is one
            reason = system_reason(error)
            raise RemoteError(f"--ca: {named} holds no certificates: {reason}") from error
        return context
    base = url.rstrip("/").removesuffix("/v1")
    own = [server.certificate for server in running_servers(env) if server.url == base]
    if not own and base == choose_url(None, env).rstrip("/"):
        own = [env.get("UNDERSTUDY_TLS_CERT") or ""]
    if not (own and own[0] and base.startswith("https://")):
        return None
    try:
        return pinned_context(first_certificate(Path(own[0])))
    except (OSError, ValueError) as error:
        reason = system_reason(error)
        raise RemoteError(
            f"the certificate of {base}, {own[0]}, cannot be read: {reason}"
        ) from error
