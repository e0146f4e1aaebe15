"""Settings of all tests: no spinning threads, no network, cheap garbage collection."""

import gc
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.demo_server import COMPILED

# This must precede the import of torch: spinning OpenMP threads slow each other on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
# Packed weights go to a folder that is removed after the test run.
_CACHE = TemporaryDirectory(prefix="understudy-tests-")
os.environ["UNDERSTUDY_CACHE"] = _CACHE.name
# Compiled code is kept from run to run, because compiling it takes 20 s.
COMPILED.mkdir(parents=True, exist_ok=True)
Path(_CACHE.name, COMPILED.name).symlink_to(COMPILED)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that share a server of the demo model first.

    Towards the end the processes that run tests take some from each other, and each of them would
    start a server.
    """
    items.sort(key=lambda item: "shared_demo" not in getattr(item, "fixturenames", ()))


def pytest_collection_finish() -> None:
    """Exempt the imported modules from garbage collection.

    Each load of a model collects garbage, which took longer than the rest of loading a tiny one,
    because torch and transformers alone are some 400,000 objects.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_logstart(location: tuple[str, int | None, str]) -> None:
    """Exempt also what the tests of other files have imported, such as numba."""
    if location[0] not in _begun:
        _begun.add(location[0])
        gc.collect()
        gc.freeze()


_begun: set[str] = set()  # files with tests
