"""The choice of the drafting method: the one the model's file names, else the fastest forecast."""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from engine.drafting.method import DraftNeeds, MethodFacts, PlanContext, candidates, facts_of
from engine.drafting.tree import Bounds
from engine.errors import ModelError
from engine.planning import probe
from engine.planning.assumed import Machine, complete_times
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
    """One way to serve a model: its drafting method, its memory plan and the forecast speed."""

    plan: Plan
    demand: Demand
    method: str
    bounds: Bounds
    forecast: Forecast


def make_scheme(
    method: str, spec: ModelSpec, blueprint: Blueprint, machine: Machine, users: int
) -> Scheme:
    """Return the plan and the forecast with this drafting method.

    Raises `ModelError` where the model does not fit, or the method cannot serve it.
    """
    facts = facts_of(method, spec.draft)
    demand = blueprint.demand(_needs(facts, spec, blueprint))
    plan = make_plan(spec, demand, machine.memory)
    forecast = make_forecast(plan, demand, facts, complete_times(machine, demand, plan), users)
    return Scheme(plan, demand, method, facts.bounds, forecast)


def _needs(facts: MethodFacts, spec: ModelSpec, blueprint: Blueprint) -> DraftNeeds:
    config, layouts = blueprint.config, blueprint.outline.layouts
    return facts.needs(PlanContext(spec.draft, facts.bounds, config, blueprint.dtype, layouts))


def best_scheme(spec: ModelSpec, scheme: Callable[[str], Scheme]) -> Scheme:
    """Return the scheme of the method in the model's file, else the one forecast to be fastest.

    The memory of a draft could hold resident layers instead. Only the forecasts of both plans show
    which gives more tokens a second. Raises `ModelError` where no scheme fits.

    Args:
        scheme: makes the scheme of a method, or raises `ModelError`.
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
    for made in schemes:
        speed, tokens = made.forecast.tokens_per_second, made.forecast.tokens_per_pass
        log.debug(
            "draft %s: forecast %.1f tokens/s, if a pass emits %.1f tokens",
            made.method,
            speed,
            tokens,
        )
    return max(schemes, key=lambda made: made.forecast.tokens_per_second)


def measured_draft(blueprint: Blueprint, device: Device) -> StepTimes:
    """Return the measured times of a draft step, by rows, of low-bit copies of the target's layers.

    They are empty if no method that `draft: auto` considers has such copies.
    """
    for method in candidates():
        facts = facts_of(method)
        with suppress(ModelError):
            if _needs(facts, blueprint.spec, blueprint).substitute_bytes:
                return probe.substitute_times(blueprint, device, facts.bounds.width)
    return StepTimes()
