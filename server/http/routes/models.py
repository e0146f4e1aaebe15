"""The routes of /v1/models: the OpenAI API lists models; others load, unload and limit one."""

from collections.abc import AsyncGenerator
from typing import Annotated, cast

from fastapi import Depends, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from engine.moves import LimitMemory
from server.chat.received import Received
from server.config.registry import ModelEntry
from server.http.api import Api
from server.http.body import body_of
from server.http.respond import pace_of
from server.http.sizes import size_of
from server.http.state import state_of
from server.http.stream import whole_answer
from server.models.loaded_model import LoadedModel
from server.schemas.answers import Capability, Model, ModelList, SamplingDefaults
from server.schemas.status import LimitsRequest, UnloadRequest

api = Api()

CHANGES = ("load", "unload", "limits")  # the routes below a model, which only POST has


@api.get("/models")
async def list_models(request: Request) -> ModelList:
    """List every model: the loaded one first, then the default, then the others.

    Chat pages begin with the first one, and another than the loaded one would have to be loaded.
    """
    state = state_of(request)
    loaded, default = state.models.ready, state.registry.default
    first = [None if loaded is None else loaded.entry.id, None if default is None else default.id]
    entries = [state.registry.entries[model_id] for model_id in first if model_id is not None]
    ordered = {entry.id: entry for entry in (*entries, *state.registry.entries.values())}
    return {"object": "list", "data": [_describe(entry, loaded) for entry in ordered.values()]}


# These three are before GET, whose ids may contain slashes: the first route that has a path names
# its methods in the answer to another method.
@api.post("/models/{model_id:path}/load", None, Model)
async def load_model(request: Request, model_id: str) -> Response:
    """Load a model in its turn, as a request for it would, and answer when it is loaded."""
    state = state_of(request)
    entry, pace = state.registry.named(model_id), pace_of(request)

    async def loaded() -> AsyncGenerator[Model, None]:
        async with state.models.borrow(entry, pace.wait) as model:
            described = _describe(entry, model)
        yield described

    return await whole_answer(request, loaded(), lambda models: JSONResponse(models[0]), pace)


@api.post("/models/{model_id:path}/unload", UnloadRequest, Model, may_be_empty=True)
async def unload_model(
    request: Request,
    model_id: str,
    received: Annotated[
        Received[UnloadRequest], Depends(body_of(UnloadRequest, may_be_empty=True))
    ],
) -> Response:
    """Unload a model when its requests are done, or after a grace, and answer when it is gone."""
    state = state_of(request)
    entry, grace = state.registry.named(model_id), received.body.grace
    await state.models.unload(entry, state.settings.shutdown_timeout if grace is None else grace)
    return JSONResponse(_describe(entry, state.models.ready))


@api.post("/models/{model_id:path}/limits", LimitsRequest, Model)
async def limit_model(
    request: Request,
    model_id: str,
    received: Annotated[Received[LimitsRequest], Depends(body_of(LimitsRequest))],
) -> Response:
    """Limit the memory of the model that is loaded, whose weights move after the running pass."""
    state, body = state_of(request), received.body
    entry = state.registry.named(model_id)
    limits = LimitMemory(size_of("device", body.device), size_of("ram", body.ram))
    state.models.limit(entry, limits)
    return JSONResponse(_describe(entry, state.models.ready))


@api.get("/models/{model_id:path}")
async def get_model(request: Request, model_id: str) -> Model:
    """Describe the model that requests with this name get. Ids may contain slashes."""
    state = state_of(request)
    if model_id.rpartition("/")[2] in CHANGES and model_id not in state.registry:
        raise HTTPException(405, headers={"Allow": "POST"})
    return _describe(state.registry.find(model_id), state.models.ready)


def _describe(entry: ModelEntry, loaded: LoadedModel | None) -> Model:
    is_loaded = loaded is not None and loaded.entry.id == entry.id
    model: Model = {
        "id": entry.id,
        "object": "model",
        "created": entry.created,
        "owned_by": "understudy",
        "aliases": list(entry.aliases),
        "state": "loaded" if is_loaded else "unloaded",
        "sampling": cast(SamplingDefaults, entry.sampling.model_dump(exclude_unset=True)),
    }
    if loaded is not None and is_loaded:
        model["max_model_len"] = loaded.info.context_length
        model["capabilities"] = _capabilities(loaded)
        model["sampling"] = cast(SamplingDefaults, loaded.sampling.model_dump())
    return model


def _capabilities(loaded: LoadedModel) -> list[Capability]:
    """Return what the loaded model can do, in the words of Ollama where it has one."""
    known: dict[Capability, bool] = {
        "completion": True,
        "chat": bool(loaded.facts.template),
        "tools": loaded.has_tool_format,
        "thinking": loaded.formats.reasoning is not None,
        "structured_outputs": True,
    }
    return [name for name, is_known in known.items() if is_known]
