"""Parts of which the bodies of several clients consist."""

from typing import Any

Body = dict[str, Any]

EPHEMERAL = {"cache_control": {"type": "ephemeral"}}


def schema(*required: str, **properties: Any) -> Body:
    return {"type": "object", "properties": properties, "required": list(required)}


def string(description: str, **more: Any) -> Body:
    return {"type": "string", "description": description, **more}


def function(name: str, description: str, parameters: Body, **more: Any) -> Body:
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function | more}


def call(id_: str, name: str, arguments: str) -> Body:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


READ = schema("path", path=string("The file to read."), limit={"type": "integer", "minimum": 1})
SHELL = schema(
    "command",
    command={"type": "array", "items": {"type": "string"}, "description": "The command line."},
    workdir=string("The folder in which it runs."),
    timeout_ms={"type": "number"},
)
EDIT = schema(
    "file_path",
    "old_string",
    "new_string",
    file_path=string("An absolute path."),
    old_string=string("The text to replace."),
    new_string=string("The text that replaces it."),
    replace_all={"type": "boolean", "default": False},
)
TODO = schema(
    "todos",
    todos={
        "type": "array",
        "items": schema(
            "content",
            "status",
            content={"type": "string", "minLength": 1},
            status={"type": "string", "enum": ["pending", "in_progress", "completed"]},
        ),
    },
)
