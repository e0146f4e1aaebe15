"""Who drafts: the method the model's file names, else the one forecast to be fastest."""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from engine.drafting.growth import Bounds
from engine.errors import ModelError
from engine.planning.footprint import Demand
from engine.planning.forecast import Forecast, Speeds, Tree, make_forecast
from engine.planning.plan import Memory, Plan, make_plan
from engine.spec import ModelSpec
from engine.weights.family import is_mixture

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scheme:
    """One way to serve a model: its plan, who drafts, and what that would run at."""

    plan: Plan
    demand: Demand
    method: str
    forecast: Forecast


def make_scheme(
    spec: ModelSpec,
    demand: Demand,
    memory: Memory,
    method: str,
    bounds: Bounds,
    speeds: Callable[[Demand, Plan], Speeds],
    users: int,
) -> Scheme:
    """Plan and forecast with this method. Raises `ModelError` when it does not fit."""
    plan = make_plan(spec, demand, memory)
    tree = Tree(method, bounds.depth, bounds.width, bounds.budget)
    forecast = make_forecast(plan, demand, tree, speeds(demand, plan), users)
    return Scheme(plan, demand, method, forecast)


def best_scheme(spec: ModelSpec, config: Any, scheme: Callable[[str], Scheme]) -> Scheme:
    """The best of the schemes; `scheme` makes that of a method. Raises `ModelError` when nothing
    fits.

    The bytes of substitutes could hold resident layers instead: whether they pay is a question of
    tokens a second, and only the forecast of both plans answers it.
    """
    if spec.draft.method is not None:
        return scheme(spec.draft.method)
    schemes = [scheme("ngram")]
    if not is_mixture(config):
        with suppress(ModelError):  # its substitutes do not fit
            schemes.append(scheme("subspec"))
    for own in schemes:
        speed, tokens = own.forecast.tokens_per_second, own.forecast.tokens_per_pass
        log.info(
            "draft %s: %.1f tokens/s forecast, if a pass emits %.1f", own.method, speed, tokens
        )
    return max(schemes, key=lambda own: own.forecast.tokens_per_second)
