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
    state.metrics.gauges.set(state.status())
    return Response(state.metrics.text(), media_type=CONTENT_TYPE)
