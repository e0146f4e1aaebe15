"""The prompt of a completion that is shown before the answer (`echo`). Pure."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from engine.text.detokenize import TokenBytes


@dataclass(frozen=True)
class Echo:
    """The part of an answer that shows its prompt.

    Args:
        text: the text of the prompt; "" if it is not shown.
        ids: the tokens of the prompt.
    """

    text: str = ""
    ids: Sequence[int] = ()

    def offsets(self, spelling: TokenBytes) -> list[int]:
        """Return where each token begins in the text, in characters.

        What the tokenizer has added (a begin-of-sequence token, a first blank) has no width.
        """
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        offsets, place = [], 0
        for token in self.ids:
            offsets.append(place)
            piece = utf8.decode(spelling[token])
            if not spelling[token]:  # a special token, which the client may have spelled out
                name = spelling.text(token)
                piece = name if self.text.startswith(name, place) else ""
            elif place == 0 and not self.text.startswith(piece):
                piece = piece.removeprefix(" ")
            place = min(place + len(piece), len(self.text))
        return offsets
