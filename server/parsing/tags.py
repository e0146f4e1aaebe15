"""Looking for tags in text that comes one character at a time."""


class Tags:
    """Finds any of several tags, none of which begins another; holds back what may become one."""

    def __init__(self, *tags: str) -> None:
        self._tags = tags
        self.held = ""  # the longest end of the text that begins a tag

    def feed(self, character: str) -> tuple[str, str]:
        """The text that is now known not to belong to a tag, and the tag that is complete."""
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
        """What was held back and became no tag."""
        held, self.held = self.held, ""
        return held
