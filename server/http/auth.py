"""API keys, compared in constant time, and the middleware that requires one."""

import hashlib
import hmac
import ipaddress
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.errors import system_reason
from server.config.environment import ENV_KEY
from server.config.files import ConfigError
from server.errors import ApiError

log = logging.getLogger("understudy")

OWNER_DIGITS = 8  # hex digits of the digest that names a key; the name only serves fairness
OPEN_PATHS = frozenset({"/health", "/v1/health"})
# The page at / and its files, which are the same on every server. It asks its user for a key.
PAGE_PATH = re.compile(r"/(?:page/[^/]*)?")


class ApiKeys:
    """A set of API keys, of which only digests are kept in memory.

    Args:
        keys: the keys that never change.
        file: further keys, which may change.
    """

    def __init__(self, keys: Iterable[str] = (), file: "KeyFile | None" = None) -> None:
        self._digests = [_digest(key) for key in keys]
        self._file = file

    def __bool__(self) -> bool:
        return bool(self._digests) or self._file is not None

    def find_owner(self, headers: Mapping[str, str]) -> str | None:
        """Return the name of the key in a request's headers; None without a valid key."""
        # headers are read as latin-1, keys are written in UTF-8
        given = hashlib.sha256(given_key(headers).encode("latin-1", errors="replace")).digest()
        known = [*self._digests, *(self._file.read_digests() if self._file else ())]
        # compared with all of them, so that the time does not depend on the match
        found = [digest for digest in known if hmac.compare_digest(digest, given)]
        return found[0].hex()[:OWNER_DIGITS] if found else None


def given_key(headers: Mapping[str, str]) -> str:
    """Return the key in a request's headers; "" without one."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return (key if scheme.lower() == "bearer" else headers.get("x-api-key", "")).strip()


class KeyFile:
    """A file with one key a line (`#` begins a comment), which is read again when it changes.

    The constructor raises `ConfigError` when the file cannot be read or holds no key. A later
    change to a file that is half written, empty or missing is logged, and the former keys stay
    valid.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._read_stamp()
        self._digests = self._read()

    def read_digests(self) -> Sequence[bytes]:
        """Return the digests of the valid keys, after reading the file again if it changed."""
        stamp = self._read_stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._digests = self._read()
                log.info("api_key_file: %d keys read from %s", len(self._digests), self._path)
            except ConfigError as error:
                log.error("%s; the keys read before stay valid", error)
        return self._digests

    def _read_stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> list[bytes]:
        try:
            lines = [line.strip() for line in self._path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"api_key_file: {self._path} cannot be read: {system_reason(error)}"
            ) from error
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise ConfigError(f"api_key_file: {self._path} holds no key; write one key a line")
        return [_digest(key) for key in keys]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()


def read_keys(env: Mapping[str, str], file: Path | None, option: str | None = None) -> ApiKeys:
    """Return the keys of the environment, of the command line and of a file.

    Raise `ConfigError` for an empty key on the command line, and for a file without keys.

    Args:
        file: the setting `api_key_file`.
        option: the value of `--api-key`.
    """
    given = [(env.get(ENV_KEY) or "").strip(), (option or "").strip()]
    if option is not None and not given[1]:
        raise ConfigError("--api-key: the key is empty")
    return ApiKeys(filter(None, given), None if file is None else KeyFile(file))


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class RequireKey:
    """ASGI middleware that requires a key, if keys are set.

    It does so on every path but `OPEN_PATHS` and those of the page.

    It puts the name of the key into `scope["state"]["key"]`, for fairness between keys.

    Args:
        refuse: returns the answer to a request without a valid key.
    """

    def __init__(
        self, app: ASGIApp, keys: ApiKeys, refuse: Callable[[ApiError, Scope], ASGIApp]
    ) -> None:
        self._app = app
        self._keys = keys
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys and _needs_key(scope["path"]):
            owner = self._keys.find_owner(Headers(scope=scope))
            if owner is None:
                await self._refuse(_missing_key(), scope)(scope, receive, send)
                return
            scope.setdefault("state", {})["key"] = owner
        await self._app(scope, receive, send)


def _needs_key(path: str) -> bool:
    return path not in OPEN_PATHS and PAGE_PATH.fullmatch(path) is None


def _missing_key() -> ApiError:
    return ApiError(
        "A valid API key is required: send the header 'Authorization: Bearer KEY' or "
        "'x-api-key: KEY'.",
        code="invalid_api_key",
        status=401,
        headers={"WWW-Authenticate": "Bearer"},
    )
