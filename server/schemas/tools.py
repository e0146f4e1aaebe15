"""The tools of a chat, and the choice of those that the model may or must call."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from server.schemas.fields import Body, JsonObject, field_error, only_types, type_of
from server.schemas.limits import MAX_TOOLS
from server.schemas.structured import JsonSchema

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


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


# The parameters of a custom tool: models call it as a function of one text.
CUSTOM_INPUT = "input"
_CUSTOM_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {CUSTOM_INPUT: {"type": "string"}},
    "required": [CUSTOM_INPUT],
    "additionalProperties": False,
}


class Custom(Body):
    name: ToolName
    description: str | None = None
    format: JsonObject | None = None  # of the input; told to the model, but not enforced

    @property
    def syntax(self) -> str | None:
        """Return the definition of the input's grammar, if the tool has one."""
        form = self.format or {}
        nested = form.get("grammar")
        definition = (nested if isinstance(nested, dict) else form).get("definition")
        return definition if isinstance(definition, str) else None


class CustomTool(Body):
    """A tool that takes any text."""

    type: Literal["custom"]
    custom: Custom

    def as_function(self) -> Tool:
        """Return the tool as the function that the model is offered."""
        texts = [self.custom.description]
        if self.custom.syntax is not None:
            texts.append(f"'{CUSTOM_INPUT}' has this grammar:\n{self.custom.syntax}")
        function = Function(
            name=self.custom.name,
            description="\n\n".join(filter(None, texts)) or None,
            parameters=_CUSTOM_PARAMETERS,
        )
        return Tool(type="function", function=function)


_OWN_TYPES = ("function", "custom", "namespace")


def _is_not_own(kind: str) -> str:
    if kind in _OWN_TYPES:
        message = "A namespace cannot be in another one"
        raise PydanticCustomError("invalid_value", "{message}", {"message": message})
    return kind


class HostedTool(Body):
    """A tool that only the provider's own servers can run: it is left out."""

    type: Annotated[
        str,
        AfterValidator(_is_not_own),
        WithJsonSchema({"type": "string", "not": {"enum": list(_OWN_TYPES)}}),
    ]
    name: str | None = None


def kind_of_tool(value: object) -> str:
    """Return the kind of a tool; without a type it is a function, which then lacks its type."""
    kind = type_of(value) or "function"
    return kind if kind in _OWN_TYPES else "hosted"


def kind_in_namespace(value: object) -> str:
    """Return the kind of a tool in a namespace, which is not another namespace."""
    kind = kind_of_tool(value)
    return "hosted" if kind == "namespace" else kind


SimpleTool = Annotated[
    Annotated[Tool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[HostedTool, Tag("hosted")],
    Discriminator(kind_in_namespace),
]


class NamespaceTool(Body):
    """Tools under a common name; each is offered by itself."""

    type: Literal["namespace"]
    tools: Annotated[list[SimpleTool], Field(max_length=MAX_TOOLS, fail_fast=True)]


AnyTool = Annotated[
    Annotated[Tool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[NamespaceTool, Tag("namespace")]
    | Annotated[HostedTool, Tag("hosted")],
    Discriminator(kind_of_tool),
]


def walk_tools(
    tools: Sequence[Tool | CustomTool | NamespaceTool | HostedTool], path: str = "tools"
) -> Iterator[tuple[str, Tool | CustomTool | HostedTool]]:
    """Yield each tool, also those in namespaces, with its path in the body."""
    for index, tool in enumerate(tools):
        if isinstance(tool, NamespaceTool):
            yield from walk_tools(tool.tools, f"{path}.{index}.tools")
        else:
            yield f"{path}.{index}", tool


class NamedFunction(Body):
    """A function that is referred to by its name."""

    name: str


class NamedTool(Body):
    """The name of a function."""

    type: Literal["function"]
    function: NamedFunction

    @property
    def name(self) -> str:
        return self.function.name


class NamedCustomTool(Body):
    """The name of a custom tool."""

    type: Literal["custom"]
    custom: NamedFunction

    @property
    def name(self) -> str:
        return self.custom.name


class AllowedTools(Body):
    """The tools that the model may call, and whether it must call one."""

    mode: Literal["auto", "required"]
    tools: Annotated[
        list[
            Annotated[
                Annotated[NamedTool | NamedCustomTool, Field(discriminator="type")],
                only_types("Allowed tools", "function", "custom"),
            ]
        ],
        Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True),
    ]


class AllowedToolsChoice(Body):
    """The choice of several tools by their names."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _mode_named_or_allowed(value: object) -> str:
    match value:
        case {"type": "allowed_tools"}:
            return "allowed"
        case {"type": "custom"}:
            return "custom"
        case dict():
            return "named"
        case _:
            return "mode"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[NamedTool, Tag("named")]
    | Annotated[NamedCustomTool, Tag("custom")]
    | Annotated[AllowedToolsChoice, Tag("allowed")],
    Discriminator(_mode_named_or_allowed),
]
FunctionChoice = Annotated[
    Annotated[Literal["none", "auto"], Tag("mode")] | Annotated[NamedFunction, Tag("named")],
    Discriminator(lambda value: "mode" if isinstance(value, str) else "named"),
]
Tools = Annotated[list[AnyTool], Field(max_length=MAX_TOOLS, fail_fast=True)]
