"""What the routes of one app share."""

from dataclasses import dataclass

from fastapi import Request

from server.config.registry import Registry
from server.config.settings import Settings
from server.metrics.prometheus import Metrics
from server.models.lending import Models


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
