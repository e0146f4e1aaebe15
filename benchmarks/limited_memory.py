"""Serve a model from disk within a memory limit far below the size of its weights.

    python -m benchmarks.limited_memory --folder /var/tmp/limited --json

The benchmark makes a random llama checkpoint (1.5 B parameters, bfloat16), starts the real server
in a memory cgroup of 40 % of the checkpoint's size, and requests tokens: tier disk, no draft. The
files of the disk tier are packed within the limit too. The exit code is 1 if the server did not
answer or the kernel's OOM killer ended a process.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any

import httpx

from benchmarks.memory_group import MemoryGroup, NoMemoryGroup, memory_group
from benchmarks.random_model import Shape, forget_pages, make_checkpoint

ROOT = Path(__file__).parent.parent
MODEL = "limited"
POLL_S = 0.2
STOP_S = 20.0
LOG_LINES = 20  # lines of the server's log that are shown if it fails


class ServerFailed(Exception):
    """The server ended, was not ready in time or did not answer; the message says which."""


@dataclass(frozen=True)
class Report:
    """The figures of one run; sizes are in bytes."""

    parameters: int
    checkpoint_bytes: int
    limit_bytes: int
    peak_bytes: int  # of the whole group, page cache included
    peak_anonymous_bytes: int  # memory that is not page cache, by sampling
    oom_kills: int
    start_s: float  # until the server was ready, packing included
    prompt_tokens: int
    tokens: int
    passes: int
    prompt_ms: float
    ms_per_pass: float  # between the first token and the last
    disk_bytes: int  # read from storage while the request ran
    disk_gbps: float  # 1e9 bytes a second, over the whole request
    load_average: float  # of the machine at the end; other load slows the passes
    plan: str

    def __str__(self) -> str:
        gb, mb = 1e9, 1e6
        return "\n".join(
            [
                f"checkpoint     {self.checkpoint_bytes / gb:.2f} GB"
                f" ({self.parameters / gb:.2f} B parameters, bfloat16)",
                f"memory limit   {self.limit_bytes / gb:.2f} GB"
                f" ({100 * self.limit_bytes / self.checkpoint_bytes:.0f} %)",
                f"peak           {self.peak_bytes / gb:.2f} GB with page cache,"
                f" {self.peak_anonymous_bytes / mb:.0f} MB without",
                f"OOM kills      {self.oom_kills}",
                f"start          {self.start_s:.1f} s, packing included",
                f"answer         {self.tokens} tokens in {self.passes} passes, prompt of "
                f"{self.prompt_tokens} in {self.prompt_ms:.0f} ms",
                f"pass           {self.ms_per_pass:.0f} ms",
                f"disk           {self.disk_bytes / gb:.2f} GB read, {self.disk_gbps:.2f} GB/s",
                f"load average   {self.load_average:.1f} on {os.cpu_count()} cores",
                f"plan           {self.plan}",
            ]
        )


@dataclass(frozen=True)
class Answer:
    """The figures of one request, and the bytes read from disk meanwhile."""

    timings: dict[str, Any]
    seconds: float
    disk_bytes: int


def main() -> int:
    args = _make_parser().parse_args()
    try:
        if args.folder is not None:
            report = measure(args.folder, args)
        else:
            with tempfile.TemporaryDirectory(prefix="understudy-limited-") as folder:
                report = measure(Path(folder), args)
    except (NoMemoryGroup, ServerFailed) as error:
        print(f"limited_memory: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(report), indent=2) if args.json else report)
    return int(report.oom_kills > 0)


def measure(folder: Path, args: argparse.Namespace) -> Report:
    """Make the checkpoint in `folder`, serve it within the limit and request tokens."""
    log = folder / "server.log"
    shutil.rmtree(folder / "packed", ignore_errors=True)  # packing is part of the measurement
    with memory_group("understudy-limited") as group:
        checkpoint = make_checkpoint(folder / "checkpoint", Shape(layers=args.layers))
        limit = checkpoint.nbytes * args.percent // 100
        _write_config(folder / "config", checkpoint.folder, args.device_bytes)
        forget_pages(folder)
        group.limit(limit)
        began = time.monotonic()
        with _server(group, folder, log, args.timeout) as url:
            start_s = time.monotonic() - began
            answer = _ask(url, group, args.prompt, args.tokens, args.timeout)
        kills, peak, anonymous = group.num_oom_kills, group.peak_bytes, group.peak_anonymous_bytes
    timings = answer.timings
    return Report(
        parameters=checkpoint.num_parameters,
        checkpoint_bytes=checkpoint.nbytes,
        limit_bytes=limit,
        peak_bytes=peak,
        peak_anonymous_bytes=anonymous,
        oom_kills=kills,
        start_s=start_s,
        prompt_tokens=timings["prompt_n"],
        tokens=timings["predicted_n"],
        passes=timings["passes"],
        prompt_ms=timings["prompt_ms"],
        ms_per_pass=timings["predicted_ms"] / max(timings["passes"] - 1, 1),
        disk_bytes=answer.disk_bytes,
        disk_gbps=answer.disk_bytes / answer.seconds / 1e9,
        load_average=os.getloadavg()[0],
        plan=_plan_of(log),
    )


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.limited_memory", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="where checkpoint and packed copy are made (twice the weights' bytes); the next run "
        "uses the checkpoint again (default: a temporary folder, removed at the end)",
    )
    parser.add_argument(
        "--percent", type=int, default=40, help="limit in percent of the checkpoint"
    )
    parser.add_argument(
        "--layers", type=int, default=Shape().layers, help="layers of 45 M parameters each"
    )
    parser.add_argument("--prompt", type=int, default=32, help="number of tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=16, help="number of tokens to request")
    parser.add_argument(
        "--device-bytes", default="auto", help="memory.device of the model, for example 600MiB"
    )
    parser.add_argument(
        "--timeout", type=float, default=1200, help="seconds for the start, and for the answer"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


def _write_config(folder: Path, source: Path, device_bytes: str) -> None:
    """Write a configuration folder with one model; its file is JSON, which is YAML too."""
    model = {
        "target": {"source": str(source.resolve())},
        "draft": {"method": "none"},
        "device": "cpu",
        "memory": {"device": device_bytes},
        "stream": {"tier": "disk"},
    }
    (folder / "models").mkdir(parents=True, exist_ok=True)
    (folder / "models" / f"{MODEL}.yaml").write_text(json.dumps(model), encoding="utf-8")


@contextmanager
def _server(group: MemoryGroup, folder: Path, log: Path, timeout: float) -> Iterator[str]:
    """Start the real server in the group and yield its URL. Raises `ServerFailed`."""
    port = _free_port()
    command = [sys.executable, "-m", "server.cli.main", "serve", MODEL]
    command += ["--config", str(folder / "config"), "--port", str(port)]
    environment = {**os.environ, "UNDERSTUDY_CACHE": str((folder / "packed").resolve())}
    with log.open("wb") as lines:
        process = group.start(command, cwd=ROOT, env=environment, stderr=lines, stdout=lines)
    try:
        url = f"http://127.0.0.1:{port}"
        _await_ready(url, process, log, group, time.monotonic() + timeout)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S)
        except TimeoutExpired:
            process.kill()
            process.wait()


def _await_ready(
    url: str, process: "Popen[bytes]", log: Path, group: MemoryGroup, deadline: float
) -> None:
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/ready").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass  # the server does not listen yet
        time.sleep(POLL_S)
    last = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
    raise ServerFailed(
        f"the server did not become ready ({group.num_oom_kills} OOM kills); its last lines:\n"
        + last
    )


def _ask(url: str, group: MemoryGroup, prompt: int, tokens: int, timeout: float) -> Answer:
    """Request a greedy completion of exactly `tokens` tokens to a prompt of token ids."""
    body = {
        "prompt": [3 + i % 1000 for i in range(prompt)],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    before, began = group.disk_bytes, time.monotonic()
    try:
        response = httpx.post(f"{url}/v1/completions", json=body, timeout=timeout)
    except httpx.TransportError as error:
        raise ServerFailed(f"no answer ({group.num_oom_kills} OOM kills): {error!r}") from error
    if response.status_code != httpx.codes.OK:
        raise ServerFailed(f"status {response.status_code}: {response.text}")
    seconds, read = time.monotonic() - began, group.disk_bytes - before
    return Answer(response.json()["timings"], seconds, read)


def _plan_of(log: Path) -> str:
    found = re.search(r"\d+ of \d+ units resident.*", log.read_text(errors="replace"))
    return found[0] if found else "unknown"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
