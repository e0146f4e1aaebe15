"""The computation of plans, and the process in which the server runs it.

Modules of the engine are imported on first use, because they load torch.
"""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from threading import Thread
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError
from server.config.registry import ModelEntry, planned_yaml

if TYPE_CHECKING:
    from engine.planning.preview import Preview, WhatIf
    from engine.planning.refusal import DoesNotFit

# The libraries read these when they are imported. The user's own values win.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
NICENESS = 10  # running requests go first, but on a busy CPU a plan still gets a tenth of a core


@dataclass(frozen=True)
class Machine:
    """Figures that replace what is measured on this machine; None: the measured figure is used."""

    device_memory: int | None = None  # bytes of a CUDA card
    ram: int | None = None  # bytes
    link_gbps: float | None = None
    disk_gbps: float | None = None
    device_gbps: float | None = None  # of the card's memory
    users: int | None = None  # of the second forecast


@dataclass(frozen=True)
class Planned:
    """The result of a computation: the plan as JSON, or the reason why there is none."""

    json: str = ""
    error: str = ""
    fits: bool = True  # whether the error is another one than too little memory
    param: str = "model"  # the field of the request that the error is about


Compute = Callable[[ModelEntry, Machine], Planned]


def main(connection: Connection, compute: Compute) -> None:
    """Run the spawned process: compute plans until the other end of the pipe is closed."""
    Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the parent reacts
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    with suppress(EOFError):
        while True:
            entry, machine = connection.recv()
            connection.send(compute(entry, machine))


def _end_with_parent() -> None:
    """Wait for the end of the front end, and then end this process in the middle of a plan."""
    parent = parent_process()
    assert parent is not None, "this process was spawned"
    parent.join()
    os._exit(1)


def compute(entry: ModelEntry, machine: Machine) -> Planned:
    """Return the plan of a model for a machine."""
    from engine.planning.preview import WhatIf, preview
    from engine.planning.refusal import DoesNotFit

    given = {name: figure for name, figure in asdict(machine).items() if figure is not None}
    what_if = WhatIf(**given)
    try:
        return Planned(as_json(preview(entry.spec, what_if), entry, what_if))
    except DoesNotFit as error:
        text, field = refusal_text(error, given, lambda name: f"'{name}'")
        return Planned(error=text, fits=False, param=field)
    except ModelError as error:
        return Planned(error=str(error))


def refusal_text(
    error: "DoesNotFit", given: Collection[str], shown: Callable[[str], str]
) -> tuple[str, str]:
    """Return why a model does not fit, and the field of `Machine` that could change it.

    The field is "model" if the limit is one of the model's file.

    Args:
        given: the fields of `Machine` that were asked about.
        shown: returns how a field is called.
    """
    limit = error.limit
    if limit.is_set:
        return f"{limit.key} in the model's file: {error.problem}", "model"
    is_device = limit.key == "memory.device" and not limit.is_ram
    field = "device_memory" if is_device else "ram"
    note = ""
    if field not in given:
        note = " (not given: as this machine has it)"
    elif limit.key == "memory.device":
        keeper = "driver" if is_device else "page cache"
        note = f" (of which the {keeper} keeps some)"
    return f"{shown(field)}{note}: {error.problem}", field


def as_json(found: "Preview", entry: ModelEntry, what_if: "WhatIf") -> str:
    """Return the whole preview as JSON, in bytes, seconds and tokens per second."""
    values: dict[str, Any] = asdict(found)
    scheme = values.pop("scheme")
    plan = scheme["plan"]
    names = {"has_own_memory": "is_cuda"}  # the published name of the field
    plan["memory"] = {names.get(key, key): value for key, value in plan["memory"].items()}
    plan["device_bytes"] = found.scheme.plan.device_bytes
    plan["host_bytes"] = found.scheme.plan.host_bytes
    plan["tiers"] = dict(Counter(found.scheme.plan.tiers))
    unit_bytes, link_bytes = found.scheme.demand.unit_bytes, found.scheme.demand.link_bytes
    placed = zip(link_bytes, found.scheme.plan.tiers, strict=True)
    plan["disk_unit_bytes"] = sum(nbytes for nbytes, tier in placed if tier == "disk")
    return json.dumps(
        {
            **values,
            "draft": scheme["method"],
            "packed": scheme["packed"],
            "coded": scheme["coded"],
            "plan": plan,
            "unit_bytes": list(unit_bytes),
            "link_bytes": list(link_bytes),
            "forecast": scheme["forecast"],
            "file": planned_yaml(entry, scheme["method"], what_if.device_memory, what_if.ram),
        },
        indent=2,
    )
