"""The certificate of a server that speaks TLS, which is read again when its files change."""

import contextlib
import logging
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from engine.errors import system_reason
from server.config.files import ConfigError

log = logging.getLogger("understudy")

EXPIRED = 10  # OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED
NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID
SOON_DAYS = 14  # a certificate that expires within them is warned of when it is read

Stamp = tuple[tuple[int, int, int] | None, ...]


class Certificate:
    """A certificate with its key, and the context in which connections use them.

    The constructor raises `ConfigError` when they cannot be used. A later change that cannot be
    used (a file that is half written, or a key without its certificate yet) is logged, and the
    former certificate stays in use. Connections that exist keep the one they began with.

    Args:
        cert: a PEM file with the certificate, and those that lead to its authority.
        key: a PEM file with its key.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._files = (cert, key)
        self._seen = self._read_stamp()
        self._newest = load_context(cert, key)
        self.context = load_context(cert, key)
        self.context.sni_callback = self._choose

    def _choose(
        self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _: ssl.SSLContext
    ) -> None:
        """Let a connection that begins use the newest certificate. Each handshake calls this."""
        stamp = self._read_stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._newest = load_context(*self._files)
                log.info("tls_cert: the certificate in %s is used from now on", self._files[0])
            except ConfigError as error:
                log.error("%s; the certificate that was read before stays in use", error)
        connection.context = self._newest

    def _read_stamp(self) -> Stamp:
        return tuple(_stamp(path) for path in self._files)


def read_certificate(cert: Path | None, key: Path | None) -> Certificate | None:
    """Return the certificate of the settings `tls_cert` and `tls_key`; None without any.

    The key may be in the file of the certificate. Raises `ConfigError` if they cannot be used.
    """
    if cert is None:
        if key is not None:
            raise ConfigError("tls_key is set without tls_cert: set both, or neither")
        return None
    return Certificate(cert, key or cert)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def load_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Return a server's context with a certificate and its key.

    Raises `ConfigError` that says what is wrong with which file.
    """
    for name, path in (("tls_cert", cert), ("tls_key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{name}: {path} cannot be read: {system_reason(error)}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password=_refuse_password(key))
    except ssl.SSLError as error:
        raise ConfigError(_reason(error, cert, key)) from error
    _check_dates(context, cert)
    return context


def _refuse_password(key: Path) -> Callable[[], str]:
    """Return a function for OpenSSL, which would otherwise ask for the password on the terminal."""

    def refuse() -> str:
        raise ConfigError(
            f"tls_key: the key in {key} is encrypted. Write it without a password, in a file that "
            f"only the server's user can read: openssl pkey -in {key} -out FILE"
        )

    return refuse


def _reason(error: ssl.SSLError, cert: Path, key: Path) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"tls_key: the key in {key} is not that of the first certificate in {cert}"
    if _has_certificate(cert):
        return f"tls_key: {key} holds no key in the PEM format ({error.reason or error})"
    return f"tls_cert: {cert} holds no certificate in the PEM format ({error.reason or error})"


def _has_certificate(cert: Path) -> bool:
    try:
        first_certificate(cert)
        return True
    except (ValueError, ssl.SSLError):
        return False


def first_certificate(cert: Path) -> str:
    """Return the first certificate of a PEM file, the server's own, as PEM text.

    Raises `ValueError` or `ssl.SSLError` if there is none.
    """
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    text = cert.read_text(encoding="ascii", errors="replace")
    pem = text[text.index(begin) : text.index(end) + len(end)] + "\n"
    ssl.create_default_context().load_verify_locations(cadata=pem)
    return pem


def pinned_context(pem: str) -> ssl.SSLContext:
    """Return a client's context that trusts this one certificate only, whatever name it has."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=pem)
    return context


def _check_dates(server: ssl.SSLContext, cert: Path) -> None:
    """Raise `ConfigError` unless a client would take the certificate today.

    A handshake in memory finds that out, with the rules that clients have.
    """
    client = pinned_context(first_certificate(cert))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(4):
            for side in (asking, answering):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
        found = asking.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        what = {EXPIRED: "has expired", NOT_YET_VALID: "is not valid yet"}.get(error.verify_code)
        reason = what or f"is not one for servers: {error.verify_message}"
        raise ConfigError(f"tls_cert: the certificate in {cert} {reason}") from error
    ends = ssl.cert_time_to_seconds(str(found["notAfter"]))
    days = (ends - datetime.now(UTC).timestamp()) / 86400
    if days < SOON_DAYS:
        log.warning("tls_cert: the certificate in %s expires in %.1f days", cert, days)
