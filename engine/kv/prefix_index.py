"""An index that finds stored KV pages by their tokens and by all tokens before these.

The pages of a sequence form a chain, in which each page is the parent of the next. The key of a
page is the serial number of its parent and the page's own tokens. Keys are compared exactly, so
there are no hash collisions. The pages of one parent are sorted by their tokens, so that the page
with the longest common prefix is found by bisection, however many users continue the same system
prompt. The tokens of a page are never a proper prefix of another page's tokens if both have the
same parent: the longer page serves both.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

Tokens = tuple[int, ...]


class PrefixIndex:
    """An index of pages by their tokens. `KVCache` decides which sequence owns a page."""

    def __init__(self, page_tokens: int, first_host_page: int) -> None:
        """Create an empty index.

        Args:
            page_tokens: the number of tokens of a full page; only full pages can be parents.
            first_host_page: pages with this number or a higher one are in host memory.
        """
        self._page_tokens = page_tokens
        self._first_host_page = first_host_page
        self._pages: dict[tuple[int, Tokens], int] = {}
        self._keys: dict[int, tuple[int, Tokens]] = {}
        self._serials: dict[int, int] = {}
        self._by_serial: dict[int, int] = {}
        self._next_serial = 1
        # (parent, whether on the host) -> the sorted tokens of the parent's pages there.
        self._siblings: dict[tuple[int, bool], list[Tokens]] = {}

    def __contains__(self, page: int) -> bool:
        return page in self._keys

    def serial(self, page: int) -> int:
        """Return the serial number by which child pages refer to this page, 1 or more.

        It stays the same when the page is renamed. First pages have the parent 0 or a negative one.
        """
        return self._serials[page]

    def page(self, serial: int) -> int:
        """Return the number of the indexed page with this serial number."""
        return self._by_serial[serial]

    def parent(self, page: int) -> int:
        """Return the serial number of the page before an indexed page, or minus the salt."""
        return self._keys[page][0]

    def tokens(self, page: int) -> Tokens:
        """Return the tokens whose KV an indexed page holds."""
        return self._keys[page][1]

    def walk(self, tokens: Sequence[int], parent: int) -> Iterator[int]:
        """Yield the full pages that hold the longest stored prefix of `tokens`, in order.

        The last token is left out: it has to run in any case.
        """
        for first in range(0, len(tokens) - self._page_tokens, self._page_tokens):
            page = self._pages.get((parent, tuple(tokens[first : first + self._page_tokens])))
            if page is None:
                return
            yield page
            parent = self._serials[page]

    def find_longest_match(self, parent: int, tokens: Tokens) -> tuple[int, int] | None:
        """Return the child page with the longest common prefix with `tokens`, and its length.

        Among pages with equally long common prefixes, one on the device is preferred. Return None
        if no page has the same first token.
        """
        best: tuple[int, Tokens] = (0, ())
        for siblings, place in self._find_places(parent, tokens):
            for own in siblings[max(place - 1, 0) : place + 1]:
                length = _common_length(own, tokens)
                if length > best[0]:
                    best = length, own
        return (self._pages[parent, best[1]], best[0]) if best[0] else None

    def find_covering(self, parent: int, tokens: Tokens) -> int | None:
        """Return a child page whose tokens begin with all of these tokens; None without one."""
        for siblings, place in self._find_places(parent, tokens):
            if place < len(siblings) and siblings[place][: len(tokens)] == tokens:
                return self._pages[parent, siblings[place]]
        return None

    def find_prefix(self, parent: int, tokens: Tokens) -> int | None:
        """Return the child page whose tokens are a proper prefix of these; None without one.

        There is at most one, and it is sorted directly before `tokens`: anything between the two
        would begin with it too.
        """
        for siblings, place in self._find_places(parent, tokens):
            if place and tokens[: len(siblings[place - 1])] == siblings[place - 1]:
                return self._pages[parent, siblings[place - 1]]
        return None

    def add(self, parent: int, tokens: Tokens, page: int) -> None:
        """Index a page for which `find_covering` and `find_prefix` both return None."""
        self._insert((parent, tokens), page)
        self._serials[page] = self._next_serial
        self._by_serial[self._next_serial] = page
        self._next_serial += 1

    def rename(self, old: int, new: int) -> None:
        """Change the number of an indexed page from `old` to `new`."""
        self._insert(self._remove_key(old), new)
        serial = self._serials[new] = self._serials.pop(old)
        self._by_serial[serial] = new

    def remove(self, page: int) -> None:
        """Remove a page from the index. It must not be the parent of an indexed page."""
        del self._pages[self._remove_key(page)]
        del self._by_serial[self._serials.pop(page)]

    def _find_places(self, parent: int, tokens: Tokens) -> Iterator[tuple[list[Tokens], int]]:
        """Yield a parent's sorted pages and the place where `tokens` would be inserted.

        The first result is for pages on the device, the second for pages on the host. A page that
        begins with `tokens` is at that place or after it.
        """
        for on_host in (False, True):
            siblings = self._siblings.get((parent, on_host), [])
            yield siblings, bisect_left(siblings, tokens)

    def _insert(self, key: tuple[int, Tokens], page: int) -> None:
        """Store a page under its key and add its tokens to the sorted list of its parent."""
        parent, tokens = key
        self._pages[key] = page
        self._keys[page] = key
        insort(self._siblings.setdefault((parent, page >= self._first_host_page), []), tokens)

    def _remove_key(self, page: int) -> tuple[int, Tokens]:
        """Remove a page from the sorted list of its parent, and return its key."""
        parent, tokens = self._keys.pop(page)
        place = parent, page >= self._first_host_page
        siblings = self._siblings[place]
        del siblings[bisect_left(siblings, tokens)]
        if not siblings:
            del self._siblings[place]
        return parent, tokens


def _common_length(one: Tokens, other: Tokens) -> int:
    """Return the length of the longest common prefix."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
