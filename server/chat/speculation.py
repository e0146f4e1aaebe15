"""The drafting method of one request, checked against those that the model has loaded."""

from engine.messages import NO_DRAFT, ModelInfo, Speculation
from server.errors import ApiError
from server.schemas.fields import SpeculationOptions


def speculation_of(asked: SpeculationOptions | None, info: ModelInfo) -> Speculation:
    """Return the field `speculation` as the engine expects it.

    Raise `ApiError` 400 for a method that the model has not loaded.
    """
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
