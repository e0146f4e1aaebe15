"""A completion's prompt as it is shown before the answer. Pure."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from engine.text.detokenize import TokenBytes


@dataclass(frozen=True)
class Echo:
    """What is shown of a prompt: its text and, where it is scored, the tokens it was made of."""

    text: str = ""
    ids: Sequence[int] = ()

    def offsets(self, spelling: TokenBytes) -> list[int]:
        """Where in the text each token begins, in characters.

        What a tokenizer adds (a begin-of-sequence token, a first blank) takes no room.
        """
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        offsets, place = [], 0
        for token in self.ids:
            offsets.append(place)
            piece = utf8.decode(spelling[token])
            if not spelling[token]:  # a special token, perhaps spelled out in the prompt
                name = spelling.text(token)
                piece = name if self.text.startswith(name, place) else ""
            elif place == 0 and not self.text.startswith(piece):
                piece = piece.removeprefix(" ")
            place = min(place + len(piece), len(self.text))
        return offsets
