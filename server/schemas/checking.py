"""The check of a body against its schema, and the error for the first mistake in it. No I/O."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from server.errors import ApiError
from server.schemas.fields import Body

# Errors quote keys and values of the client, which may have megabytes: they are cut (characters).
MAX_STEP_LENGTH = 64
MAX_MESSAGE_LENGTH = 500

BodyT = TypeVar("BodyT", bound=Body)


def parse_body(kind: type[BodyT], raw: bytes) -> BodyT:
    """Return the JSON body `raw` as a `kind`. Raise `ApiError` 400 for its first mistake."""
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        # "json_invalid" is never reported with other errors: any other type means that it parsed.
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            message = f"The body is not valid JSON: {first['ctx']['error']}"
            raise ApiError(message, code="invalid_json") from None
        raise _to_api_error(kind, first) from None


def check_object(kind: type[BodyT], data: Mapping[str, Any]) -> BodyT:
    """Return `data`, made from the body of another API, as a `kind`.

    Raise `ApiError` 400 for its first mistake.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _to_api_error(kind, error.errors(include_url=False)[0]) from None


def _to_api_error(kind: type[Body], error: ErrorDetails) -> ApiError:
    if error["type"] == "extra_forbidden":  # of a body that has no others in it
        return _unknown_field(kind, str(error["loc"][0])[:MAX_STEP_LENGTH])
    context = error.get("ctx") or {}
    path = [str(step)[:MAX_STEP_LENGTH] for step in path_in_body(kind, error["loc"])]
    if "field" in context:
        path.append(context["field"][:MAX_STEP_LENGTH])
    elif error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append(str(context["discriminator"]).strip("'"))
    param = ".".join(path) or None
    code = _error_code(error)
    if not path:
        return ApiError("The body must be a JSON object.", code=code)
    if code == "missing_required_parameter" and "message" not in context:
        return ApiError.missing(".".join(path))
    text = context.get("message") or f"Invalid value for '{param}': {error['msg']}"
    return ApiError(f"{text[:MAX_MESSAGE_LENGTH]}.", code=code, param=param)


def _unknown_field(kind: type[Body], name: str) -> ApiError:
    known = ", ".join(kind.model_fields)
    message = f"Unknown field {name!r}. The fields of this body are: {known}."
    return ApiError(message, code="unknown_parameter", param=name)


def _error_code(error: ErrorDetails) -> str:
    kind = error["type"]
    if kind in ("missing", "union_tag_not_found"):
        return "missing_required_parameter"
    if kind == "too_short":
        return "empty_array"
    if kind.endswith(("_type", "_attributes_type")) or kind == "int_from_float":
        return "invalid_type"
    known = ("missing_required_parameter", "unsupported_parameter", "unsupported_content")
    return kind if kind in known else "invalid_value"


def path_in_body(kind: type[BaseModel], loc: Sequence[int | str]) -> list[int | str]:
    """Return the keys and indices that lead to pydantic's location `loc` in a body of `kind`.

    pydantic's locations also name the chosen members of unions. Such a name may be a key of the
    body too, so the schema is needed to tell them apart.
    """
    schema: Any = kind.__pydantic_core_schema__
    definitions = {known["ref"]: known for known in schema.get("definitions", ())}
    steps: list[int | str] = []
    for step in loc:
        schema = _unwrap(schema, definitions)
        match schema["type"]:
            case "tagged-union":
                schema = schema["choices"][step]
                continue
            case "union":  # of plain types, which have no fields or elements
                break
            case "model-fields":
                schema = _find_field(schema["fields"], step)
            case "list":
                schema = schema["items_schema"]
            case "dict":
                schema = schema["values_schema"]
        steps.append(step)
    return steps


def _unwrap(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return the schema inside of models, validators, defaults and nullable types."""
    while True:
        if schema["type"] == "definition-ref":
            schema = definitions[schema["schema_ref"]]
        elif "schema" in schema:
            schema = schema["schema"]
        else:
            return schema


def _find_field(fields: dict[str, Any], key: int | str) -> Any:
    return next(field for name, field in fields.items() if key in _body_keys(name, field))


def _body_keys(name: str, field: Any) -> list[str]:
    """Return the keys that a field may have in a body: its name, or its aliases instead."""
    match field.get("validation_alias"):
        case None:
            return [name]
        case str() as alias:
            return [alias]
        case choices:
            return [path[0] for path in choices]
