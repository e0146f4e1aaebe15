"""The real server with a loaded model is interrupted.

This file is sorted behind the others that use the shared server, which ends here.
"""

import signal

import httpx

from tests.demo_server import DemoServer


def test_an_interrupt_ends_the_server_with_status_0(served_demo: DemoServer) -> None:
    server, url = served_demo
    prompt = {"prompt": "Once", "max_tokens": 1}
    assert httpx.post(f"{url}/completions", json=prompt, timeout=60).status_code == 200
    server.send_signal(signal.SIGINT)
    assert server.wait(60) == 0
