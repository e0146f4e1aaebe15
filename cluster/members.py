"""The replicas of each deployment, as the routers of Ray Serve in this process know them.

Ray copies the module of a router by value, with its own variables. So this is a module of its own.
"""

import threading

_lock = threading.Lock()  # routers have a thread of their own
_members: dict[str, frozenset[str]] = {}


class ReplicaGone(Exception):
    """A replica that takes no more requests."""


def members_of(app: str) -> frozenset[str]:
    """Return the names of the replicas of an application that take requests."""
    with _lock:
        return _members.get(app, frozenset())


def note_members(app: str, names: frozenset[str]) -> None:
    """Note the replicas of an application."""
    with _lock:
        _members[app] = names
