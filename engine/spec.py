"""What to load and within which limits: the engine's whole configuration, frozen.

`None` stands for "auto": the plan decides. Sizes are bytes. The server validates the user's YAML
and builds a `ModelSpec`; the engine trusts it.
"""

from dataclasses import dataclass, field
from typing import Literal

Tier = Literal["resident", "ram", "disk"]

Numerics = Literal["strict", "fast"]

# Rows that run through a product at a time: through every layer under strict numerics, and always
# through the head. Prompts beside decoding sequences run at least this many rows a pass.
TILE = 64


@dataclass(frozen=True)
class TargetSpec:
    """The model whose tokens are emitted."""

    source: str  # hub id or local folder
    revision: str | None = None
    dtype: Literal["bfloat16", "float32"] | None = None  # None: as config.json says
    quantize: Literal["nf4"] | None = None


@dataclass(frozen=True)
class DraftSpec:
    """Who proposes tokens, and the upper bounds of its tree."""

    method: str | None = None  # a file of engine/drafting/methods; None: the one forecast fastest
    source: str | None = None  # hub id or folder of a draft model, where the method takes one
    revision: str | None = None
    bits: Literal[4] = 4  # precision of low-bit copies of the target's layers
    group: Literal[32, 64] = 32  # their weights that share one scale
    depth: int | None = None  # levels below the root
    width: int | None = None  # rows of one draft step
    branch: int | None = None  # children of one row
    budget: int | None = None  # rows of the tree
    tuned: bool = True  # draft only what is worth its time; False: always up to the bounds
    ahead: bool = True  # go on drafting while weights travel


@dataclass(frozen=True)
class MemorySpec:
    """Limits in bytes. On `device: cpu`, `device` bounds ring, resident units, KV and draft."""

    device: int | None = None
    ram: int | None = None
    cache: int | None = None


@dataclass(frozen=True)
class StreamSpec:
    """Where the target's units wait and how they travel."""

    tier: Tier | None = None
    resident: int | None = None  # how many layers stay on the device
    slots: int | None = None  # ring slots
    simulate_gbps: float | None = None  # device cpu: pretend a link of this bandwidth
    recheck_hours: float = 24.0  # in which each file of the disk tier is compared; 0: never


@dataclass(frozen=True)
class ModelSpec:
    """One model, its draft, and the limits it is served within."""

    id: str
    target: TargetSpec
    draft: DraftSpec = field(default_factory=DraftSpec)
    device: str | None = None  # "cpu", "cuda:0"
    memory: MemorySpec = field(default_factory=MemorySpec)
    stream: StreamSpec = field(default_factory=StreamSpec)
    numerics: Numerics | None = None  # None: strict
    context_length: int | None = None  # None: the model's own
    max_sequences: int | None = None
    prefix_cache: bool = True
    audit: float = 0.0  # share of finished requests that are checked in idle time
