"""What the routes of one app share."""

from dataclasses import dataclass

from fastapi import Request

from server.metrics import Metrics
from server.models import Models
from server.registry import Registry
from server.settings import Settings


@dataclass(frozen=True)
class AppState:
    settings: Settings
    registry: Registry
    models: Models
    metrics: Metrics


def state_of(request: Request) -> AppState:
    """The state that `create_app` put on the app."""
    state = request.app.state.understudy
    assert isinstance(state, AppState)
    return state
