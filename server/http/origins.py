"""Which web pages may use a server that has no keys, decided from the head of a request. No I/O.

A browser sends requests to this machine for any page that its user opens. Three headers reveal such
a request: a Host that is not a name of this server (DNS rebinding: the page's own name resolves to
this machine), an Origin that is not allowed, and `Sec-Fetch-Site: cross-site` where the browser
sends no Origin. A page can set none of these headers itself.
"""

import ipaddress
import re
from collections.abc import Iterable

from starlette.datastructures import Headers

from server.errors import ApiError
from server.http.auth import OPEN_PATHS

ANY = "*"
DOCKER_HOST = "host.docker.internal"  # the name of the machine inside its containers
# Schemes of desktop and mobile programs. No page that is loaded from the web can have them.
PROGRAM_SCHEMES = frozenset({"app", "tauri", "vscode-webview", "vscode-file", "capacitor"})
NAME = r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?"
LITERAL = r"\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~%-]+)?\]"  # an IPv6 address, optionally with a zone
AUTHORITY = re.compile(rf"({LITERAL}|{NAME})(?::[0-9]*)?")
ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^\s,/]*)")
# These routes change models that other clients use. The only web pages that may use them are
# pages of this server.
CONTROL = re.compile(r"(?:/v1)?/models/.+/(?:load|unload|limits)")
MAX_QUOTED = 80  # characters of a refused header that its error quotes
KEYS_DISABLE_THIS = "Requests are not checked in this way when API keys are set."


class PagePolicy:
    """The rules that decide whether a request may reach a route of a server without keys.

    Args:
        allowed_hosts: the setting: further names of this server, "*" for any.
        cors_origins: the setting: origins of pages that may send requests, "*" for any.
        machine: the name of this machine.
        is_tls: whether this server speaks TLS. Then pages that came without it are not its own:
            whoever is between could have written them.
    """

    def __init__(
        self,
        allowed_hosts: Iterable[str],
        cors_origins: Iterable[str],
        machine: str,
        *,
        is_tls: bool = False,
    ) -> None:
        allowed = [host.lower().removesuffix(".") for host in allowed_hosts]
        name = machine.lower().removesuffix(".")
        short = name.partition(".")[0]
        self._hosts = frozenset({*allowed, DOCKER_HOST, name, short, f"{short}.local"})
        self._own_schemes = ("https",) if is_tls else ("http", "https")  # a proxy may speak TLS
        self._origins = frozenset(origin.lower() for origin in cors_origins)

    def refusal(self, method: str, path: str, headers: Headers) -> ApiError | None:
        """Return the error for a request that is refused, None for one that is allowed."""
        hosts = headers.getlist("host")
        own = host_of(hosts[0]) if len(hosts) == 1 else None
        if hosts and not self._is_own_host(own):
            own = None
            if path not in OPEN_PATHS:
                return _foreign_host(", ".join(hosts))
        is_control = CONTROL.fullmatch(path) is not None
        origins = headers.getlist("origin")
        if not origins:
            if (is_control or ANY not in self._origins) and _is_cross_site(method, headers):
                return _cross_site()
            return None
        if is_control and not (len(origins) == 1 and self._is_own_page(origins[0], own)):
            return _not_own_page(", ".join(origins))
        if len(origins) > 1 or not self._is_allowed_origin(origins[0], own):
            return _foreign_origin(", ".join(origins))
        if _has_body(headers) and not _is_json(headers):
            return _not_json(origins[0])
        return None

    def _is_own_host(self, host: str | None) -> bool:
        if ANY in self._hosts:
            return True
        return host is not None and (
            host in self._hosts or _is_localhost(host) or _address(host) is not None
        )

    def _is_allowed_origin(self, origin: str, own: str | None) -> bool:
        """Return whether pages of `origin` may send requests.

        Ports are ignored: proxies often leave them out of Host, and a program that serves another
        port of this machine could reach this one without a browser.

        Args:
            own: the host in the request's Host header.
        """
        origin = origin.lower()
        if ANY in self._origins or origin in self._origins:
            return True
        match = ORIGIN.fullmatch(origin)
        if match is not None and match[1] in PROGRAM_SCHEMES:
            return True
        host = _page_host(origin)
        return host is not None and (self._is_own_page(origin, own) or _is_loopback(host))

    def _is_own_page(self, origin: str, own: str | None) -> bool:
        """Return whether a page is one of this server, whose host is `own`. Ports are ignored."""
        scheme = origin.lower().partition(":")[0]
        host = _page_host(origin.lower())
        return host is not None and host == own and scheme in self._own_schemes


def _is_cross_site(method: str, headers: Headers) -> bool:
    """Return whether a page of another site sent a request without an Origin.

    Images and scripts cause such requests. Links to this server are allowed: the page cannot read
    the answer.
    """
    sites = [site.strip().lower() for site in headers.getlist("sec-fetch-site")]
    mode = headers.get("sec-fetch-mode", "").strip().lower()
    is_navigation = method in ("GET", "HEAD") and mode == "navigate"
    return "cross-site" in sites and not is_navigation


def _page_host(origin: str) -> str | None:
    """Return the host of an origin in lower case, None where it is no web page's."""
    match = ORIGIN.fullmatch(origin)
    return host_of(match[2]) if match is not None and match[1] in ("http", "https") else None


def host_of(authority: str) -> str | None:
    """Return the host of `host:port` as browsers write it, None where it has another form.

    A name is in lower case and without its last dot, an IPv6 address without brackets.
    """
    match = AUTHORITY.fullmatch(authority)
    if match is None:
        return None
    host: str = match[1]
    if host.startswith("["):
        address = _address(host[1:-1])
        return str(address) if isinstance(address, ipaddress.IPv6Address) else None
    return host.lower().removesuffix(".")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return `host` as an address, None for a name or an unusual spelling (octal, 127.1)."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_localhost(host: str) -> bool:
    return host == "localhost" or host.endswith(".localhost")


def _is_loopback(host: str) -> bool:
    if _is_localhost(host):
        return True
    address = _address(host)
    # Python before 3.13 does not recognise loopback addresses of IPv4 that are written as IPv6
    inner = getattr(address, "ipv4_mapped", None) or address
    return inner is not None and inner.is_loopback


def _has_body(headers: Headers) -> bool:
    lengths = headers.getlist("content-length")
    return "transfer-encoding" in headers or any(length.strip() != "0" for length in lengths)


def _is_json(headers: Headers) -> bool:
    """Return whether the body is declared as JSON, which makes browsers send a preflight."""
    kinds = headers.getlist("content-type")
    return bool(kinds) and all(
        kind.partition(";")[0].strip().lower() == "application/json" for kind in kinds
    )


def _quote(value: str) -> str:
    return ascii(value if len(value) <= MAX_QUOTED else value[:MAX_QUOTED] + "...")


def _foreign_host(host: str) -> ApiError:
    return ApiError(
        f"The Host {_quote(host)} is not a name of this server. If it is one, put it into "
        'allowed_hosts in understudy.yaml ("*" allows any, for a reverse proxy that checks it). '
        f"{KEYS_DISABLE_THIS}",
        code="host_not_allowed",
        status=403,
    )


def _foreign_origin(origin: str) -> ApiError:
    return ApiError(
        f"Pages of the origin {_quote(origin)} may not use this server. If they should, put it "
        f"into cors_origins in understudy.yaml. {KEYS_DISABLE_THIS}",
        code="origin_not_allowed",
        status=403,
    )


def _not_own_page(origin: str) -> ApiError:
    return ApiError(
        f"Pages of the origin {_quote(origin)} may not load, unload or limit models: only pages of "
        "this server may, and programs that are no web pages. cors_origins does not change this.",
        code="origin_not_allowed",
        status=403,
    )


def _cross_site() -> ApiError:
    return ApiError(
        "A page of another site may not load this URL as an image, a script or the like. If it "
        "should use this server, put its origin into cors_origins in understudy.yaml and use "
        f'fetch(), which names the origin ("*" allows all pages). {KEYS_DISABLE_THIS}',
        code="cross_site_request",
        status=403,
    )


def _not_json(origin: str) -> ApiError:
    return ApiError(
        "A web page must send the body as 'Content-Type: application/json'. Pages may send other "
        "types only when API keys are set (api_key_file in understudy.yaml).",
        code="content_type_not_allowed",
        status=403,
        # the origin is allowed, so the page may read this
        headers={"Access-Control-Allow-Origin": origin, "Vary": "Origin"},
    )
