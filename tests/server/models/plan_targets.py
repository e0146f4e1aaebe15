"""Functions that compute plans in a planner's process in tests."""

import json
import os
import time
from dataclasses import asdict
from typing import Any

from server.config.registry import ModelEntry
from server.models.plan_worker import Machine, Planned
from server.schemas.plans import Plan

GATE = "UNDERSTUDY_TEST_GATE"  # names a file
TOLD = "UNDERSTUDY_TEST_TOLD"  # names a pipe


def echo(entry: ModelEntry, machine: Machine) -> Planned:
    """Return what was asked, and which process answers, instead of a plan."""
    return Planned(json.dumps({"model_id": entry.id, "process": os.getpid(), **asdict(machine)}))


def gated(entry: ModelEntry, machine: Machine) -> Planned:
    """Do as `echo` once a file is there."""
    while not os.path.exists(os.environ[GATE]):
        time.sleep(0.001)
    return echo(entry, machine)


def small_plan(entry: ModelEntry, machine: Machine) -> Planned:
    """Return a plan that matches the schema, with figures that follow from the machine's."""
    device = machine.device_memory or 8 << 30
    ram = machine.ram or 32 << 30
    link = machine.link_gbps or 25.0
    plan: Plan = {
        "model_id": entry.id,
        "model_type": "fake",
        "device": "cuda",
        "machine": {
            "device_memory": device,
            "ram": ram,
            "link_gbps": link,
            "disk_gbps": machine.disk_gbps or 3.0,
            "device_gbps": machine.device_gbps or 500.0,
        },
        "has_weights": False,
        "gains": [{"change": "memory.device: 1 GiB -> 2 GiB", "factor": 1.5}],
        "assumptions": [{"what": "disk", "figure": "3 GB/s", "source": "assumed"}],
        "draft": "subspec",
        "packed": False,
        "coded": False,
        "plan": _places(device, ram),
        "unit_bytes": [device // 32] * 32,
        "link_bytes": [device // 32] * 32,
        "forecast": {
            "tokens_per_second": link * 0.5,
            "users": min(machine.users or 8, 8),
            "users_asked": machine.users or 8,
            "tokens_per_second_all": link * 2.0,
            "first_token_seconds": 1.5,
            "tokens_per_pass": 6.5,
            "pass_seconds": 13 / link,
            "link_seconds": 12 / link,
            "draft_seconds": 0.1,
        },
        "file": f"target: {{source: {entry.id}}}\ndraft: {{method: subspec}}\n",
    }
    return Planned(json.dumps(plan))


def _places(device: int, ram: int) -> dict[str, Any]:
    return {
        "tiers": {"resident": 8, "ram": 16, "disk": 8},
        "ring_slots": 3,
        "num_pages": 256,
        "max_sequences": 8,
        "max_rows": 2048,
        "resident_bytes": device // 4,
        "ring_bytes": device // 8,
        "kv_bytes": device // 8,
        "draft_bytes": device // 4,
        "activation_bytes": device // 16,
        "other_bytes": 0,
        "state_bytes": 0,
        "ram_unit_bytes": ram // 2,
        "disk_unit_bytes": 3 << 30,
        "staging_bytes": 0,
        "host_kv_bytes": 0,
        "embedding_bytes": 1 << 28,
        "making_bytes": 0,
        "memory": {
            "device": device - (850 << 20),
            "ram": ram,
            "is_cuda": True,
            "device_runtime": 600 << 20,
            "host_runtime": 900 << 20,
            "code": 0,
        },
        "device_bytes": device * 13 // 16 + (600 << 20),
        "host_bytes": ram // 2 + (900 << 20),
    }


def too_large(entry: ModelEntry, machine: Machine) -> Planned:
    return Planned(error="'ram': 2 GiB are missing", fits=False, param="ram")


def unknown_family(entry: ModelEntry, machine: Machine) -> Planned:
    return Planned(error="config.json: no such family")


def die(entry: ModelEntry, machine: Machine) -> Planned:
    """End the process."""
    os._exit(1)


def hang(entry: ModelEntry, machine: Machine) -> Planned:
    time.sleep(600)
    return Planned()


def tell_and_hang(entry: ModelEntry, machine: Machine) -> Planned:
    """Write a line into a pipe, keep the pipe open, and do not end."""
    with open(os.environ[TOLD], "w") as pipe:
        print("a plan is computed", file=pipe, flush=True)
        time.sleep(600)
    return Planned()
