"""The KV pages that a server holds for the holder of an API key, as far as it can tell.

Only pages of texts that came with the same key are named, so that nobody learns what others have
sent. The engine does not say which pages it drops: of each key's pages, the least recently used
ones are forgotten when they are more than it can hold.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from itertools import count
from secrets import token_hex

from cluster.page_hashes import PageHash
from cluster.report import PageChange, page_name

MOST_CHANGES = 4096  # that are kept for reports by difference
MOST_OWNERS = 64  # whose pages are noted


class HeldPages:
    """The pages of one key's texts, and how they have changed.

    Args:
        most: the number of pages that the engine can hold.
        key: the key under which the pages are named.
    """

    def __init__(self, most: int, key: bytes = b"") -> None:
        self._most = most
        self._key = key
        self._pages: OrderedDict[PageHash, None] = OrderedDict()  # least recently used first
        self._changes: deque[tuple[int, PageHash]] = deque(maxlen=MOST_CHANGES)
        self._numbers = count(1)
        self.number = 0  # of the latest change

    def __len__(self) -> int:
        return len(self._pages)

    def add(self, pages: Sequence[PageHash]) -> None:
        """Note that the pages of a text, in order, were stored or used."""
        for page in reversed(pages):  # the first page last: the engine drops it last, too
            if page not in self._pages:
                self._note(page)
            self._pages[page] = None
            self._pages.move_to_end(page)
        while len(self._pages) > self._most:
            self._note(self._pages.popitem(last=False)[0])

    def change_since(self, number: int) -> PageChange:
        """Return the change since the change of this number, or all pages if it is too long ago."""
        oldest = self._changes[0][0] if self._changes else self.number + 1
        if not oldest - 1 <= number <= self.number:
            return PageChange(added=self._named(self._pages), is_whole=True)
        changed = {page for at, page in self._changes if at > number}
        added = [page for page in changed if page in self._pages]
        return PageChange(self._named(added), self._named(changed - set(added)))

    def _named(self, pages: Iterable[PageHash]) -> list[bytes]:
        return [page_name(page, self._key) for page in pages]

    def _note(self, page: PageHash) -> None:
        self.number = next(self._numbers)
        self._changes.append((self.number, page))


class PageBooks:
    """The pages of an engine by the key that their texts came with.

    Attributes:
        instance: a random name, which changes when the engine has lost all pages.
    """

    def __init__(self) -> None:
        self._books: OrderedDict[str, HeldPages] = OrderedDict()
        self.instance = token_hex(8)

    def of(self, owner: str, most: int, key: bytes = b"") -> HeldPages:
        """Return the pages of one owner; the books of those who came last are kept.

        Args:
            most: the number of pages that the engine can hold.
            key: the key under which they are named.
        """
        book = self._books.setdefault(owner, HeldPages(most, key))
        self._books.move_to_end(owner)
        while len(self._books) > MOST_OWNERS:
            self._books.popitem(last=False)
        return book

    def clear(self) -> None:
        """Note that the engine has lost all pages."""
        self._books.clear()
        self.instance = token_hex(8)
