"""Limits of memory for engines in tests: units move as if the machine had just so much."""

from engine.moves import LimitMemory
from engine.planning.replan import Room
from engine.planning.room import Available
from engine.runtime.engine import Engine

PLENTY = 1 << 40


def with_plenty(engine: Engine) -> Engine:
    """Let the engine believe that the machine has more than enough memory, and return it."""
    engine.residence._read = lambda plan: Available(None, PLENTY)
    return engine


def limit(engine: Engine, device: float = 1.0, ram: float = 1.0) -> bool:
    """Limit the memory of an engine, move units, and return whether any have moved.

    Args:
        device, ram: from 0, for no unit that may leave, to 1, for all as they were loaded.
    """
    replanner = engine.residence._loaded.replanner
    loaded, least = replanner.loaded, replanner.fit(Room(0, 0, 0))
    sizes = [(p.device_bytes, p.host_bytes - p.memory.host_runtime) for p in (least, loaded)]
    limits = [
        round(low + share * (high - low))
        for share, low, high in zip((device, ram), *sizes, strict=True)
    ]
    engine.residence.limit(LimitMemory(*limits))
    engine.residence.run()
    return engine.residence.take_report() is not None
