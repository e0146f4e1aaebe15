"""The syntax check of a chat template."""

from jinja2 import Environment, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser

from engine.errors import ModelError


class _Generation(Extension):
    """The tag `{% generation %}` of transformers, around what the assistant writes."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # declared as a set

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def check_template(text: str, where: str) -> None:
    """Raise `ModelError`, which names `where` and the line, if a text is not a Jinja template.

    The template is only parsed, and no part of it is evaluated.
    """
    environment = Environment(extensions=[_Generation, "jinja2.ext.loopcontrols"])
    try:
        environment.parse(text)
    except RecursionError as error:
        raise ModelError(f"{where}: not a Jinja template: nested too deeply") from error
    except TemplateSyntaxError as error:
        raise ModelError(
            f"{where}: not a Jinja template: line {error.lineno}: {error.message}"
        ) from error
    except (ValueError, OverflowError) as error:  # a number or an escape that there is not
        raise ModelError(f"{where}: not a Jinja template: {error}") from error
