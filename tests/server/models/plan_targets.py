"""Functions that a planner's processes run in tests."""

import json
import time
from multiprocessing.connection import Connection

from engine.spec import ModelSpec
from server.models.plan_worker import Machine, Planned
from server.schemas.plans import Plan


def echo(connection: Connection, spec: ModelSpec, machine: Machine) -> None:
    """Send what was asked, instead of a plan."""
    figures = [machine.device_memory, machine.ram, machine.link_gbps, machine.users]
    connection.send(Planned(json.dumps({"model_id": spec.id, "figures": figures})))


def small_plan(connection: Connection, spec: ModelSpec, machine: Machine) -> None:
    """Send an answer that matches the schema."""
    plan: Plan = {
        "model_id": spec.id,
        "model_type": "fake",
        "device": "cpu",
        "has_weights": False,
        "gains": [{"change": "memory.device: 1 GiB -> 2 GiB", "factor": 1.5}],
        "assumptions": [{"what": "disk", "figure": "3 GB/s", "source": "assumed"}],
        "draft": "none",
        "packed": False,
        "coded": False,
        "plan": {},
        "unit_bytes": [1],
        "link_bytes": [1],
        "forecast": {},
    }
    connection.send(Planned(json.dumps(plan)))


def too_large(connection: Connection, spec: ModelSpec, machine: Machine) -> None:
    connection.send(Planned(error="2 GiB are missing", fits=False))


def unknown_family(connection: Connection, spec: ModelSpec, machine: Machine) -> None:
    connection.send(Planned(error="config.json: no such family"))


def die(connection: Connection, spec: ModelSpec, machine: Machine) -> None:
    """Send nothing."""


def hang(connection: Connection, spec: ModelSpec, machine: Machine) -> None:
    time.sleep(600)
