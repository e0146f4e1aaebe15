"""The search for tags in text that arrives one character at a time."""

SHORTEST_MARK = 3  # characters


def is_mark(text: str) -> bool:
    """Return whether `text`, the beginning of a tag at the end of an answer, can only be a tag.

    A tag that begins as words or as a fence of Markdown do may be text as well.
    """
    return len(text) >= SHORTEST_MARK and text[0] in "<[]|"


class Tags:
    """A search for several tags, none of which is the beginning of another.

    It holds back the end of the text as long as that end may become a tag.
    """

    def __init__(self, *tags: str) -> None:
        self._tags = tags
        self._first = frozenset(tag[0] for tag in tags)
        self.held = ""  # the longest end of the text that is the beginning of a tag

    def feed(self, character: str) -> tuple[str, str]:
        """Return the text that certainly belongs to no tag, and the tag that is now complete.

        Either may be "".
        """
        if not self.held and character not in self._first:
            return character, ""
        held = self.held + character
        start = 0
        while start < len(held) and not any(tag.startswith(held[start:]) for tag in self._tags):
            start += 1
        text, self.held = held[:start], held[start:]
        if self.held not in self._tags:
            return text, ""
        tag, self.held = self.held, ""
        return text, tag

    def finish(self) -> str:
        """Return the text that was held back, at the end of the text."""
        held, self.held = self.held, ""
        return held
