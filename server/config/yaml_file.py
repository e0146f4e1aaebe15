"""A parser for the part of YAML that configuration files may use: plain keys and values.

Other features of YAML (anchors, merge keys, repeated keys, tags of other types) are errors. They
can make a small file endless or hide which value counts, and no setting needs them.
"""

from typing import Any

import yaml
from yaml.reader import ReaderError

from engine.errors import shown

DEEPEST = 32  # the most levels of lists and mappings inside each other


def parse_yaml(text: str) -> object:
    """Return the value of a YAML text. Raises `yaml.YAMLError` that names the line."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise yaml.YAMLError(f"nested more than {DEEPEST} deep") from error
    except (ValueError, OverflowError) as error:  # an invalid date or number
        raise yaml.YAMLError(str(error)) from error


def fault_text(error: yaml.YAMLError) -> str:
    """Return in one line what is wrong in a YAML text, and where. YAML's own texts take several."""
    if isinstance(error, ReaderError):
        return f"the character {chr(error.character)!r} is not allowed (position {error.position})"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    mark, begin, context = error.problem_mark, error.context_mark, error.context or ""
    text = f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
    if not context.startswith("while"):
        return f"{context}, {text}" if context else text
    if begin is None or begin.line == mark.line:
        return text
    return f"{text}, {context} that begins in line {begin.line + 1}"


class _Loader(yaml.SafeLoader):
    """A loader of strings, numbers, booleans, null, lists and mappings with distinct text keys.

    Anchors, aliases, repeated keys, and nesting deeper than `DEEPEST` are errors.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # its stub has no types
        if getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases (& and *) are not supported: repeat the value",
                problem_mark=event.start_mark,
            )
        if self._depth == DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {DEEPEST} deep", problem_mark=event.start_mark
            )
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[object, int] = {}
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(
                    problem="this key is no text: write it in quotes, if it is meant",
                    problem_mark=key.start_mark,
                )
            if key.value in lines:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {shown(key.value)} is there twice, first in line "
                    f"{lines[key.value] + 1}",
                    problem_mark=key.start_mark,
                )
            lines[key.value] = key.start_mark.line
        return super().construct_mapping(node, deep)
