"""The functions by which the front end learns what happens in an engine."""

from collections.abc import Callable
from dataclasses import dataclass

from engine.kv_disk_stats import KVDiskStats
from engine.messages import Audited, LoadProgress, PassStats, WeightsChecked
from engine.moves import Replanned


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True)
class EngineCallbacks:
    """The functions that an engine's client calls in its event loop when something happens."""

    progress: Callable[[LoadProgress], None] = _ignore  # at each step of a load
    on_pass: Callable[[PassStats], None] = _ignore
    on_audit: Callable[[Audited], None] = _ignore
    on_check: Callable[[WeightsChecked], None] = _ignore
    on_replan: Callable[[Replanned], None] = _ignore  # after units of weights have moved
    on_kv_disk: Callable[[KVDiskStats], None] = _ignore
    on_restart: Callable[[], None] = _ignore
    on_resume: Callable[[], None] = _ignore  # for each stream that goes on after a restart


NO_CALLBACKS = EngineCallbacks()
