"""The choice of the formats in which a model's answers are read, by chat template or by name."""

import functools
import importlib
import pkgutil
from dataclasses import dataclass, replace

from engine.parsing import formats
from engine.parsing.calls import Tools
from engine.parsing.format import Format, Part
from engine.parsing.formats import hermes
from engine.parsing.parser import Chain, Parser, PlainText

FALLBACK = "generic"  # the format of tool calls if no format recognises the chat template
NO_REASONING = "none"  # the name in a model's file that turns the search for reasoning off


@dataclass(frozen=True)
class Formats:
    """The formats of one model's answers.

    Args:
        tools: the format of tool calls.
        reasoning: the format of reasoning; None if answers have no reasoning.
    """

    tools: Format
    reasoning: Format | None

    def parser(self, tools: Tools, before: str) -> Parser:
        """Return a parser of one answer.

        Args:
            tools: the tools that the answer may call.
            before: the text that the answer continues.
        """
        used = self._used(bool(tools))
        if not used:
            return PlainText()
        first, *others = [functools.partial(format.parser, tools, before) for format in used]
        return Chain(first(), *others) if others else first()

    def special_tokens(self, *, tools: bool) -> frozenset[str]:
        """Return the marks that the parsers look for; `tools`: whether there are tools to call."""
        return frozenset(mark for format in self._used(tools) for mark in format.special_tokens)

    @property
    def names(self) -> tuple[str, str]:
        """Return the names of the two formats, for which `formats_of` returns the same formats."""
        names = {id(known): name for name, known in known_formats().items()}
        reasoning = NO_REASONING if self.reasoning is None else names[id(self.reasoning)]
        return names[id(self.tools)], reasoning

    @property
    def forced(self) -> "Formats":
        """Return the formats for forced calls, with `hermes` if the one of tools has no syntax."""
        return self if self.tools.syntax is not None else replace(self, tools=hermes.FORMAT)

    def _used(self, tools: bool) -> list[Format]:
        """Return the formats whose parsers read an answer, in the order in which they read."""
        used = [] if self.reasoning is None else [self.reasoning]
        if tools and self.tools is not self.reasoning:
            used.append(self.tools)
        return used


@functools.cache
def known_formats() -> dict[str, Format]:
    """Return every format by the name of its file."""
    found: dict[str, Format] = {}
    for module in pkgutil.iter_modules(formats.__path__):
        found[module.name] = importlib.import_module(f"{formats.__name__}.{module.name}").FORMAT
    return found


def format_names(part: Part) -> list[str]:
    """Return the names of the formats of `part` that a model's file may choose."""
    return [name for name, known in known_formats().items() if part in known.reads]


def formats_of(template: str, tools: str | None = None, reasoning: str | None = None) -> Formats:
    """Return the formats of a model's answers.

    Args:
        template: the text of the model's chat template.
        tools: the name of the format of tool calls; None: the one that recognises the template.
        reasoning: the name of the format of reasoning, or `NO_REASONING`; None: the one that
            recognises the template.
    """
    calls = _named(tools) or _recognised("tools", template) or known_formats()[FALLBACK]
    if reasoning == NO_REASONING:
        return Formats(calls, None)
    both = calls if "reasoning" in calls.reads else None
    return Formats(calls, _named(reasoning) or both or _recognised("reasoning", template))


def _named(name: str | None) -> Format | None:
    return None if name is None else known_formats()[name]


def _recognised(part: Part, template: str) -> Format | None:
    suitable = (f for f in known_formats().values() if part in f.reads)
    return next((f for f in suitable if f.recognises(template)), None)
