"""`understudy plan`: the memory plan, the speed to expect, and the changes that would help most.

No weights are loaded: config.json is enough. Where the checkpoint is there, its sizes are used.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from engine.compiled.compiler import FIRST_BYTES
from engine.drafting.method import candidates
from engine.errors import ModelError
from engine.planning import assumed, link_probe, probe
from engine.planning.assumed import Machine
from engine.planning.blueprint import Blueprint
from engine.planning.cached import Cached
from engine.planning.changes import changes
from engine.planning.choice import Scheme, best_scheme, make_scheme, measured_draft
from engine.planning.footprint import size_text
from engine.planning.forecast import USERS
from engine.planning.machine import CPU_DEVICE_SHARE, RAM_SHARE, available_memory
from engine.planning.making import must_make
from engine.planning.memory import Memory
from engine.spec import TILE, ModelSpec
from engine.streaming.device import choose_device
from engine.text.tokenizer import read_tokenizer
from engine.weights.generation_config import read_generation_config
from engine.weights.hub import locate
from engine.weights.shards import has_weights

STORED, IN_CHECKPOINT = "stored weights", "in the checkpoint"  # of an `Assumption`
LEAST_GAIN = 1.02  # factor in tokens a second: a change that brings less is not shown


@dataclass(frozen=True)
class WhatIf:
    """A machine to plan for. None means the value of the machine that runs the command."""

    device_memory: int | None = None  # bytes of a CUDA card
    ram: int | None = None  # bytes
    link_gbps: float | None = None  # speed of the link that weights travel, 1e9 bytes a second
    disk_gbps: float | None = None
    device_gbps: float | None = None  # of the card's memory, which only another card may have
    users: int = USERS  # of the forecast for several users


@dataclass(frozen=True)
class Gain:
    """A single change and the speed that it would bring."""

    change: str  # "memory.device: 8 GiB -> 12 GiB"
    factor: float  # times the tokens a second of one user


@dataclass(frozen=True)
class Assumption:
    """A figure that the forecast depends on, and where it comes from."""

    what: str
    figure: str
    source: str = "assumed"  # or "measured ...", "as asked", how weights travel


@dataclass(frozen=True)
class Figures:
    """The machine that a plan is for: measured, assumed or as asked."""

    device_memory: int  # bytes of the card, or of the RAM that is used as the device's
    ram: int  # bytes
    link_gbps: float  # from RAM to the device
    disk_gbps: float
    device_gbps: float | None  # of the card's memory; None where passes were measured instead


@dataclass(frozen=True)
class Preview:
    """The results that `understudy plan` shows."""

    model_id: str
    model_type: str
    device: str  # "cuda" or "cpu"
    machine: Figures
    has_weights: bool  # whether the checkpoint was there, not its config.json alone
    scheme: Scheme
    gains: tuple[Gain, ...]  # the best first
    assumptions: tuple[Assumption, ...]


def preview(spec: ModelSpec, what_if: WhatIf) -> Preview:
    """Return the plan and the forecast of a model without loading it.

    Raises `DoesNotFit` when the model cannot be served within the limits, and `ModelError` when it
    cannot be served at all or its config.json cannot be found.
    """
    planner = _Planner(spec, what_if)
    scheme = planner.best(planner.spec, planner.machine)
    return Preview(
        model_id=spec.id,
        model_type=planner.describe(planner.spec).config.model_type,
        device="cuda" if planner.device is None else planner.device.kind,
        machine=_figures(planner.machine),
        has_weights=has_weights(planner.folder),
        scheme=scheme,
        gains=_gains(planner, scheme),
        assumptions=tuple(_assumptions(planner, scheme)),
    )


class _Planner:
    """A planner for one model on one machine, and for changes of either.

    The constructor raises `ModelError` for a model that loading refuses. The tokenizer is read
    while the model is described, and before times are measured.
    """

    def __init__(self, spec: ModelSpec, what_if: WhatIf) -> None:
        self.what_if = what_if
        self.folder = locate(spec.target.source, spec.target.revision)
        if what_if.device_memory is not None:  # a card that this machine may not have
            stream = replace(spec.stream, simulate_gbps=None)
            spec = replace(spec, memory=replace(spec.memory, device=None), stream=stream)
        if what_if.ram is not None:
            spec = replace(spec, memory=replace(spec.memory, ram=None))
        self.spec = spec
        self.device = choose_device(spec.device) if what_if.device_memory is None else None
        self._described: dict[object, Blueprint] = {}
        with ThreadPoolExecutor(1, "tokenizer") as pool:
            # A config.json alone is planned before its tokenizer is downloaded.
            checks = [pool.submit(read_tokenizer, self.folder)] if has_weights(self.folder) else []
            blueprint = self.describe(self.spec)
        for done in checks:
            done.result()
            read_generation_config(self.folder, blueprint.vocab_size)
        self.machine = self._machine()

    def best(self, spec: ModelSpec, machine: Machine) -> Scheme:
        """Return the scheme of the spec's drafting method, or the fastest where it names none.

        Raises `ModelError` where no scheme fits.
        """
        blueprint, users = self.describe(spec), self.what_if.users
        scheme = partial(make_scheme, spec=spec, blueprint=blueprint, machine=machine, users=users)
        return best_scheme(spec, scheme)

    def describe(self, spec: ModelSpec) -> Blueprint:
        """Return the model with this spec's precision and context."""
        key = (spec.target, spec.context_length)
        if key not in self._described:
            device = None if self.device is None else self.device.torch_device
            self._described[key] = Blueprint(spec, self.folder, device)
        return self._described[key]

    def _machine(self) -> Machine:
        """Return this machine with measured speeds, or the machine that `what_if` describes."""
        asked, spec = self.what_if, self.spec
        ram_gbps = asked.link_gbps or spec.stream.simulate_gbps or assumed.LINK_GBPS
        if asked.device_memory is not None:
            runtime = assumed.DEVICE_RUNTIME
            device = int(asked.device_memory * assumed.DEVICE_SHARE) - runtime
            memory = Memory(
                device,
                asked.ram or assumed.RAM,
                has_own_memory=True,
                device_runtime=runtime,
                stream_workspace=assumed.STREAM_WORKSPACE,
                host_runtime=assumed.HOST_RUNTIME,
                code=FIRST_BYTES if self.describe(spec).compiles(has_own_memory=True) else 0,
            )
            machine = Machine(
                memory,
                ram_gbps,
                asked.disk_gbps or assumed.DISK_GBPS,
                asked.device_memory,
                disk_source="as asked" if asked.disk_gbps else "assumed",
                device_gbps=asked.device_gbps,
            )
            if not link_probe.uses_codes(self.describe(spec)):
                return machine
            speeds = assumed.decoding_gbps(machine.device_speed, spec.draft.group)
            return replace(machine, decoding_gbps=speeds)
        assert self.device is not None, "no other machine was asked about"
        blueprint = self.describe(spec)
        passes = probe.pass_times(blueprint, self.device).rows
        draft = measured_draft(blueprint, self.device, candidates())
        expanding = probe.expanding_times(blueprint, self.device)
        measured = link_probe.disk_gbps(blueprint)
        decoding = link_probe.decoding_gbps(blueprint, self.device)
        compiles = blueprint.compiles(has_own_memory=self.device.has_own_memory)
        memory = available_memory(self.device, compiles=compiles)  # after the measurements
        if asked.ram is not None:
            share = CPU_DEVICE_SHARE / RAM_SHARE  # of the RAM for weights, where it is the device
            device = memory.device if memory.has_own_memory else int(asked.ram * share)
            memory = replace(memory, ram=asked.ram, device=device, loading=0)
        # If the device computes in RAM, weights are streamed from the disk.
        asked_disk = asked.disk_gbps or (None if memory.has_own_memory else asked.link_gbps)
        return Machine(
            memory,
            ram_gbps,
            asked_disk or measured or assumed.DISK_GBPS,
            device_memory=spec.memory.device or memory.device,
            passes=passes,
            draft=draft,
            expanding=expanding,
            decoding_gbps=decoding,
            disk_source="as asked" if asked_disk else "measured" if measured else "assumed",
        )


def _figures(machine: Machine) -> Figures:
    is_measured = machine.passes.expect(1) is not None
    return Figures(
        machine.device_memory,
        machine.memory.ram,
        machine.ram_gbps,
        machine.disk_gbps,
        None if is_measured else machine.device_speed.gbps,
    )


def _gains(planner: _Planner, scheme: Scheme) -> tuple[Gain, ...]:
    """Return the changes that would make the model faster, the best first."""
    now, gains = scheme.forecast.tokens_per_second, []
    for change in changes(planner.spec, planner.machine, scheme.plan, scheme.demand, scheme.method):
        with suppress(ModelError):  # it would not fit, or the family does not take it
            changed = planner.best(change.spec, change.machine)
            gain = Gain(change.text, changed.forecast.tokens_per_second / now)
            if gain.factor >= LEAST_GAIN:
                gains.append(gain)
    return tuple(sorted(gains, key=lambda gain: gain.factor, reverse=True))


def _coding_texts(scheme: Scheme) -> tuple[str, str]:
    """Return how coded weights travel, and what that saves."""
    demand, tiers = scheme.demand, scheme.plan.tiers
    units = list(zip(demand.link_bytes, demand.unit_bytes, tiers, strict=True))
    bits = 8 * demand.item_bytes * sum(demand.link_bytes) / sum(demand.unit_bytes)
    saved = {
        place: sum(plain - own for own, plain, tier in units if tier in held)
        for place, held in (("link", ("ram", "disk")), ("RAM", ("ram",)), ("disk", ("disk",)))
    }
    texts = [f"{size_text(nbytes)} less {place}" for place, nbytes in saved.items() if nbytes]
    return f"{bits:.1f} bits", f"lossless code: {', '.join(texts)}"


def _made(planner: _Planner, scheme: Scheme) -> Iterator[Assumption]:
    """Yield what a start has to make, unless the draft and the form of the weights need nothing."""
    tiers, demand = scheme.plan.tiers, scheme.demand
    resident = {unit for unit, tier in enumerate(tiers) if tier == "resident"}
    if not must_make(replace(demand, cached=Cached()), resident):
        return
    missing = must_make(demand, resident)
    source = "at the first start" if planner.device is None else "the cache does not have them"
    if not missing:
        source = "the cache has all"
    yield Assumption("to be made", " and ".join(missing) or "nothing", source)


def _assumptions(planner: _Planner, scheme: Scheme) -> Iterator[Assumption]:
    """Yield the figures that the forecast depends on, the most important first."""
    machine, asked, forecast = planner.machine, planner.what_if, scheme.forecast
    if expanded := planner.describe(planner.spec).expanded_when_read:
        yield Assumption(STORED, expanded, IN_CHECKPOINT)
    if scheme.titles:
        yield Assumption(STORED, ", ".join(scheme.titles), scheme.form)
    if scheme.packed and (expanding := forecast.expand_seconds):
        source = "measured on some rows" if machine.expanding else "assumed"
        yield Assumption("expanding", f"{expanding * 1e3:.0f} ms a pass", source)
    if scheme.coded:
        yield Assumption("weights", *_coding_texts(scheme))
        gbps = machine.decoding_gbps[scheme.demand.is_self_drafted]
        needed = size_text(sum(scheme.demand.link_bytes))
        yield Assumption("disk space", needed, "in the cache, beside the checkpoint")
        share = f"assumed, by {assumed.DECODING_SHARE:.0%} of the device memory's bandwidth"
        source = share if planner.device is None else "measured on one weight"
        yield Assumption("decoding", f"{gbps:.3g} GB/s", source)
    yield from _made(planner, scheme)
    if "ram" in scheme.plan.tiers:
        source = "as asked" if asked.link_gbps or planner.spec.stream.simulate_gbps else "assumed"
        yield Assumption("link, RAM to device", f"{machine.ram_gbps:g} GB/s", source)
    if "disk" in scheme.plan.tiers:
        yield Assumption("disk", f"{machine.disk_gbps:.3g} GB/s", machine.disk_source)
    if (timed := machine.passes.expect(TILE)) is not None:
        figure = f"{timed * 1e3:.0f} ms"
        yield Assumption(f"compute of {TILE} rows", figure, "measured on one layer")
    else:
        source = "as asked" if machine.device_gbps else "assumed"
        yield Assumption("device memory", f"{machine.device_speed.gbps:g} GB/s", source)
        yield Assumption("products", f"{machine.device_speed.tflops:g} TFLOP/s")
    if scheme.demand.is_self_drafted and machine.draft.expect(1) is not None:
        figure = f"{forecast.draft_step_seconds * 1e3:.1f} ms"
        yield Assumption("draft step", figure, "measured")
    yield Assumption("tokens a pass", f"{forecast.tokens_per_pass:.1f} by {scheme.method}")
