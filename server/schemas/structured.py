"""Fields that prescribe the form of an answer: JSON schemas, regular expressions and grammars."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from server.schemas.fields import Body, JsonObject, field_error
from server.schemas.limits import MAX_CHOICES, MAX_DEPTH, MAX_VALUES


def _check_depth(value: JsonObject) -> JsonObject:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return value
    message = f"The schema has more than {MAX_DEPTH} levels"
    raise PydanticCustomError("invalid_value", "{message}", {"message": message})


JsonSchema = Annotated[JsonObject, AfterValidator(_check_depth)]


class JsonSchemaFormat(Body):
    """The JSON schema of a `response_format`."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    json_schema: JsonSchema | None = Field(None, alias="schema")
    description: str | None = None
    strict: bool | None = None  # without effect: answers always match the schema

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if self.json_schema is None:
            message = "A 'json_schema' format needs a 'schema'"
            raise field_error("schema", message, "missing_required_parameter")
        return self


class ResponseFormat(Body):
    """The form that the answer to a chat must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _check_format(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            message = "The type 'json_schema' needs a 'json_schema'"
            raise field_error("json_schema", message, "missing_required_parameter")
        return self


Text = Annotated[str, Field(min_length=1)]


class StructuredOutputs(Body):
    """The form of an answer in one of several notations, an extension that vLLM's clients send."""

    json_: JsonSchema | None = Field(None, alias="json")
    regex: Text | None = None
    choice: (
        Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)] | None
    ) = None
    grammar: Text | None = None  # in the syntax of Lark or of llama.cpp (GBNF)

    @model_validator(mode="after")
    def _check_one_notation(self) -> Self:
        ways = (self.json_, self.regex, self.choice, self.grammar)
        if sum(way is not None for way in ways) != 1:
            message = "Give one of 'json', 'regex', 'choice' and 'grammar'"
            raise PydanticCustomError("invalid_value", "{message}", {"message": message})
        return self


def _parsed(value: object) -> object:
    """Return a schema that came as text, as some clients of vLLM send it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise PydanticCustomError("invalid_value", "The schema is not valid JSON") from None


_SCHEMA_OR_TEXT = {
    "anyOf": [
        {"type": "object", "maxProperties": MAX_VALUES},
        {"type": "string", "contentMediaType": "application/json"},
    ]
}
SchemaOrText = Annotated[JsonSchema, BeforeValidator(_parsed), WithJsonSchema(_SCHEMA_OR_TEXT)]


class StructuredBody(Body):
    """The extensions that set the form of an answer: one of them, at most.

    vLLM had `guided_...` before `structured_outputs`; `json_schema` and `grammar` are llama.cpp's.
    An empty text or list means none.
    """

    structured_outputs: StructuredOutputs | None = None
    guided_json: SchemaOrText | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Field(max_length=MAX_CHOICES, fail_fast=True)] | None = None
    guided_grammar: str | None = None
    json_schema: SchemaOrText | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _has_one_form(self) -> Self:
        given = list(self._forms)
        if len(given) > 1:
            raise field_error(given[1], f"Give '{given[0]}' or '{given[1]}', not both")
        return self

    @property
    def form(self) -> tuple[str, StructuredOutputs] | None:
        """Return the path of the field that sets a form, and the form."""
        return next(iter(self._forms.items()), None)

    @property
    def _forms(self) -> dict[str, StructuredOutputs]:
        """Return the forms that are given, by their path."""
        forms: dict[str, StructuredOutputs] = {}
        for name, way in _WAYS.items():
            value = getattr(self, name)
            if value not in (None, "", []):
                forms[name] = StructuredOutputs.model_construct(**{way: value})
        if self.structured_outputs is not None:
            given = self.structured_outputs
            way = next(way for way in _WAYS.values() if getattr(given, way) is not None)
            forms[f"structured_outputs.{way.rstrip('_')}"] = given
        return forms


_WAYS = {
    "guided_json": "json_",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json_",
    "grammar": "grammar",
}
