"""A test of what is published: the wheel that is built of the sdist, in an empty environment."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests import architecture

ROOT = Path(__file__).parent.parent
NEED_RAY = ("cluster.app", "cluster.router")  # all other modules can be imported without it
# Imports every module that a file names a line, and prints those that cannot be imported.
IMPORT_ALL = """
import importlib, pathlib, sys
for name in pathlib.Path(sys.argv[1]).read_text().split():
    try:
        importlib.import_module(name)
    except Exception as error:
        print(f"{name}: {error!r}")
"""


def build(folder: Path, target: str, out: Path) -> Path:
    """Build an sdist or a wheel of the project in `folder`, and return its file."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target]
    command += ["--directory", str(out)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    (built,) = out.iterdir()
    return built


@pytest.mark.slow
def test_every_module_of_the_wheel_can_be_imported(tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    sdist = build(ROOT, "sdist", tmp_path / "sdist")
    subprocess.run(["tar", "-xf", str(sdist), "-C", str(unpacked)], check=True, timeout=120)
    (source,) = unpacked.iterdir()
    installed = tmp_path / "installed"
    with zipfile.ZipFile(build(source, "wheel", tmp_path / "wheel")) as wheel:
        wheel.extractall(installed)
    own = architecture.own_modules(ROOT)
    missing = [name for name in own if name not in architecture.own_modules(installed)]
    assert missing == []
    page = {path.relative_to(ROOT) for path in (ROOT / "server/page").rglob("*")}
    assert page and all((installed / path).exists() for path in page)
    assert (installed / "server/configs/models").is_dir()
    # Only CUDA builds of torch have Triton, which the files of kernels import; Ray is an extra.
    names = [name for name in own if not name.endswith("_kernel") and name not in NEED_RAY]
    (tmp_path / "names").write_text("\n".join(names))
    # `-S` leaves out this environment's paths, in which an editable install names this folder.
    packages = sysconfig.get_path("purelib")
    result = subprocess.run(
        [sys.executable, "-S", "-c", IMPORT_ALL, str(tmp_path / "names")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), packages])},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert (result.stdout, result.returncode) == ("", 0), result.stderr
