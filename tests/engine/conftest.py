"""Fixtures that close all engines after each test, and prepare what is equal only once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from engine.drafting.model import separate_draft
from engine.model import guard
from engine.planning import blueprint, probe
from engine.text import check
from tests.engine.models import close_all

# No test fails because an example takes long.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def closed_engines() -> Iterator[None]:
    yield
    close_all()


@pytest.fixture(autouse=True, scope="session")
def passes_timed_once() -> Iterator[None]:
    """Reuse the times of a model's passes when it is loaded again.

    Loading would otherwise spend most of its time on timing passes of the same model.
    """
    measured: dict[Any, probe.MeasuredPass] = {}
    measure = probe.pass_times

    def pass_times(blueprint: Any, device: Any) -> probe.MeasuredPass:
        config = {**blueprint.config.to_dict(), "_name_or_path": ""}
        key = (type(device), str(device), blueprint.dtype, blueprint.strict, str(config))
        if key not in measured:
            measured[key] = measure(blueprint, device)
        return measured[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "pass_times", pass_times)
        yield


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore the number of threads after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def tokenizers_checked_once() -> Iterator[None]:
    """Check a tokenizer file that has passed only once under the same limits.

    Each check starts a process, which took longer than the rest of loading a tiny model.
    """
    passed: set[tuple[object, ...]] = set()
    find_fault = check.fault

    def fault(path: Path) -> str | None:
        key = (path.read_bytes(), check.MEMORY, check.CPU_SECONDS, check.SECONDS)
        if key in passed:
            return None
        found = find_fault(path)
        if found is None:
            passed.add(key)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "fault", fault)
        yield


@pytest.fixture(autouse=True, scope="session")
def decoders_checked_once() -> Iterator[None]:
    """Check the decoder once for each configuration, also in tests that have their own cache.

    The tests of the check itself call it without this memory.
    """
    passed: set[str] = set()
    check_decoder = guard.check_decoder

    def check_once(config: Any, folder: Path) -> None:
        key = str({**config.to_dict(), "_name_or_path": ""})
        if key not in passed:
            check_decoder(config, folder)
            passed.add(key)

    with pytest.MonkeyPatch.context() as patch:
        for module in (guard, blueprint, separate_draft):
            patch.setattr(module, "check_decoder", check_once)
        yield
