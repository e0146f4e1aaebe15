"""The routes GET /v1/models and /v1/models/{id} of the OpenAI API."""

from fastapi import Request

from server.config.registry import ModelEntry
from server.http.api import Api
from server.http.state import state_of
from server.schemas.answers import Model, ModelList

api = Api()


@api.get("/models")
async def list_models(request: Request) -> ModelList:
    """List every model of the registry."""
    entries = state_of(request).registry.entries.values()
    return {"object": "list", "data": [_describe(entry) for entry in entries]}


@api.get("/models/{model_id:path}")
async def get_model(request: Request, model_id: str) -> Model:
    """Describe one model, by its id or alias. Ids may contain slashes."""
    return _describe(state_of(request).registry.named(model_id))


def _describe(entry: ModelEntry) -> Model:
    return {
        "id": entry.id,
        "object": "model",
        "created": entry.created,
        "owned_by": "understudy",
        "aliases": list(entry.aliases),
    }
