"""Who may ask: API keys, compared in constant time."""

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.config import ConfigError
from server.errors import ApiError

ENV_KEY = "UNDERSTUDY_API_KEY"
OPEN_PATHS = frozenset({"/health", "/v1/health"})


class ApiKeys:
    """A set of keys; only their digests are kept."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = {_digest(key): f"key-{i}" for i, key in enumerate(dict.fromkeys(keys))}

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, authorization: str | None) -> str | None:
        """The name of the key in an `Authorization: Bearer` header; None when it is not one."""
        scheme, _, key = (authorization or "").partition(" ")
        # headers are read as latin-1, keys are written in UTF-8
        given = hashlib.sha256(key.strip().encode("latin-1", errors="replace")).digest()
        found = None
        for digest, name in self._digests.items():  # all of them: the time tells nothing
            if hmac.compare_digest(digest, given):
                found = name
        return found if scheme.lower() == "bearer" else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()


def read_keys(env: Mapping[str, str], file: Path | None) -> ApiKeys:
    """Keys of the environment and of a file with one key a line (`#` begins a comment).

    Raises `ConfigError` when the file cannot be read or holds no key.
    """
    keys = [env[ENV_KEY].strip()] if env.get(ENV_KEY, "").strip() else []
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_key_file: {file} cannot be read: {error}") from error
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise ConfigError(f"api_key_file: {file} holds no key; write one key a line")
        keys += found
    return ApiKeys(keys)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class RequireKey:
    """ASGI middleware: every path but the open ones needs a key, when there are any.

    `scope["state"]["key"]` names the key, for fairness between them.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys and scope["path"] not in OPEN_PATHS:
            owner = self._keys.owner(Headers(scope=scope).get("authorization"))
            if owner is None:
                await _refusal().response(scope)(scope, receive, send)
                return
            scope.setdefault("state", {})["key"] = owner
        await self._app(scope, receive, send)


def _refusal() -> ApiError:
    return ApiError(
        "A valid API key is required: send the header 'Authorization: Bearer KEY'.",
        code="invalid_api_key",
        status=401,
        headers={"WWW-Authenticate": "Bearer"},
    )
