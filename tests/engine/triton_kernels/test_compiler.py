"""Tests of the decision whether Triton's kernels can be used. They need no Triton."""

import logging
from collections.abc import Callable
from typing import NoReturn

import pytest
import torch

from engine.triton_kernels import attention, compiler

DEVICE = torch.device("cuda:0")


def fail() -> NoReturn:
    raise RuntimeError("Failed to find C compiler")


def succeed() -> None:
    pass


@pytest.mark.parametrize(
    ("is_installed", "capability", "trial", "reason"),
    [
        (True, (8, 0), succeed, ""),
        (True, (12, 0), succeed, ""),
        (True, (9, 0), fail, "Failed to find C compiler"),
        (True, (7, 5), succeed, "compute capability is 7.5"),
        (False, (9, 0), succeed, "not installed"),
    ],
)
def test_the_log_says_once_why_kernels_cannot_run(
    is_installed: bool,
    capability: tuple[int, int],
    trial: Callable[[], None],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(compiler, "is_installed", lambda: is_installed)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(attention, "_try", lambda device: trial())
    attention.can_attend.cache_clear()
    with caplog.at_level(logging.WARNING):
        found = [attention.can_attend(DEVICE) for _ in range(2)]
    attention.can_attend.cache_clear()
    assert found == [reason == ""] * 2
    if reason:
        (record,) = caplog.records
        assert reason in record.getMessage()
        assert record.getMessage().startswith(
            "cuda:0: attention under strict numerics is computed in float64"
        )
    else:
        assert not caplog.records


def test_nothing_is_tried_on_a_cpu() -> None:
    assert not attention.can_attend(torch.device("cpu"))
