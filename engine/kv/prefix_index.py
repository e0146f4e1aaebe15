"""Which stored page holds which tokens, after which beginning of a sequence.

A page's key is (serial of its parent page, its tokens): exact, no hashes to collide. The pages of
one parent are kept sorted by their tokens, so that the one with the longest common beginning is
found by bisection, however many users continue the same system prompt. No page is a strict
beginning of another one of the same parent: the longer one serves for both.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

Tokens = tuple[int, ...]


class PrefixIndex:
    """Finds pages by their tokens. Who owns a page is decided by `KVCache`."""

    def __init__(self, page_tokens: int, first_host_page: int) -> None:
        """Index pages of `page_tokens` tokens. Those from `first_host_page` on are on the host.

        Only full pages can be parents.
        """
        self._page_tokens = page_tokens
        self._first_host_page = first_host_page
        self._pages: dict[tuple[int, Tokens], int] = {}
        self._keys: dict[int, tuple[int, Tokens]] = {}
        self._serials: dict[int, int] = {}
        self._next_serial = 1
        # (parent, on the host) -> the tokens of its pages there, sorted.
        self._siblings: dict[tuple[int, bool], list[Tokens]] = {}

    def __contains__(self, page: int) -> bool:
        return page in self._keys

    def serial(self, page: int) -> int:
        """Return what the next pages name as their parent; below 1 are parents of first pages."""
        return self._serials[page]

    def tokens(self, page: int) -> Tokens:
        """Return the tokens of a page."""
        return self._keys[page][1]

    def walk(self, tokens: Sequence[int], parent: int) -> Iterator[int]:
        """Yield the full pages of the longest stored beginning, without the last token."""
        for first in range(0, len(tokens) - self._page_tokens, self._page_tokens):
            page = self._pages.get((parent, tuple(tokens[first : first + self._page_tokens])))
            if page is None:
                return
            yield page
            parent = self._serials[page]

    def longest(self, parent: int, tokens: Tokens) -> tuple[int, int] | None:
        """Return the page of a parent that begins most like these tokens, and how many agree.

        Of equals it is one on the device. None if not even the first token agrees.
        """
        best: tuple[int, Tokens] = (0, ())
        for siblings, place in self._places(parent, tokens):
            for own in siblings[max(place - 1, 0) : place + 1]:
                agreeing = _num_agreeing(own, tokens)
                if agreeing > best[0]:
                    best = agreeing, own
        return (self._pages[parent, best[1]], best[0]) if best[0] else None

    def covering(self, parent: int, tokens: Tokens) -> int | None:
        """Return a page of a parent that begins with all of these tokens."""
        for siblings, place in self._places(parent, tokens):
            if place < len(siblings) and siblings[place][: len(tokens)] == tokens:
                return self._pages[parent, siblings[place]]
        return None

    def beginning(self, parent: int, tokens: Tokens) -> int | None:
        """Return the page of a parent whose tokens are a strict beginning of these.

        There is one at most, and it is sorted right before them: what were in between would begin
        with it.
        """
        for siblings, place in self._places(parent, tokens):
            if place and tokens[: len(siblings[place - 1])] == siblings[place - 1]:
                return self._pages[parent, siblings[place - 1]]
        return None

    def add(self, parent: int, tokens: Tokens, page: int) -> None:
        """Index a page whose tokens are neither covered nor have a stored beginning."""
        self._place((parent, tokens), page)
        self._serials[page] = self._next_serial
        self._next_serial += 1

    def rename(self, old: int, new: int) -> None:
        """Give the content indexed as page `old` the number `new`."""
        self._place(self._displace(old), new)
        self._serials[new] = self._serials.pop(old)

    def remove(self, page: int) -> None:
        """Forget a page that is not a parent."""
        del self._pages[self._displace(page)]
        del self._serials[page]

    def _places(self, parent: int, tokens: Tokens) -> Iterator[tuple[list[Tokens], int]]:
        """Yield the pages of a parent, sorted by tokens, and the first not less than these tokens.

        Those on the device come first. What begins with the tokens is not less than they are.
        """
        for on_host in (False, True):
            siblings = self._siblings.get((parent, on_host), [])
            yield siblings, bisect_left(siblings, tokens)

    def _place(self, key: tuple[int, Tokens], page: int) -> None:
        parent, tokens = key
        self._pages[key] = page
        self._keys[page] = key
        insort(self._siblings.setdefault((parent, page >= self._first_host_page), []), tokens)

    def _displace(self, page: int) -> tuple[int, Tokens]:
        parent, tokens = self._keys.pop(page)
        place = parent, page >= self._first_host_page
        siblings = self._siblings[place]
        del siblings[bisect_left(siblings, tokens)]
        if not siblings:
            del self._siblings[place]
        return parent, tokens


def _num_agreeing(one: Tokens, other: Tokens) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
