"""Single changes of a machine or of a model's file that may make a model faster."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from engine.drafting.method import facts_of
from engine.drafting.methods import available
from engine.planning.assumed import Machine
from engine.planning.footprint import Demand
from engine.planning.plan import Plan
from engine.spec import ModelSpec

GIB = 1 << 30
SHORT_CONTEXT = 2048  # tokens; no shorter context is advised
CARDS = (4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 141, 192)  # GiB of memory


@dataclass(frozen=True)
class Change:
    """One change, with the model's specification and the machine after it."""

    text: str  # "memory.device: 8 GiB -> 12 GiB"
    spec: ModelSpec
    machine: Machine


def changes(
    spec: ModelSpec, machine: Machine, plan: Plan, demand: Demand, method: str
) -> Iterator[Change]:
    """Yield the changes worth trying, given the present plan and drafting method."""
    units = zip(demand.link_bytes, plan.tiers, strict=True)
    away = [nbytes for nbytes, tier in units if tier != "resident"]
    if away:
        yield _more_device(spec, machine)
    if "disk" in plan.tiers and (machine.memory.has_own_memory or spec.stream.simulate_gbps):
        yield _more_ram(spec, machine, sum(away) + plan.making_bytes)
    if "ram" in plan.tiers:
        faster = replace(machine, ram_gbps=2 * machine.ram_gbps)
        text = f"link: {machine.ram_gbps:g} GB/s -> {faster.ram_gbps:g} GB/s"
        yield Change(text, spec, faster)
    if "disk" in plan.tiers:
        faster = replace(machine, disk_gbps=2 * machine.disk_gbps)
        text = f"disk: {machine.disk_gbps:g} GB/s -> {faster.disk_gbps:g} GB/s"
        yield Change(text, spec, faster)
    if spec.stream.packed is not None:
        other_form = not spec.stream.packed
        text = f"stream.packed: {_yaml(spec.stream.packed)} -> {_yaml(other_form)}"
        stream = replace(spec.stream, packed=other_form)
        yield Change(text, replace(spec, stream=stream), machine)
    if spec.target.quantize is None:
        text = "target.quantize: nf4 (4-bit weights: other tokens than the full model's)"
        quantized = replace(spec.target, quantize="nf4")
        yield Change(text, replace(spec, target=quantized), machine)
    for other in available():
        facts = facts_of(other)
        if other != method and (facts.is_candidate or not facts.has_drafts):
            draft = replace(spec.draft, method=other, source=None, revision=None)
            yield Change(f"draft.method: {method} -> {other}", replace(spec, draft=draft), machine)
    context = demand.context_length
    if context > SHORT_CONTEXT:
        half = replace(spec, context_length=context // 2)
        yield Change(f"context_length: {context} -> {context // 2}", half, machine)


def _more_device(spec: ModelSpec, machine: Machine) -> Change:
    """Return the change to a device with as much memory as the next larger common GPU.

    Above the largest of `CARDS`, the memory doubles. If the device has no memory of its own, RAM
    grows by the same amount.
    """
    now = machine.device_memory
    more = next((size * GIB for size in CARDS if size * GIB > now * 1.05), 2 * now) - now
    memory = replace(machine.memory, device=machine.memory.device + more)
    if not memory.has_own_memory:
        memory = replace(memory, ram=memory.ram + more)
    limits = replace(spec.memory, device=None if spec.memory.device is None else now + more)
    text = f"memory.device: {_gib(now)} -> {_gib(now + more)}"
    bigger = replace(machine, memory=memory, device_memory=now + more)
    return Change(text, replace(spec, memory=limits), bigger)


def _more_ram(spec: ModelSpec, machine: Machine, needed: int) -> Change:
    """Return the change to as much RAM as the streamed weights need, in steps of 8 GiB."""
    step = 8 * GIB
    ram = -(-needed // step) * step
    text = f"memory.ram: {_gib(machine.memory.ram)} -> {_gib(ram)}"
    bigger = replace(machine, memory=replace(machine.memory, ram=ram))
    return Change(text, replace(spec, memory=replace(spec.memory, ram=None)), bigger)


def _yaml(value: bool) -> str:
    return "true" if value else "false"


def _gib(nbytes: int) -> str:
    size = nbytes / GIB
    return f"{size:.0f} GiB" if size >= 100 else f"{size:.3g} GiB"
