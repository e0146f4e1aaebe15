"""The pretended CUDA device as a fixture."""

import pytest

from tests.engine.order.pretended_cuda import PretendedCuda, install


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> PretendedCuda:
    pretended = PretendedCuda()
    install(monkeypatch, pretended)
    return pretended
