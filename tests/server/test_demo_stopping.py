"""The real server with a loaded model is interrupted.

This file is sorted behind the others that use the shared server, which ends here.
"""

import signal
from pathlib import Path

import httpx

from server.cli.servers import running_servers
from tests.demo_server import DemoServer


def test_commands_find_a_running_server(served_demo: DemoServer) -> None:
    process, url = served_demo
    lines = Path(f"/proc/{process.pid}/environ").read_text(encoding="utf-8").split("\0")
    env = dict(line.split("=", 1) for line in lines if "=" in line)
    assert [(own.pid, f"{own.url}/v1") for own in running_servers(env)] == [(process.pid, url)]


def test_the_status_has_where_the_weights_are(served_demo: DemoServer) -> None:
    models = httpx.get(f"{served_demo[1]}/status").json()["models"]
    (demo,) = (model for model in models if model["state"] == "loaded")
    resident, total = demo["tiers"].get("resident", 0), sum(demo["tiers"].values())
    assert demo["plan"].startswith(f"{resident} of {total} units resident")


def test_an_interrupt_ends_the_server_with_status_0(served_demo: DemoServer) -> None:
    server, url = served_demo
    prompt = {"prompt": "Once", "max_tokens": 1}
    assert httpx.post(f"{url}/completions", json=prompt, timeout=60).status_code == 200
    server.send_signal(signal.SIGINT)
    assert server.wait(60) == 0
