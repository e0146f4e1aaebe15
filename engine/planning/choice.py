"""The choice of the drafting method and of the form of the weights.

Both are what the model's file says, else what gives the fastest forecast.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch

from engine.drafting.method import DraftNeeds, MethodFacts, PlanContext, candidates, facts_of
from engine.drafting.tree import Bounds
from engine.errors import ModelError
from engine.planning import probe
from engine.planning.assumed import Machine, complete_times
from engine.planning.blueprint import Blueprint
from engine.planning.footprint import Demand
from engine.planning.forecast import Forecast, make_forecast
from engine.planning.memory import Memory
from engine.planning.plan import Plan, make_plan
from engine.planning.refusal import DoesNotFit
from engine.spec import TILE, ModelSpec
from engine.streaming.device import Device
from engine.timing import StepTimes
from engine.weights.stored_format import packings

log = logging.getLogger(__name__)

# Weights are coded for at least this gain in speed: forecasts are not exact, and coding takes time
# at the first start.
LEAST_GAIN = 1.05


@dataclass(frozen=True)
class Scheme:
    """One way to serve a model: its drafting method, its memory plan and the forecast speed."""

    plan: Plan
    demand: Demand
    method: str
    bounds: Bounds
    forecast: Forecast
    packed: bool  # whether weights that are stored packed travel so, and are expanded in each pass
    titles: tuple[str, ...] = ()  # of the packed forms that the model's weights have
    why: str = ""  # the reason for the form, if there are packed weights
    coded: bool = False  # whether weights travel in a lossless code
    plain: Forecast | None = None  # the forecast for plain weights, if they could be coded

    @property
    def form(self) -> str:
        """Return a text for the log that says how packed weights travel; "" if there are none."""
        if not self.titles:
            return ""
        kinds = ", ".join(self.titles)
        if not self.packed:
            return f"weights ({kinds}) are expanded at load, {self.why}"
        units = zip(self.demand.unit_bytes, self.plan.tiers, strict=True)
        travels = sum(nbytes for nbytes, tier in units if tier != "resident")
        how = f"travel packed ({kinds}), {travels / 1e9:.2f} GB a pass"
        if not travels:
            total = sum(self.demand.unit_bytes)
            how = f"stay packed on the device ({kinds}), {total / 1e9:.2f} GB"
        expanding = f"expanding takes {self.forecast.expand_seconds * 1e3:.0f} ms a pass"
        return f"weights {how}, {self.why}; {expanding}"

    @property
    def coding(self) -> str:
        """Return a text for the log that says how coded weights travel; "" if they are plain."""
        if not self.coded:
            return ""
        units = list(zip(self.demand.link_bytes, self.demand.unit_bytes, strict=True))
        away = [own for own, tier in zip(units, self.plan.tiers, strict=True) if tier != "resident"]
        coded, plain = (sum(own[form] for own in away) for form in (0, 1))
        why = "because plain ones do not fit"
        if self.plain is not None:
            speeds = self.forecast.tokens_per_second, self.plain.tokens_per_second
            why = f"because the forecast is {speeds[0]:.2g} instead of {speeds[1]:.2g} tokens/s"
        return (
            f"weights travel in a lossless code, about {coded / 1e9:.2f} instead of "
            f"{plain / 1e9:.2f} GB a pass, {why}; decoding takes "
            f"{self.forecast.decode_seconds * 1e3:.0f} ms a pass"
        )


def make_scheme(
    method: str, spec: ModelSpec, blueprint: Blueprint, machine: Machine, users: int
) -> Scheme:
    """Return the plan and the forecast with this drafting method, with weights in the faster form.

    Raises `ModelError` where the model does not fit, or the method cannot serve it.
    """
    facts = facts_of(method, spec.draft)
    if blueprint.recurrent and spec.draft.budget is None:
        # What is kept of more rows would take more memory than half of the states (states.py).
        bounds = replace(facts.bounds, budget=min(facts.bounds.budget, TILE))
        facts = replace(facts, bounds=bounds)
    titles = tuple(packings()[suffix].title for suffix in sorted(blueprint.expansions))
    forms, why = _forms(spec, blueprint)

    def scheme_in(packed: bool, coded: bool) -> Scheme:
        needs = _needs(facts, spec, blueprint, packed)
        demand = blueprint.demand(needs, packed=packed, coded=coded)
        schemes = []
        for plan in _plans(spec, demand, machine.memory):
            times = complete_times(machine, demand, plan)
            forecast = make_forecast(plan, demand, facts, times, users)
            one = Scheme(plan, demand, method, facts.bounds, forecast, packed, titles, why, coded)
            schemes.append(one)
        return min(schemes, key=lambda one: one.forecast.request_seconds)

    def scheme_of(packed: bool) -> Scheme:
        may_code = not packed and _may_code(spec, blueprint, machine)
        return _shorter(partial(scheme_in, packed)) if may_code else scheme_in(packed, False)

    made: list[Scheme] = []
    refusals: list[ModelError] = []
    for packed in forms:
        try:
            made.append(scheme_of(packed))
        except ModelError as error:
            refusals.append(error)
    if not made:
        raise refusals[0]
    best = max(made, key=lambda one: one.forecast.tokens_per_second)  # packed, if they are equal
    if len(forms) == 1:
        return best
    if len(made) == 1:
        return replace(best, why="because in the other form the model does not fit")
    slower = min(one.forecast.tokens_per_second for one in made)
    speeds = f"{best.forecast.tokens_per_second:.2g} instead of {slower:.2g} tokens/s"
    return replace(best, why=f"because the forecast is {speeds}")


def _plans(spec: ModelSpec, demand: Demand, memory: Memory) -> Iterator[Plan]:
    """Yield the plan with the usual ring, then those with larger ones, up to a whole layer ahead.

    With a larger ring fewer layers are resident, but computing hides more of the transfers. Plans
    with less KV are left out. Raises `ModelError` where the model does not fit.
    """
    usual = make_plan(spec, demand, memory)
    yield usual
    most = 1 + max(layer.num_parts for layer in demand.layers)
    if spec.stream.slots is None and usual.slots:
        for slots in range(usual.slots + 1, most + 1):
            stream = replace(spec.stream, slots=slots)
            with suppress(DoesNotFit):
                larger = make_plan(replace(spec, stream=stream), demand, memory)
                if larger.num_pages >= usual.num_pages:
                    yield larger


def _forms(spec: ModelSpec, blueprint: Blueprint) -> tuple[tuple[bool, ...], str]:
    """Return whether weights may stay packed or be expanded at load, and the reason for one form.

    Weights that `target.quantize` packs stay so, since the user asked for fewer bits.
    """
    if not blueprint.expansions:
        return (False,), ""
    if spec.target.quantize is not None:
        return (True,), "as target.quantize says"
    if spec.stream.packed is not None:
        return (spec.stream.packed,), "as stream.packed says"
    return (True, False), ""


def _may_code(spec: ModelSpec, blueprint: Blueprint, machine: Machine) -> bool:
    """Return whether weights may travel in a lossless code, which only bfloat16 has."""
    wanted = spec.stream.coding == "auto" and spec.target.quantize is None
    return wanted and blueprint.dtype == torch.bfloat16 and bool(machine.decoding_gbps)


def _shorter(scheme_of: Callable[[bool], Scheme]) -> Scheme:
    """Return the scheme with coded weights if the forecast is faster by it, else with plain ones.

    Raises `ModelError` if the model fits in neither form.

    Args:
        scheme_of: makes the scheme with coded weights (True) or plain ones.
    """
    coded: Scheme | None = None
    with suppress(ModelError):
        coded = scheme_of(True)
    is_useful = coded is not None and set(coded.plan.tiers) != {"resident"}
    try:
        plain = scheme_of(False)
    except ModelError:
        if coded is None or not is_useful:
            raise
        return coded
    if coded is None or not is_useful:
        return plain
    speeds = [own.forecast.tokens_per_second for own in (coded, plain)]
    if speeds[0] < LEAST_GAIN * speeds[1]:
        return plain
    return replace(coded, plain=plain.forecast)


def _needs(facts: MethodFacts, spec: ModelSpec, blueprint: Blueprint, packed: bool) -> DraftNeeds:
    outline = blueprint.outlines[packed]
    context = PlanContext(
        draft=spec.draft,
        bounds=facts.bounds,
        config=blueprint.config,
        dtype=blueprint.dtype,
        layouts=outline.layouts,
        layers=outline.layers,
        device=blueprint.torch_device,
        experts=blueprint.experts,
        stored=blueprint.outlines[True].layouts,
    )
    return facts.needs(context)


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


def measured_draft(blueprint: Blueprint, device: Device, methods: Sequence[str]) -> StepTimes:
    """Return the measured times of a draft step, by rows, of low-bit copies of the target's layers.

    They are empty if none of the methods has such copies.
    """
    for method in methods:
        facts = facts_of(method, blueprint.spec.draft)
        with suppress(ModelError):
            if _needs(facts, blueprint.spec, blueprint, packed=False).substitute_bytes:
                return probe.substitute_times(blueprint, device, facts.bounds.width)
    return StepTimes()
