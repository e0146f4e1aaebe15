"""What runs the requests of a server: an engine on this machine, or what another command opens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.process.client import EngineClient
from server.config.peers import peer_addresses
from server.config.registry import Registry
from server.config.settings import Settings
from server.models.lending import EngineFactory

if TYPE_CHECKING:
    from cluster.peers import Peers


@dataclass(frozen=True)
class Backend:
    """What runs the requests of a server.

    Args:
        registry: the models that it can run.
        engines: makes the engine of one.
        peers: other servers or replicas, which requests may run on.
        close: ends it, after the server.
    """

    registry: Registry
    engines: EngineFactory
    peers: "Peers | None"
    close: Callable[[], None] = lambda: None


OpenBackend = Callable[[Settings, Registry], Backend]


def here(settings: Settings, registry: Registry) -> Backend:
    """Return the backend that loads models on this machine, and uses the peers of the settings."""
    return Backend(registry, EngineClient, open_peers(settings))


def open_peers(settings: Settings) -> "Peers | None":
    """Return the peers of the settings; None without any. Raise `ConfigError` for wrong ones."""
    if not settings.peers:
        return None
    from cluster.peers import Peers  # an HTTP client, which others do not need

    return Peers(peer_addresses(settings.peers))
