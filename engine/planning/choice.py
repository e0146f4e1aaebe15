"""Which method drafts: the one that the model's file names, else the one forecast to be fastest."""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from engine.drafting.method import DraftNeeds, MethodFacts, PlanContext, candidates, facts_of
from engine.drafting.tree import Bounds
from engine.errors import ModelError
from engine.planning import probe
from engine.planning.assumed import Machine, complete
from engine.planning.blueprint import Blueprint
from engine.planning.footprint import Demand
from engine.planning.forecast import Forecast, make_forecast
from engine.planning.plan import Plan, make_plan
from engine.spec import ModelSpec
from engine.streaming.device import Device
from engine.timing import StepTimes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scheme:
    """One way to serve a model: its plan, who drafts, and what that would run at."""

    plan: Plan
    demand: Demand
    method: str
    bounds: Bounds
    forecast: Forecast


def make_scheme(
    method: str, spec: ModelSpec, blueprint: Blueprint, machine: Machine, users: int
) -> Scheme:
    """Plan and forecast with this method. Raises `ModelError` when it does not fit."""
    facts = facts_of(method, spec.draft)
    demand = blueprint.demand(_needs(facts, spec, blueprint))
    plan = make_plan(spec, demand, machine.memory)
    forecast = make_forecast(plan, demand, facts, complete(machine, demand, plan), users)
    return Scheme(plan, demand, method, facts.bounds, forecast)


def _needs(facts: MethodFacts, spec: ModelSpec, blueprint: Blueprint) -> DraftNeeds:
    config, layouts = blueprint.config, blueprint.outline.layouts
    return facts.needs(PlanContext(spec.draft, facts.bounds, config, blueprint.dtype, layouts))


def best_scheme(spec: ModelSpec, scheme: Callable[[str], Scheme]) -> Scheme:
    """Return the best of the schemes; `scheme` makes that of a method. Raises `ModelError` when
    nothing fits.

    The bytes of a draft could hold resident layers instead: whether it pays is a question of
    tokens a second, and only the forecast of both plans answers it.
    """
    if spec.draft.method is not None:
        return scheme(spec.draft.method)
    schemes: list[Scheme] = []
    refusals: list[ModelError] = []
    for method in candidates():
        try:
            schemes.append(scheme(method))
        except ModelError as error:  # the draft does not fit, or cannot serve this family
            refusals.append(error)
    if not schemes:
        raise refusals[0]
    for own in schemes:
        speed, tokens = own.forecast.tokens_per_second, own.forecast.tokens_per_pass
        log.info(
            "draft %s: %.1f tokens/s forecast, if a pass emits %.1f", own.method, speed, tokens
        )
    return max(schemes, key=lambda own: own.forecast.tokens_per_second)


def measured_draft(blueprint: Blueprint, device: Device) -> StepTimes:
    """Time a draft step of low-bit copies of the target's layers, if a candidate has them."""
    for method in candidates():
        facts = facts_of(method)
        with suppress(ModelError):
            if _needs(facts, blueprint.spec, blueprint).substitute_bytes:
                return probe.substitute_times(blueprint, device, facts.bounds.width)
    return StepTimes()
