"""The body and the answer of POST /v1/plan, which plans a model for a machine."""

from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from server.schemas.fields import Int, OwnBody

MIN_SIZE, MAX_SIZE = 2**20, 2**50  # bytes: 1 MiB, 1 PiB
MAX_USERS = 1024
MIN_GBPS, MAX_GBPS = 1e-3, 1e6  # 1 MB/s, 1 PB/s

# Bytes as a number, or as text such as "8GiB".
Size = Annotated[Int, Field(ge=MIN_SIZE, le=MAX_SIZE)] | Annotated[str, Field(max_length=40)]

Speed = Annotated[float, Field(ge=MIN_GBPS, le=MAX_GBPS)]  # 1e9 bytes a second


class PlanRequest(OwnBody):
    """A model of the registry, and a machine. What is not given is that of the server's machine."""

    model: str
    device_memory: Size | None = None  # of a CUDA card
    ram: Size | None = None
    link_gbps: Speed | None = None
    disk_gbps: Speed | None = None
    device_gbps: Speed | None = None  # of the card's memory, with `device_memory` only
    users: Annotated[Int, Field(ge=1, le=MAX_USERS)] | None = None  # of the second forecast


class PlanGain(TypedDict):
    """A single change that would make the model faster."""

    change: str
    factor: float  # times the tokens a second of one user


class PlanAssumption(TypedDict):
    """A figure that the forecast depends on, and where it comes from."""

    what: str
    figure: str
    source: str


class PlanMachine(TypedDict):
    """The machine that was planned for: measured, assumed or as asked."""

    device_memory: int  # bytes of the card, or of the RAM that is used as the device's
    ram: int
    link_gbps: float
    disk_gbps: float
    device_gbps: float | None  # null: passes were measured instead


class Plan(TypedDict):
    """The output of `understudy plan --json`."""

    model_id: str
    model_type: str
    device: str
    machine: PlanMachine
    has_weights: bool  # whether the checkpoint was there, not its config.json alone
    gains: list[PlanGain]  # the best first
    assumptions: list[PlanAssumption]
    draft: str
    packed: bool
    coded: bool  # whether weights travel in a lossless code
    plan: dict[str, Any]  # bytes of each part of the memory, and the number of units in each tier
    unit_bytes: list[int]
    link_bytes: list[int]  # of each unit as it travels
    forecast: dict[str, Any]  # seconds, tokens a pass and tokens a second
    file: str  # a model file, as YAML, with the drafting method and the limits that were asked
