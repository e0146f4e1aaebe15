"""The route GET /metrics, in Prometheus' text format. Reading metrics never loads a model."""

from fastapi import Request
from starlette.responses import PlainTextResponse, Response

from server.http.api import Api
from server.http.state import state_of
from server.metrics.prometheus import CONTENT_TYPE

api = Api(prefixes=("",))


@api.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Return the counters since the start of the server, and the present gauges."""
    state = state_of(request)
    gauges, model = state.metrics.gauges, state.models.ready
    known = state.registry.entries
    gauges.set_models(known, None if model is None else model.entry.id, state.models.num_waiting)
    if model is not None:
        gauges.set_engine(model.info, model.statistics.last, model.engine.num_outstanding)
    return Response(state.metrics.text(), media_type=CONTENT_TYPE)
