"""Extract the examples of plug-ins from docstrings and documents, so that tests can run them."""

import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


def example_in(docstring: str | None) -> str:
    """Return the code of a docstring's example: the indented lines after a colon."""
    assert docstring is not None
    found = re.search(r":\n\n((?: {4}.*\n|\n)+)", docstring)
    assert found is not None, "no line ends with a colon before indented code"
    return textwrap.dedent(found[1])


def files_in(document: str) -> dict[str, str]:
    """Return the files of a Markdown document: code blocks that begin with `# path/of/file.py`."""
    blocks = re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```$", document, re.M | re.S)
    return dict(blocks)


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Write files by their paths below a folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@contextmanager
def added(folder: Path, *packages: ModuleType) -> Iterator[None]:
    """Add the modules below `folder` to the packages during a `with` block.

    The file of a module `a.b.c` is `folder`/a/b/c.py.
    """
    before = {package: list(package.__path__) for package in packages}
    for package in packages:
        package.__path__ = [*before[package], str(folder / package.__name__.replace(".", "/"))]
    try:
        yield
    finally:
        for package, path in before.items():
            package.__path__ = path
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", "")).startswith(str(folder)):
                del sys.modules[name]
