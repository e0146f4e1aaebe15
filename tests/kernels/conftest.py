"""Tests of Triton kernels without a GPU: `make test-kernels` runs them.

Triton reads TRITON_INTERPRET when it is imported, so the tests of the two folders run in two
processes. Without Triton, or in the process of the other folder, they are skipped. Test modules
import kernels inside their functions, so that they can be collected everywhere.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.triton_kernels.compiler import is_installed

FOLDER = Path(__file__).parent
# What the interpreter of Triton 3.6 does for the bounds of a loop; it is an error in numpy 2.4.
IGNORED = "ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning"


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skip the tests of kernels that cannot run in this process."""
    is_interpreter = os.environ.get("TRITON_INTERPRET") == "1"
    for item in items:
        if FOLDER not in item.path.parents:
            continue
        needs_interpreter = FOLDER / "interpreted" in item.path.parents
        if not is_installed():
            item.add_marker(pytest.mark.skip("needs Triton: use `make test-kernels`"))
        elif needs_interpreter != is_interpreter:
            wanted = int(needs_interpreter)
            item.add_marker(
                pytest.mark.skip(f"needs TRITON_INTERPRET={wanted}: use `make test-kernels`")
            )
        elif needs_interpreter:
            item.add_marker(pytest.mark.filterwarnings(IGNORED))
