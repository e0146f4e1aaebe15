"""The peers in `understudy.yaml`: other servers of the same model, which requests may run on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from cluster.address import Address
from engine.errors import ModelError
from engine.files import read_text
from server.config.files import ConfigError, Section

LARGEST_KEY_FILE = 64 << 10  # bytes
URL = r"^https?://[^\s/?#@]+/?$"  # no path, and no name and password


def _checked_url(url: str) -> str:
    """Return a URL whose host and port are some. Raise `ValueError` for another."""
    parts = urlsplit(url)
    if not parts.hostname or parts.port == 0:  # reading a port that is none raises, too
        raise ValueError("this URL has no host, or no port that a server can have")
    return url


class PeerSection(Section):
    """One peer. Its key is in a file, so that the settings can be shown to others."""

    url: Annotated[str, Field(pattern=URL), AfterValidator(_checked_url)]
    key_file: Path | None = None  # its first line that is no comment is the peer's API key
    ca_file: Path | None = None  # of https: the certificate that signs the peer's own


def _from_url(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


PeerSections = Annotated[
    tuple[Annotated[PeerSection, BeforeValidator(_from_url)], ...], Field(max_length=64)
]


def in_folder(peers: object, folder: Path) -> object:
    """Return the peers of a settings' file with paths that begin at its folder."""
    if not isinstance(peers, list):
        return peers
    return [
        {
            name: folder / value if name.endswith("_file") and isinstance(value, str) else value
            for name, value in peer.items()
        }
        if isinstance(peer, dict)
        else peer
        for peer in peers
    ]


def peer_addresses(peers: Sequence[PeerSection]) -> list[Address]:
    """Return the addresses of the peers, with their keys.

    Raise `ConfigError` for a file that cannot be used, and for a peer that is named twice.
    """
    found: list[Address] = []
    for number, peer in enumerate(peers):
        key = "" if peer.key_file is None else _read_key(peer.key_file, number)
        if peer.ca_file is not None and not peer.ca_file.is_file():
            raise ConfigError(f"peers.{number}.ca_file: {peer.ca_file} is no file")
        found.append(Address(peer.url.rstrip("/"), key, peer.ca_file))
    urls = [own.url for own in found]
    if twice := next((url for url in urls if urls.count(url) > 1), None):
        raise ConfigError(f"peers: {twice} is named twice")
    return found


def _read_key(path: Path, number: int) -> str:
    try:
        lines = [line.strip() for line in read_text(path, LARGEST_KEY_FILE).splitlines()]
    except ModelError as error:
        raise ConfigError(f"peers.{number}.key_file: {error}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys or not keys[0].isascii() or not keys[0].isprintable():
        raise ConfigError(f"peers.{number}.key_file: {path} has no key that a header can carry")
    return keys[0]
