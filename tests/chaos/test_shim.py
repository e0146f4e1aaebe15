"""The preloaded library strikes calls on files below its folder, and no others."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.chaos.shim import NoCompiler, Shim

READ = """
import os, sys
def tried(call):
    try:
        return call()
    except OSError as error:
        return error.strerror
fd = os.open(sys.argv[1], os.O_RDWR)
size = 100
print([
    tried(lambda: os.pread(fd, size, 0).count(b"a")),
    tried(lambda: os.preadv(fd, [bytearray(size)], 0)),
    tried(lambda: os.pwrite(fd, b"a" * size, 0)),
    tried(lambda: os.fsync(fd)),
    tried(lambda: len(open(sys.argv[1], "rb").read())),
    tried(lambda: os.mkdir(sys.argv[1] + "-folder")),
])
"""
WHOLE = "[100, 100, 100, None, 100, None]"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shim")
    for name in ("tools", "disk", "other"):
        (made / name).mkdir()
    return made


@pytest.fixture(scope="module")
def shim(place: Path) -> Shim:
    try:
        return Shim(place / "tools", place / "disk", 1)
    except NoCompiler as error:
        pytest.skip(str(error))


def _run(shim: Shim, *arguments: str) -> str:
    command = [sys.executable, "-S", "-c", *arguments]
    return subprocess.run(
        command, env=os.environ | shim.environment, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({}, WHOLE),
        ({"read_short": 1.0}, "[50, 50, 100, None, 100, None]"),
        ({"read_end": 1.0}, "[0, 0, 100, None, 0, None]"),
        ({"read_flip": 1.0}, "[99, 100, 100, None, 100, None]"),
        (
            {"write_error": 1.0, "name_error": 1.0},
            "[100, 100, 'No space left on device', None, 100, 'No space left on device']",
        ),
        ({"write_short": 1.0}, "[100, 100, 50, None, 100, None]"),
        ({"sync_error": 1.0}, "[100, 100, 100, 'Input/output error', 100, None]"),
        ({"read_stall": 1.0, "write_stall": 1.0}, WHOLE),
        (
            {"read_error": 1.0},
            "['Input/output error', 'Input/output error', 100, None, 'Input/output error', None]",
        ),
    ],
)
def test_calls_are_struck_below_the_folder_only(
    shim: Shim, place: Path, tmp_path: Path, rates: Mapping[str, float], said: str
) -> None:
    before = shim.counts
    shim.strike(rates)
    for folder, expected in ((place / "disk" / tmp_path.name, said), (tmp_path, WHOLE)):
        folder.mkdir(exist_ok=True)
        path = folder / "00001.unit"
        path.write_bytes(b"a" * 100)
        assert _run(shim, READ, str(path)) == expected
    struck = {fault for fault, count in shim.counts.items() if count > before.get(fault, 0)}
    assert struck == set(rates)


def test_the_wall_clock_is_shifted_and_no_other(shim: Shim) -> None:
    shim.shift_clock(86_400.0)
    code = "import time; print(time.time(), time.monotonic())"
    shifted = [float(word) for word in _run(shim, code).split()]
    shim.shift_clock(0.0)
    right = [float(word) for word in _run(shim, code).split()]
    assert shifted[0] - right[0] > 80_000
    assert right[1] > shifted[1]
