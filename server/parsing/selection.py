"""Which parsers read the answers of a model: by its chat template, or as its file says."""

import functools
import importlib
import pkgutil
from collections.abc import Collection
from dataclasses import dataclass, replace

from server.parsing import formats
from server.parsing.format import Format, Part
from server.parsing.formats import hermes
from server.parsing.parser import Chain, Parser, PlainText

FALLBACK = "generic"  # reads the tools of templates that no format recognises
NO_REASONING = "none"  # instead of a format of reasoning: there is none to look for


@dataclass(frozen=True)
class Formats:
    """The formats of one model's answers; `reasoning` None: all of it is content."""

    tools: Format
    reasoning: Format | None

    def parser(self, names: Collection[str], before: str) -> Parser:
        """A parser of one answer: `names` of the tools it may call, `before` what it continues."""
        found = [format.parser(names, before) for format in self._used(bool(names))]
        return functools.reduce(Chain, found) if found else PlainText()

    def special_tokens(self, *, tools: bool) -> frozenset[str]:
        """The marks that its parsers look for in answers, with or without tools to call."""
        return frozenset(mark for format in self._used(tools) for mark in format.special_tokens)

    @property
    def forced(self) -> "Formats":
        """The formats of answers whose calls are forced: the one of tools has a syntax."""
        return self if self.tools.syntax is not None else replace(self, tools=hermes.FORMAT)

    def _used(self, tools: bool) -> list[Format]:
        """The formats of the parsers, first to last."""
        used = [] if self.reasoning is None else [self.reasoning]
        if tools and self.tools is not self.reasoning:
            used.append(self.tools)
        return used


@functools.cache
def known_formats() -> dict[str, Format]:
    """Every format by the name of its file."""
    found: dict[str, Format] = {}
    for module in pkgutil.iter_modules(formats.__path__):
        found[module.name] = importlib.import_module(f"{formats.__name__}.{module.name}").FORMAT
    return found


def format_names(part: Part) -> list[str]:
    """The formats that a model's file may name."""
    return [name for name, known in known_formats().items() if part in known.reads]


def formats_of(template: str, tools: str | None = None, reasoning: str | None = None) -> Formats:
    """The formats of a model with this chat template, or those that its file names."""
    return Formats(
        _named(tools) or _recognised("tools", template) or known_formats()[FALLBACK],
        None
        if reasoning == NO_REASONING
        else _named(reasoning) or _recognised("reasoning", template),
    )


def _named(name: str | None) -> Format | None:
    return None if name is None else known_formats()[name]


def _recognised(part: Part, template: str) -> Format | None:
    suitable = (f for f in known_formats().values() if part in f.reads)
    return next((f for f in suitable if f.recognises(template)), None)
