"""What a plan would run at: tokens a second, and the time to the first token.

Speed of one sequence = A / (draft time + max(W / B, compute) + host time): A tokens a pass, W
bytes that travel, B the link's bandwidth. Times are measured or assumed, and so is how often the
target agrees with a draft: forecasts are for choosing, and say what they rest on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from engine.drafting.method import MethodFacts
from engine.planning.assumed import Machine
from engine.planning.footprint import Demand
from engine.planning.plan import Plan
from engine.spec import TILE

PROMPT = 1000  # tokens, of the prompt whose first token is forecast
USERS = 8  # of the second forecast
HOST_SECONDS = 0.004  # of a pass, outside layers, norm and head
ROWS_PER_LEVEL = 2  # of a tree, for each level it is deep


@dataclass(frozen=True)
class Forecast:
    """What a plan would run at."""

    tokens_per_second: float  # of one user
    users: int  # of the next figure: as many as were asked about, or run at once
    tokens_per_second_all: float  # of all of them together
    first_token_seconds: float  # after a prompt of PROMPT tokens, or of the context if that is less
    tokens_per_pass: float  # of one user
    depth: int  # of the tree that pays best for one user
    link_seconds: float  # in which a pass's weights travel
    pass_seconds: float  # with one user's tree: compute or link
    draft_seconds: float  # before that pass
    draft_step_seconds: float  # one step for one user


@dataclass(frozen=True)
class _Cycle:
    """One draft and one pass."""

    depth: int
    emitted: float  # tokens of one user
    draft: float
    walk: float

    def rate(self, users: int) -> float:
        return users * self.emitted / (self.draft + self.walk + HOST_SECONDS)


def make_forecast(
    plan: Plan, demand: Demand, draft: MethodFacts, machine: Machine, users: int = USERS
) -> Forecast:
    """Return what `plan` would run at with this draft, for one user and for `users`.

    All times of the machine are known: see `assumed.complete`.
    """
    link = link_seconds(plan, demand, machine)
    users = min(users, plan.max_sequences)
    alone = max(_cycles(draft, machine, link, 1), key=lambda cycle: cycle.rate(1))
    shared = max(_cycles(draft, machine, link, users), key=lambda cycle: cycle.rate(users))
    prompt = min(PROMPT, demand.context_length)
    full, rest = divmod(prompt, plan.max_rows)
    passes = [plan.max_rows] * full + [rest] * (rest > 0)
    return Forecast(
        tokens_per_second=alone.rate(1),
        users=users,
        tokens_per_second_all=shared.rate(users),
        first_token_seconds=sum(max(link, _compute(machine, r)) + HOST_SECONDS for r in passes),
        tokens_per_pass=alone.emitted,
        depth=alone.depth,
        link_seconds=link,
        pass_seconds=alone.walk,
        draft_seconds=alone.draft,
        draft_step_seconds=_step(draft, machine, 1),
    )


def link_seconds(plan: Plan, demand: Demand, machine: Machine) -> float:
    """In which the weights of a pass travel. What is on disk is read ahead only as far as the ring
    reaches: the two ways are counted one after the other."""
    units = list(zip(plan.tiers, demand.unit_bytes, strict=True))
    ram = sum(nbytes for tier, nbytes in units if tier == "ram")
    disk = sum(nbytes for tier, nbytes in units if tier == "disk")
    return ram / (machine.ram_gbps * 1e9) + disk / (machine.disk_gbps * 1e9)


def _cycles(draft: MethodFacts, machine: Machine, link: float, users: int) -> Iterator[_Cycle]:
    """A cycle for each depth of the trees."""
    step = _step(draft, machine, users)
    for depth in range(draft.bounds.depth + 1):
        rows = min(1 + ROWS_PER_LEVEL * depth, draft.bounds.budget)
        walk = max(link, _compute(machine, users * rows))
        emitted = sum(draft.agreement**level for level in range(depth + 1))  # and the bonus token
        yield _Cycle(depth, emitted, depth * step, walk)


def _step(draft: MethodFacts, machine: Machine, users: int) -> float:
    """Seconds of one draft step for all of them."""
    if not draft.costs_draft_time:
        return 0.0
    return machine.draft.expect(users * draft.bounds.width) or 0.0


def _compute(machine: Machine, rows: int) -> float:
    """Seconds of a pass's layers; rows are computed in whole tiles."""
    return machine.passes.expect(ceil(rows / TILE) * TILE) or 0.0
