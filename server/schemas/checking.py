"""Checking a body against its schema, and the one error shape of what is wrong with it. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from server.errors import ApiError
from server.schemas.fields import Body

# keys and values of the client's appear in answers, but not megabytes of them
LONGEST_STEP = 64
LONGEST_MESSAGE = 500

BodyT = TypeVar("BodyT", bound=Body)


def parse_body(kind: type[BodyT], raw: bytes) -> BodyT:
    """Check a JSON body. Raises `ApiError` 400 for the first mistake."""
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        # "json_invalid" comes alone, so whatever has another type did parse
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            message = f"The body is not valid JSON: {first['ctx']['error']}"
            raise ApiError(message, code="invalid_json") from None
        raise _refusal(kind, first) from None


def check_object(kind: type[BodyT], data: Mapping[str, Any]) -> BodyT:
    """Check what another body was turned into. Raises `ApiError` 400 for the first mistake."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _refusal(kind, error.errors(include_url=False)[0]) from None


def _refusal(kind: type[Body], error: ErrorDetails) -> ApiError:
    context = error.get("ctx") or {}
    path = [str(step)[:LONGEST_STEP] for step in steps_in_body(kind, error["loc"])]
    if "field" in context:
        path.append(context["field"][:LONGEST_STEP])
    elif error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append(str(context["discriminator"]).strip("'"))
    param = ".".join(path) or None
    code = _code(error)
    if not path:
        return ApiError("The body must be a JSON object.", code=code)
    if code == "missing_required_parameter" and "message" not in context:
        return ApiError.missing(".".join(path))
    text = context.get("message") or f"Invalid value for '{param}': {error['msg']}"
    return ApiError(f"{text[:LONGEST_MESSAGE]}.", code=code, param=param)


def _code(error: ErrorDetails) -> str:
    kind = error["type"]
    if kind in ("missing", "union_tag_not_found"):
        return "missing_required_parameter"
    if kind == "too_short":
        return "empty_array"
    if kind.endswith(("_type", "_attributes_type")) or kind == "int_from_float":
        return "invalid_type"
    known = ("missing_required_parameter", "unsupported_parameter", "unsupported_content")
    return kind if kind in known else "invalid_value"


def steps_in_body(kind: type[BaseModel], loc: Sequence[int | str]) -> list[int | str]:
    """Keys and indices that lead to `loc` in a body of `kind`.

    pydantic's own steps also name the chosen members of unions. Such a name may be a key of the
    body too, so only the schema tells which step is which.
    """
    schema: Any = kind.__pydantic_core_schema__
    definitions = {known["ref"]: known for known in schema.get("definitions", ())}
    steps: list[int | str] = []
    for step in loc:
        schema = _unwrapped(schema, definitions)
        match schema["type"]:
            case "tagged-union":
                schema = schema["choices"][step]
                continue
            case "union":  # of plain types: nothing lies below them
                break
            case "model-fields":
                schema = _field(schema["fields"], step)
            case "list":
                schema = schema["items_schema"]
            case "dict":
                schema = schema["values_schema"]
        steps.append(step)
    return steps


def _unwrapped(schema: Any, definitions: dict[str, Any]) -> Any:
    """Without models, validators, defaults and null."""
    while True:
        if schema["type"] == "definition-ref":
            schema = definitions[schema["schema_ref"]]
        elif "schema" in schema:
            schema = schema["schema"]
        else:
            return schema


def _field(fields: dict[str, Any], key: int | str) -> Any:
    return next(field for name, field in fields.items() if key in _keys(name, field))


def _keys(name: str, field: Any) -> list[str]:
    """What a field is called in a body: its name, its alias, or one of several."""
    match field.get("validation_alias"):
        case None:
            return [name]
        case str() as alias:
            return [alias]
        case choices:
            return [path[0] for path in choices]
