"""Every command and snippet of the documents is run, with a folder in place of a hub's model.

The commands find the files of `programs` first: `understudy serve` and `make serve` are ended
once they serve, other `make` targets are only planned, and `docker` is not run.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.demo_server import demo_server
from tests.documentation.documents import ROOT, Block, blocks

pytestmark = pytest.mark.slow

HUB_MODEL = "Qwen/Qwen2.5-7B-Instruct"  # a folder of that name stands for it
DEFAULT_URL = "http://127.0.0.1:8000"
PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with the model that the documents name."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "configs" / "demo" / "target", home / HUB_MODEL)
    return home


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    with demo_server(sys.executable, home) as (_, url):
        yield url.removesuffix("/v1")


def run(command: list[str], home: Path, text: str = "") -> str:
    """Run a command as a user in `home` would; return what it prints."""
    env = os.environ | {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "UNDERSTUDY_CACHE": str(home / "cache"),
        "PYTHONPATH": str(ROOT),
        "PYTHON": sys.executable,
        "ROOT": str(ROOT),
        "PATH": os.pathsep.join(
            [str(PROGRAMS), str(Path(sys.executable).parent), os.environ["PATH"]]
        ),
    }
    done = subprocess.run(
        command, input=text, cwd=home, env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_commands_succeed(block: Block, home: Path, url: str) -> None:
    assert run(["bash", "-euo", "pipefail"], home, block.text.replace(DEFAULT_URL, url))


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_programs_print_an_answer(block: Block, home: Path, url: str) -> None:
    if block.text.startswith("# "):
        pytest.skip("a file of an example, which the test of that example runs")
    assert run([sys.executable, "-"], home, block.text.replace(DEFAULT_URL, url)).strip()
