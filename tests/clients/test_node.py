"""Run the tests of clients for Node, which `make test-clients` has installed."""

import os
import shutil
import subprocess

import pytest

from tests.demo_server import ROOT

INSTALLED = ROOT / "build" / "clients" / "node"


@pytest.mark.parametrize(
    ("script", "package"),
    [("openai", "openai"), ("anthropic", "@anthropic-ai/sdk"), ("ai", "ai")],
)
def test_a_client_for_node(url: str, script: str, package: str) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (INSTALLED / "node_modules" / package).exists():
        pytest.skip(f"{package} could not be installed into {INSTALLED}")
    command = ["node", "--test", f"{INSTALLED}/{script}.mjs"]
    env = {**os.environ, "UNDERSTUDY_URL": url}
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout + ran.stderr
