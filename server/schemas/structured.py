"""Fields that say what form an answer must have."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from server.schemas.fields import Body, JsonObject, fault
from server.schemas.limits import MAX_CHOICES, MAX_DEPTH


def _not_too_deep(value: JsonObject) -> JsonObject:
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


JsonSchema = Annotated[JsonObject, AfterValidator(_not_too_deep)]


class JsonSchemaFormat(Body):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    json_schema: JsonSchema | None = Field(None, alias="schema")
    description: str | None = None
    strict: bool | None = None  # the answer matches in any case

    @model_validator(mode="after")
    def _has_a_schema(self) -> Self:
        if self.json_schema is None:
            message = "A 'json_schema' format needs a 'schema'"
            raise fault("schema", message, "missing_required_parameter")
        return self


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _has_a_format(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            message = "The type 'json_schema' needs a 'json_schema'"
            raise fault("json_schema", message, "missing_required_parameter")
        return self


Text = Annotated[str, Field(min_length=1)]


class StructuredOutputs(Body):
    """An extension: one of several ways to write a grammar."""

    json_: JsonSchema | None = Field(None, alias="json")
    regex: Text | None = None
    choice: (
        Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)] | None
    ) = None
    grammar: Text | None = None  # in the syntax of Lark, or llama.cpp's (GBNF)

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        ways = (self.json_, self.regex, self.choice, self.grammar)
        if sum(way is not None for way in ways) != 1:
            message = "Give one of 'json', 'regex', 'choice' and 'grammar'"
            raise PydanticCustomError("invalid_value", "{message}", {"message": message})
        return self
