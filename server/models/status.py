"""The state of the models and their engine at one moment. Reading it never loads a model."""

from engine.messages import ModelInfo
from server.config.registry import ModelEntry, Registry
from server.metrics.passes import PassHistory
from server.models.lending import Models
from server.models.loaded_model import LoadedModel
from server.schemas.status import (
    EngineStatus,
    ModelState,
    ModelStatus,
    RecurrentStates,
    ServerStatus,
)
from server.version import version


def read_status(
    registry: Registry, models: Models, *, uptime: float, is_stopping: bool
) -> ServerStatus:
    """Return the state of a server, which `GET /v1/status` answers and `/metrics` shows in part.

    Args:
        uptime: seconds since the start of the server.
    """
    ready = models.ready
    last = None if ready is None else ready.statistics.history.last
    peers, together = models.peer_statuses()
    return {
        "object": "status",
        "version": version(if_not_installed="0"),
        "state": "stopping" if is_stopping else "running",
        "uptime_seconds": round(uptime, 3),
        "models": [
            _model_status(entry, models, is_default=entry is registry.default)
            for entry in registry.entries.values()
        ],
        "queue": {
            "waiting_for_model": models.num_waiting,
            "waiting_for_pass": 0 if last is None else last.waiting,
            "in_engine": 0 if ready is None else ready.engine.num_outstanding,
        },
        "engine": None if ready is None else _engine_status(ready),
        "peers": peers,
        "together": together,
    }


def _model_status(entry: ModelEntry, models: Models, *, is_default: bool) -> ModelStatus:
    state = _state(entry, models)
    status: ModelStatus = {
        "id": entry.id,
        "aliases": list(entry.aliases),
        "default": is_default,
        "state": state,
    }
    if state in ("loading", "restarting") and (step := models.step) is not None:
        status["step"] = step
    if (failure := models.failures.get(entry.id)) is not None:
        status["error"] = failure
    if state == "unloaded" and (ago := models.seconds_since_idle_unload(entry.id)) is not None:
        status["idle_unloaded_ago"] = round(ago, 1)
    current = models.in_memory
    if current is not None and state != "loading" and current.entry.id == entry.id:
        info = current.info
        status["context"] = info.context_length
        status["tiers"] = dict(info.tiers)
        status["tier_bytes"] = dict(info.tier_bytes)
        status["draft"] = info.draft_method
        status["plan"] = info.plan
        if state == "loaded" and (left := models.idle_seconds_left) is not None:
            status["unloads_in"] = round(left, 1)
    return status


def _state(entry: ModelEntry, models: Models) -> ModelState:
    current = models.in_memory
    if models.loading is not None and models.loading.id == entry.id:
        return "loading"
    if current is None or current.entry.id != entry.id:
        return "unloaded"
    if models.is_unloading:
        return "unloading"
    if not current.usable:
        return "unloaded"
    return "loaded" if current.engine.state == "ready" else "restarting"


def _engine_status(model: LoadedModel) -> EngineStatus:
    info, history = model.info, model.statistics.history
    last = history.last
    used = 0 if last is None else max(0, info.num_pages - last.free_pages)
    return {
        "model": info.model_id,
        "recent": history.recent(),
        "total": history.sums.totals(),
        "link_gbps": 0.0 if last is None else last.link_gbps,
        "link_limit_gbps": model.statistics.limit_gbps,
        "link_bits_per_weight": info.link_bits,
        "kv_pages": info.num_pages,
        "kv_pages_used": used,
        "states": _states(info, history) if info.num_states else None,
    }


def _states(info: ModelInfo, history: PassHistory) -> RecurrentStates:
    last = None if history.last is None else history.last.states
    return {
        "room": info.num_states,
        "sequences": 0 if last is None else last.sequences,
        "prefixes": 0 if last is None else last.prefixes,
        "bytes_used": 0 if last is None else last.nbytes,
        "hits": history.sums.state_hits,
        "evictions": history.sums.state_evictions,
    }
