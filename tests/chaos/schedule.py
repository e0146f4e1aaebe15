"""What is broken, and when: a pure function of the seed and of the length of an act.

A piece consists of acts. In an act the lanes run beside each other: one has the steps that concern
processes, one those of the disk, one those of the clock and one those of the models. In each lane
one step follows the other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

# Of requests under an ended engine: one that was twice alone in it, and those that wait for a load.
AFTER_DEATHS = ("request_failed", "engine_died")


@dataclass(frozen=True)
class Kind:
    """A kind of steps.

    Args:
        lane: the lane that it belongs to.
        seconds: the least and the most seconds that it lasts.
        weight: how often it is chosen, compared with others of its lane.
        fails: whether requests may get an error meanwhile. It must be a clear one.
        codes: the only codes of these errors; none: any.
        cuts: whether connections may be closed meanwhile.
        ends_engine: whether the engine has ended afterwards, or may have.
        ends_front_end: whether the front end has.
    """

    lane: str
    seconds: tuple[float, float] = (0.0, 0.0)
    weight: int = 1
    fails: bool = False
    codes: tuple[str, ...] = ()
    cuts: bool = False
    ends_engine: bool = False
    ends_front_end: bool = False


def _end(weight: int = 1, seconds: tuple[float, float] = (0.0, 0.0)) -> Kind:
    return Kind("process", seconds, weight, fails=True, codes=AFTER_DEATHS, ends_engine=True)


KINDS: dict[str, Kind] = {
    "engine: SIGKILL": _end(weight=3),
    "engine: SIGABRT": _end(),
    "engine: SIGSEGV": _end(),
    "engine: no more memory": _end(),
    "engine: no more address space": _end(),
    "engine: stopped for good": _end(seconds=(36.0, 40.0)),  # the watchdog waits for 30 s
    "engine: stopped": Kind("process", (1.0, 12.0), weight=2),
    "engine: no descriptors": Kind("process", (3.0, 10.0), fails=True),
    "front end: SIGKILL": Kind("process", weight=2, fails=True, ends_front_end=True),
    "front end: stopped": Kind("process", (1.0, 12.0), weight=2),
    "front end: no descriptors": Kind("process", (3.0, 10.0), weight=2, fails=True, cuts=True),
    "text: SIGKILL": Kind("process", fails=True),
    "text: stopped": Kind("process", (1.0, 8.0)),
    "server: short of memory": Kind(
        "process", (4.0, 10.0), fails=True, ends_engine=True, ends_front_end=True
    ),
    "disk: reads fail": Kind("disk", (2.0, 8.0), weight=2, fails=True),
    "disk: reads are short": Kind("disk", (4.0, 10.0)),
    "disk: files end early": Kind("disk", (2.0, 8.0), fails=True),
    "disk: bits flip": Kind("disk", (4.0, 10.0), weight=2),
    "disk: reads stall": Kind("disk", (4.0, 10.0)),
    "disk: full": Kind("disk", (4.0, 12.0), weight=2, fails=True),
    "disk: writes are short": Kind("disk", (4.0, 10.0)),
    "disk: writes stall": Kind("disk", (4.0, 10.0)),
    "disk: opening fails": Kind("disk", (2.0, 6.0), fails=True),
    "disk: syncing fails": Kind("disk", (4.0, 8.0), fails=True),
    "disk: mapping fails": Kind("disk", (2.0, 6.0), fails=True),
    "cache: a bit is flipped": Kind("disk", weight=2),
    "cache: a file is cut": Kind("disk"),
    "cache: a file is removed": Kind("disk"),
    "cache: an entry is removed": Kind("disk"),
    "clock: jump": Kind("clock", (2.0, 15.0)),
    "models: another one": Kind("models", (10.0, 20.0), weight=3),
    "models: load": Kind("models"),
    "models: unload": Kind("models", fails=True, codes=("engine_closed",)),
}
LANES = ("process", "disk", "clock", "models")
GAPS = {"process": (4.0, 12.0), "disk": (1.0, 5.0), "clock": (5.0, 20.0), "models": (8.0, 20.0)}
FIRST_S = 2.0  # before the first step of an act
FRONT_END_SHARE = 0.5  # of an act: in the rest of it, the front end lives on


@dataclass(frozen=True)
class Step:
    """Something that is broken for a while.

    Args:
        at: seconds from the beginning of the act.
        seed: decides everything else about it.
    """

    number: int
    at: float
    seconds: float
    kind: str
    seed: int


@dataclass(frozen=True)
class Act:
    """A time in which clients and faults are at work, before the server rests.

    Args:
        is_calm: whether engine and front end live on, so that their leaks can be measured.
        unloads: whether the model is unloaded for lack of requests in the rest after it.
    """

    number: int
    seconds: float
    is_calm: bool
    unloads: bool
    model: str  # that requests get which name none
    steps: tuple[Step, ...]


def make_acts(
    seed: int, seconds: float, models: Sequence[str], kinds: Sequence[str] = tuple(KINDS)
) -> list[Act]:
    """Return four acts that take `seconds` together: a rough one, two calm ones and a rough one.

    The model that the server loads at its start stays the same, as leaks are measured.

    Args:
        kinds: the kinds of steps that may be chosen.
    """
    model = Random(seed).choice(models)
    acts = []
    for number, is_calm in enumerate((False, True, True, False)):
        chosen = [kind for kind in kinds if not is_calm or _is_harmless(kind)]
        steps = make_steps(f"{seed} {number}", seconds / 4, chosen)
        acts.append(Act(number, seconds / 4, is_calm, not is_calm, model, tuple(steps)))
    return acts


def make_steps(seed: str, seconds: float, kinds: Sequence[str]) -> list[Step]:
    """Return the steps of an act, in their order."""
    found = [step for lane in LANES for step in _lane(f"{seed} {lane}", lane, seconds, kinds)]
    found.sort()
    return [Step(number, *step) for number, step in enumerate(found)]


def _lane(
    seed: str, lane: str, seconds: float, kinds: Sequence[str]
) -> Iterator[tuple[float, float, str, int]]:
    rng = Random(seed)
    own = [kind for kind in kinds if KINDS[kind].lane == lane]
    now = FIRST_S + rng.uniform(0.0, GAPS[lane][0])
    while own:
        may = [kind for kind in own if _is_in_time(kind, now, seconds)]
        if not may:
            return
        kind = rng.choices(may, [KINDS[kind].weight for kind in may])[0]
        least, most = KINDS[kind].seconds
        lasts = min(rng.uniform(least, most), seconds - now)
        yield now, lasts, kind, rng.randrange(1 << 30)
        now += lasts + rng.uniform(*GAPS[lane])


def _is_in_time(kind: str, now: float, seconds: float) -> bool:
    """Return whether a step may begin now, so that the act can end in time."""
    share = FRONT_END_SHARE if KINDS[kind].ends_front_end else 1.0
    return now + KINDS[kind].seconds[0] < share * seconds


def _is_harmless(kind: str) -> bool:
    """Return whether engine and front end live on, with the same model."""
    own = KINDS[kind]
    if own.lane == "models":
        return kind == "models: load"
    return not own.ends_engine and not own.ends_front_end
