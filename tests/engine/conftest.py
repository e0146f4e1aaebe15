"""Fixtures that close all engines after each test, restore threads, and time models only once."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

from engine.planning import probe
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
