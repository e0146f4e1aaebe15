"""The tools of a chat, and the choice of those that the model may or must call."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from server.schemas.fields import Body, field_error
from server.schemas.limits import MAX_TOOLS
from server.schemas.structured import JsonSchema

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(Body):
    """A function that the model may call, with the JSON schema of its arguments."""

    name: ToolName
    description: str | None = None
    parameters: JsonSchema | None = None  # a JSON schema of an object
    strict: bool | None = None

    @model_validator(mode="after")
    def _check_parameters(self) -> Self:
        if (self.parameters or {}).get("type", "object") != "object":
            raise field_error("parameters.type", "The parameters of a function must be an object")
        return self


class Tool(Body):
    """A tool of a chat; functions are the only type."""

    type: Literal["function"]
    function: Function

    def described(self) -> dict[str, Any]:
        """Return the tool in the form that chat templates expect."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        function["parameters"] = self.function.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


class NamedFunction(Body):
    """A function that is referred to by its name."""

    name: str


class NamedTool(Body):
    """A tool that is referred to by its name."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Body):
    """The tools that the model may call, and whether it must call one."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class AllowedToolsChoice(Body):
    """The choice of several tools by their names."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _mode_named_or_allowed(value: object) -> str:
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
    Discriminator(_mode_named_or_allowed),
]
Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]
