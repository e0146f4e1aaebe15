"""The configuration of the engine: which model to load and within which limits.

`None` means "auto": the plan decides. Sizes are in bytes. The server validates the user's YAML and
builds a `ModelSpec`, which the engine trusts.
"""

from dataclasses import dataclass, field
from typing import Literal

Tier = Literal["resident", "ram", "disk"]

Numerics = Literal["strict", "fast"]

# The rows of one matrix product: in every layer under strict numerics, and always in the head.
# Prompts beside decoding sequences run at least this many rows in a pass.
TILE = 64


@dataclass(frozen=True)
class RopeSpec:
    """How far the rotary positions of a model are scaled, so that its context becomes longer."""

    factor: float = 1.0  # by YaRN; 1: as in config.json
    original: int | None = None  # tokens of context before; None: max_position_embeddings


@dataclass(frozen=True)
class TargetSpec:
    """The model whose tokens are emitted."""

    source: str  # hub id or local folder
    revision: str | None = None
    dtype: Literal["bfloat16", "float16", "float32"] | None = None  # None: that of the checkpoint
    quantize: Literal["nf4"] | None = None
    rope: RopeSpec = field(default_factory=RopeSpec)


@dataclass(frozen=True)
class DraftSpec:
    """The method that proposes tokens, and the upper bounds of its trees."""

    method: str | None = None  # a file of engine/drafting/methods; None: the fastest by forecast
    source: str | None = None  # hub id or folder of a draft model, for methods that use one
    revision: str | None = None
    bits: Literal[4] = 4  # precision of low-bit copies of the target's layers
    group: Literal[32, 64] = 32  # number of their weights that share one scale
    calibrate: bool = True  # fit their scales to the inputs of their layers, at the first start
    depth: int | None = None  # levels below the root
    width: int | None = None  # rows of one draft step
    branch: int | None = None  # children of one row
    budget: int | None = None  # rows of the tree
    tuned: bool = True  # draft only what is worth its time; False: always up to the bounds
    ahead: bool = True  # continue drafting while weights travel


@dataclass(frozen=True)
class MemorySpec:
    """Limits of memory in bytes. On a CPU, `device` limits ring, resident units, KV and draft."""

    device: int | None = None
    ram: int | None = None
    cache: int | None = None
    kv_disk: int = 0  # of the disk, for idle KV of all models; 0: none is written
    replan: bool = True  # whether units move while it is loaded, as memory gets short or free


@dataclass(frozen=True)
class StreamSpec:
    """The place where the target's units are kept, and how they are streamed to the device."""

    tier: Tier | None = None
    resident: int | None = None  # number of layers that stay on the device
    slots: int | None = None  # number of slots of the ring
    packed: bool | None = None  # whether weights that are stored packed travel so; None: the faster
    coding: Literal["auto", "none"] = "auto"  # whether weights travel in a lossless code
    simulate_gbps: float | None = None  # on a CPU: bandwidth of a simulated link
    recheck_hours: float = 24.0  # interval at which each file of the disk tier is checked; 0: never


@dataclass(frozen=True)
class ModelSpec:
    """A model, its draft, and the limits within which it is served."""

    id: str
    target: TargetSpec
    draft: DraftSpec = field(default_factory=DraftSpec)
    device: str | None = None  # "cpu", "cuda:0"
    memory: MemorySpec = field(default_factory=MemorySpec)
    stream: StreamSpec = field(default_factory=StreamSpec)
    numerics: Numerics | None = None  # None: strict
    context_length: int | None = None  # None: the model's own
    max_sequences: int | None = None
    kv_pages: int | None = None  # those of the process whose answers go on; None: what fits
    prefix_cache: bool = True
    audit: float = 0.0  # share of finished answers that are audited in idle time
