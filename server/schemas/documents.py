"""Documents and search results in the Messages API: their text is taken, other forms cannot be."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from server.schemas.chat_messages import LeftOutPart, ResultPart
from server.schemas.fields import (
    Body,
    ContentOf,
    TextPart,
    field_error,
    joined_text,
    only_types,
    type_of,
)

_READABLE = ("text", "content")


class TextSource(Body):
    """The text of a document."""

    type: Literal["text"]
    data: str

    @property
    def text(self) -> str:
        return self.data


class ContentSource(Body):
    """A document in blocks of text."""

    type: Literal["content"]
    content: ContentOf[Annotated[TextPart, only_types("Blocks of documents", "text")]]

    @property
    def text(self) -> str:
        return joined_text(self.content)


class MixedSource(Body):
    """A document in blocks, of which those that are no text are left out."""

    type: Literal["content"]
    content: ContentOf[ResultPart]

    @property
    def text(self) -> str:
        return joined_text(self.content)


class UnreadableSource(Body):
    """A document that is no text: a PDF, a file of another server, an address."""

    type: Annotated[str, WithJsonSchema({"type": "string", "not": {"enum": list(_READABLE)}})]


def _refuse_unreadable(value: object) -> object:
    kind = type_of(value)
    if kind is not None and kind not in _READABLE:
        message = (
            f"Documents with a source of type '{kind[:64]}' cannot be read: this server takes "
            "text. Send the document's text as a source of type 'text'"
        )
        raise field_error("type", message, "unsupported_content")
    return value


def _kind_of_source(value: object) -> str:
    kind = type_of(value) or "text"
    return kind if kind in _READABLE else "other"


class _Document(Body):
    type: Literal["document"]
    title: str | None = None
    context: str | None = None

    def _framed(self, text: str) -> str:
        heads = [("Title", self.title), ("Context", self.context)]
        return _framed("document", heads, text)


class UserDocument(_Document):
    """A document of the user, which must be text."""

    source: Annotated[
        Annotated[TextSource | ContentSource, Field(discriminator="type")],
        BeforeValidator(_refuse_unreadable),
    ]

    @property
    def text(self) -> str:
        return self._framed(self.source.text)


class ResultDocument(_Document):
    """A document in the result of a tool, of which a line says what is left out."""

    source: Annotated[
        Annotated[TextSource, Tag("text")]
        | Annotated[MixedSource, Tag("content")]
        | Annotated[UnreadableSource, Tag("other")],
        Discriminator(_kind_of_source),
    ]

    @property
    def text(self) -> str:
        if isinstance(self.source, UnreadableSource):
            name = "" if self.title is None else f" '{self.title[:64]}'"
            return f"\n[A document{name} was left out here: this model takes text.]\n"
        return self._framed(self.source.text)

    @property
    def left_out(self) -> Iterator[str]:
        """Yield what of the document the model is not given."""
        if isinstance(self.source, UnreadableSource):
            yield "document"
        elif isinstance(self.source, MixedSource) and not isinstance(self.source.content, str):
            parts = self.source.content
            yield from (f"{p.type} in a document" for p in parts if isinstance(p, LeftOutPart))


class SearchResult(Body):
    """A result of a search that the client has made."""

    type: Literal["search_result"]
    source: str
    title: str
    content: ContentOf[Annotated[TextPart, only_types("Blocks of search results", "text")]]

    @property
    def text(self) -> str:
        heads = [("Title", self.title), ("Source", self.source)]
        return _framed("search_result", heads, joined_text(self.content))


def _framed(tag: str, heads: Sequence[tuple[str, str | None]], text: str) -> str:
    """Return a text between tags, after the lines of a head."""
    head = "".join(f"{name}: {value}\n" for name, value in heads if value)
    return f"\n<{tag}>\n{head}{text}\n</{tag}>\n"
