"""How a request wants to be drafted for: checked against what the loaded model has."""

from engine.messages import NO_DRAFT, ModelInfo, Speculation
from server.errors import ApiError
from server.schemas.fields import SpeculationOptions


def speculation_of(asked: SpeculationOptions | None, info: ModelInfo) -> Speculation:
    """The engine's view of the field `speculation`. Raises `ApiError` 400."""
    if asked is None:
        return Speculation()
    method = None if asked.method == "auto" else asked.method
    available = ("auto", NO_DRAFT, *(name for name in info.draft_methods if name != NO_DRAFT))
    if method is not None and method not in available:
        raise ApiError(
            f"'speculation.method' is {method!r}, which the model {info.model_id!r} has not "
            f"loaded. Available: {', '.join(available)}.",
            code="invalid_value",
            param="speculation.method",
        )
    return Speculation(method, asked.max_rows)
