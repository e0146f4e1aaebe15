"""The documents for users and developers, their code blocks and their links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "configs/demo/README.md"),
    *("docs/api.md", "docs/architecture.md", "docs/extending.md", "docs/performance.md"),
    *("docs/settings.md", "docs/troubleshooting.md", "docs/clients.md", "docs/gpu.md"),
)
RUN_BY_CLIENTS = "docs/clients.md"  # its blocks need the programs that tests/clients installs


@dataclass(frozen=True)
class Block:
    """A fenced code block of a document."""

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def text_of(document: str) -> str:
    """Return the text of a document, named by its path from the repository's root."""
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(*languages: str) -> list[Block]:
    """Return the code blocks in these languages; without any, all blocks.

    Those of `RUN_BY_CLIENTS` are left out.
    """
    return [
        block
        for document in DOCUMENTS
        if document != RUN_BY_CLIENTS
        for block in blocks_of(document)
        if not languages or block.language in languages
    ]


def blocks_of(document: str) -> Iterator[Block]:
    """Yield the code blocks of one document."""
    text = text_of(document)
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(document, text.count("\n", 0, found.start()) + 1, found[1], found[2])


def links_of(document: str) -> list[str]:
    """Return the targets of a document's links that do not leave the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text_of(document))
    return [target for target in targets if "://" not in target]


def anchors_of(document: str) -> set[str]:
    """Return the anchors of a document's headings, as code hosting sites make them."""
    headings = re.findall(r"^#+ (.+)$", text_of(document), re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }
