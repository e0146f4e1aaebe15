"""A share of tests/gpu, or the tests of streams under torch's checker of races, in this process.

The outcome of each test is recorded when it ends, and the name of the one that runs, so that a test
that hangs is known. Every process collects all tests and takes each fourth one, which spreads those
that load whole engines evenly.
"""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.first_gpu_run.lab import Lab
from benchmarks.first_gpu_run.record import Results
from benchmarks.first_gpu_run.stages import TEST_PROCESSES
from benchmarks.runs import ROOT

SANITIZED = ("test_stream_cuda.py", "test_pass_cuda.py", "test_kv_cuda.py")
DRY_FILE = "test_int4_cuda.py"  # of a dry run: collecting all files takes seconds
LAST = "test_exactness_cuda"  # whole engines of all families: the longest tests
LONGEST_TEST = 60  # seconds after which the log says where a test is
# torch's own warnings (that a debugging mode is a prototype, for example) must not fail a test.
ARGUMENTS = (
    "-W", "default", "-p", "no:cacheprovider", "-v", "--tb=short",
    "-o", f"faulthandler_timeout={LONGEST_TEST}", "--rootdir", str(ROOT),
)  # fmt: skip


def run(lab: Lab, out: Results) -> None:
    """Run this stage's share of the tests."""
    folder = ROOT / "tests" / "gpu"
    if lab.part == "sanitizer":
        lab.require_device("torch's checker of races needs a CUDA device")
        # As TORCH_CUDA_SANITIZER=1 does when torch is imported.
        from torch.cuda import _sanitizer

        enable: Callable[[], None] = _sanitizer.enable_cuda_sanitizer
        enable()
        share, paths = slice(None), [str(folder / name) for name in SANITIZED]
    else:
        share = slice(int(lab.part) - 1, None, TEST_PROCESSES)
        paths = [str(lab.choose(folder, folder / DRY_FILE))]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the tests need none
    with torch.inference_mode(False):
        code = pytest.main([*ARGUMENTS, *paths], plugins=[_Recorder(lab, out, share)])
    out["exit_code"] = int(code)
    out["running"] = None


class _Recorder:
    """A plugin of pytest that chooses the tests of a share and records their outcomes."""

    def __init__(self, lab: Lab, out: Results, share: slice) -> None:
        self._lab = lab
        self._out = out
        self._share = share
        self._outcomes: Counter[str] = Counter()
        self._slowest: dict[str, float] = {}
        self._failures: dict[str, str] = {}
        self._skipped: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: LAST in item.nodeid)
        items[:] = items[self._share]
        self._out["chosen"] = len(items)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._out["running"] = nodeid

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._outcomes[report.outcome] += 1
            self._slowest[report.nodeid] = round(report.duration, 2)
        if report.outcome == "skipped":
            self._skipped[str(report.longrepr[-1])] += 1
        if report.outcome == "failed":
            self._failures[report.nodeid] = str(report.longrepr)[-1500:]
        self._save()

    def pytest_collectreport(self, report: Any) -> None:
        if report.outcome == "failed":
            self._failures[report.nodeid] = str(report.longrepr)[-1500:]
            self._save()
        elif report.outcome == "skipped":  # a whole file
            self._skipped[str(report.longrepr[-1])] += 1
            self._save()

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        if self._lab.seconds_left < 0:
            item.session.shouldstop = "the stage's time is over"

    def _save(self) -> None:
        slowest = sorted(self._slowest.items(), key=lambda own: own[1], reverse=True)[:8]
        self._out.update(
            skipped=dict(self._skipped), failures=self._failures, slowest=dict(slowest)
        )
        self._out["outcomes"] = dict(self._outcomes)
