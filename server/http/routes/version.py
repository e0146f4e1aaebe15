"""The route GET /version: which release answers."""

from server.http.api import Api
from server.schemas.answers import Version
from server.version import version

api = Api(prefixes=("", "/v1"))


@api.get("/version")
async def get_version() -> Version:
    """Return the version of the server."""
    return {"version": version(if_not_installed="0")}
