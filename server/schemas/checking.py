"""Where in a body a mistake is, from where pydantic says it is."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel


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
