"""The forecast of a plan: tokens a second, and the time to the first token.

The speed of one sequence is A / (draft time + max(W / B, compute time) + host time), where A is the
tokens a pass emits, W the bytes that travel and B the link's bandwidth. The compute time includes
that of expanding weights that travel packed, and that of decoding those that travel coded.
A draft model goes on while a pass waits for weights, and what it drafts so is of use if the target
chooses all of the tree's levels and the token after them, so only a part of that time is saved.
Where the ring holds less than a layer ahead of the one that computes, it also includes the part of
W / B that computing cannot hide. All experts of a mixture travel in each pass, but only those that
rows choose are computed, so the compute time grows with the rows. Times are measured or assumed,
and how often the target agrees with a draft is assumed. A forecast is made to compare plans;
`understudy plan` lists its assumptions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, inf

from engine.drafting.method import MethodFacts
from engine.planning.assumed import Machine
from engine.planning.footprint import Demand
from engine.planning.plan import Plan
from engine.spec import TILE, Tier

PROMPT = 1000  # tokens of the prompt for which the time to the first token is forecast
ANSWER = 500  # tokens of an answer to it
USERS = 8  # of the forecast for several users
HOST_SECONDS = 0.004  # of a pass, outside layers, norm and head
ROWS_PER_LEVEL = 2  # of a tree, for each level of its depth


@dataclass(frozen=True)
class Forecast:
    """The speed to expect of a plan."""

    tokens_per_second: float  # of one user
    users: int  # of the next figure: as many as asked about, but no more than run at once
    users_asked: int  # those beyond `users` wait for their turn
    tokens_per_second_all: float  # of all these users together
    first_token_seconds: float  # after a prompt of PROMPT tokens, or of the context if that is less
    tokens_per_pass: float  # of one user
    depth: int  # of the tree that is fastest for one user
    link_seconds: float  # in which a pass's weights travel
    pass_seconds: float  # with one user's tree: the longer of compute and link
    draft_seconds: float  # before that pass, without what was drafted during the last one
    draft_step_seconds: float  # one step for one user
    expand_seconds: float  # of a pass, in which packed weights are expanded
    decode_seconds: float = 0.0  # of a pass, in which coded weights are decoded

    @property
    def request_seconds(self) -> float:
        """Return the seconds from such a prompt to the end of an answer of ANSWER tokens."""
        return self.first_token_seconds + ANSWER / self.tokens_per_second


@dataclass(frozen=True)
class _Cycle:
    """One cycle of speculative decoding: drafting a tree, and the pass that verifies it."""

    depth: int
    emitted: float  # tokens of one user
    draft_seconds: float
    pass_seconds: float

    def rate(self, users: int) -> float:
        """Return the tokens a second of all users together."""
        return users * self.emitted / (self.draft_seconds + self.pass_seconds + HOST_SECONDS)


def make_forecast(
    plan: Plan, demand: Demand, draft: MethodFacts, machine: Machine, users: int = USERS
) -> Forecast:
    """Return the speed to expect of `plan` with this draft, for one user and for `users`.

    Args:
        machine: with all times filled in (`assumed.complete_times`).
    """
    link, expand = link_seconds(plan, demand, machine), expand_seconds(demand, machine)
    decode = decode_seconds(plan, demand, machine)
    busy = _Busy(
        link,
        expand + decode,
        exposed_seconds(plan, demand, machine),
        demand.tile,
        is_mixture=demand.experts is not None,
    )
    users, users_asked = min(users, plan.max_sequences), users
    alone = max(_cycles(draft, machine, busy, 1), key=lambda cycle: cycle.rate(1))
    shared = max(_cycles(draft, machine, busy, users), key=lambda cycle: cycle.rate(users))
    prompt = min(PROMPT, demand.context_length)
    full, rest = divmod(prompt, plan.max_rows)
    passes = [plan.max_rows] * full + [rest] * (rest > 0)
    return Forecast(
        tokens_per_second=alone.rate(1),
        users=users,
        users_asked=users_asked,
        tokens_per_second_all=shared.rate(users),
        first_token_seconds=sum(busy.seconds(machine, r) + HOST_SECONDS for r in passes),
        tokens_per_pass=alone.emitted,
        depth=alone.depth,
        link_seconds=link,
        pass_seconds=alone.pass_seconds,
        draft_seconds=alone.draft_seconds,
        draft_step_seconds=_step(draft, machine, 1),
        expand_seconds=expand,
        decode_seconds=decode,
    )


def link_seconds(plan: Plan, demand: Demand, machine: Machine) -> float:
    """Return the seconds that the transfer of the weights for one pass takes.

    Units on disk are read ahead only as far as the ring reaches, so the times from RAM and from
    disk are added up.
    """
    units = zip(plan.tiers, demand.link_bytes, strict=True)
    return sum(_transfer_seconds(tier, nbytes, machine) for tier, nbytes in units)


def exposed_seconds(plan: Plan, demand: Demand, machine: Machine) -> float:
    """Return the seconds of transfers that cannot begin before the layer before has been computed.

    They are those of each streamed layer's parts for which the ring has no slot ahead.
    """
    seconds = 0.0
    for layer in demand.layers:
        away = [unit for unit in layer.parts if plan.tiers[unit] != "resident"]
        for unit in away[plan.slots - 1 :]:
            seconds += _transfer_seconds(plan.tiers[unit], demand.link_bytes[unit], machine)
    return seconds


def _transfer_seconds(tier: Tier, nbytes: int, machine: Machine) -> float:
    """Return the seconds in which a unit of this tier travels."""
    gbps = {"resident": inf, "ram": machine.ram_gbps, "disk": machine.disk_gbps}[tier]
    return nbytes / (gbps * 1e9)


def expand_seconds(demand: Demand, machine: Machine) -> float:
    """Return the seconds that expanding packed weights takes in one pass."""
    return sum(nbytes * machine.expanding[name] for name, nbytes in demand.expansions.items())


def decode_seconds(plan: Plan, demand: Demand, machine: Machine) -> float:
    """Return the seconds that decoding the coded weights of one pass takes."""
    if not demand.coded_bytes:
        return 0.0
    units = zip(plan.tiers, demand.unit_bytes, strict=True)
    streamed = sum(nbytes for tier, nbytes in units if tier != "resident")
    return streamed / (machine.decoding_gbps[demand.is_self_drafted] * 1e9)


@dataclass(frozen=True)
class _Busy:
    """The seconds of a pass that do not depend on its rows."""

    link: float
    expand: float  # in which weights are expanded or decoded
    exposed: float  # of the link, while no other layer computes
    tile: int  # rows that run through a layer at a time
    is_mixture: bool = False  # whether rows within a tile multiply with more experts

    def seconds(self, machine: Machine, rows: int) -> float:
        """Return the seconds of a pass."""
        return max(self.link, self.computing(machine, rows))

    def computing(self, machine: Machine, rows: int) -> float:
        """Return the seconds of a pass in which it does not wait; rows are computed in tiles."""
        padded = rows if self.is_mixture else ceil(rows / TILE) * TILE
        compute = machine.passes.expect(padded) or 0.0
        # A layer's first tile runs while the rest of the layer arrives.
        first = machine.passes.expect(min(padded, self.tile)) or 0.0
        return self.expand + compute + max(self.exposed - first, 0.0)


def _cycles(draft: MethodFacts, machine: Machine, busy: _Busy, users: int) -> Iterator[_Cycle]:
    """Yield the cycle of each depth that a tree can have, 0 included if drafts are tuned."""
    step = _step(draft, machine, users)
    for depth in range(0 if draft.is_tuned else draft.bounds.depth, draft.bounds.depth + 1):
        rows = min(1 + ROWS_PER_LEVEL * depth, draft.bounds.budget)
        pass_seconds = busy.seconds(machine, users * rows)
        emitted = sum(draft.agreement**level for level in range(depth + 1))  # 0: the bonus token
        drafting, hidden = depth * step, 0.0
        if draft.drafts_ahead:
            waiting = pass_seconds - busy.computing(machine, users * rows)
            hidden = draft.agreement ** (depth + 1) * min(waiting, drafting)
        yield _Cycle(depth, emitted, drafting - hidden, pass_seconds)


def _step(draft: MethodFacts, machine: Machine, users: int) -> float:
    """Return the seconds of one draft step for all users; 0 for a look-up."""
    if not draft.has_draft_steps:
        return 0.0
    return machine.draft.expect(users * draft.bounds.width) or 0.0
