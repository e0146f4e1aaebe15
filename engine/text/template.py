"""Whether a chat template can be read as one."""

from jinja2 import Environment, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser

from engine.errors import ModelError


class _Generation(Extension):
    """The library's tag `{% generation %}`, around what the assistant writes."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # declared as a set

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def check_template(text: str, where: str) -> None:
    """Raise `ModelError` that names `where` and the line for a text that is no Jinja template.

    Nothing of it runs: its constants are not folded either.
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
