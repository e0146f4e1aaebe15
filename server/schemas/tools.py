"""Tools of a chat, and which of them the model may or must call."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from server.schemas.fields import Body, fault
from server.schemas.limits import MAX_TOOLS
from server.schemas.structured import JsonSchema

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(Body):
    name: ToolName
    description: str | None = None
    parameters: JsonSchema | None = None  # a JSON schema of an object
    strict: bool | None = None

    @model_validator(mode="after")
    def _arguments_are_an_object(self) -> Self:
        if (self.parameters or {}).get("type", "object") != "object":
            raise fault("parameters.type", "The parameters of a function are an object")
        return self


class Tool(Body):
    type: Literal["function"]
    function: Function

    def described(self) -> dict[str, Any]:
        """The tool as chat templates expect it."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        function["parameters"] = self.function.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class AllowedToolsChoice(Body):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _form(value: object) -> str:
    match value:
        case {"type": "allowed_tools"}:
            return "allowed"
        case dict():
            return "named"
        case _:
            return "mode"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[NamedTool, Tag("named")]
    | Annotated[AllowedToolsChoice, Tag("allowed")],
    Discriminator(_form),
]
Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]
