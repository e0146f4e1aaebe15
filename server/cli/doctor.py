"""The command `understudy doctor`: what this machine has, and what would go wrong on it."""

import argparse
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.errors import escaped
from server.cli.servers import running_servers
from server.config.files import ConfigError, asked_folder, search_path
from server.config.registry import read_entries
from server.config.settings import load_settings
from server.sizes import size_text

if TYPE_CHECKING:
    from engine.planning.checkup import Checkup


@dataclass(frozen=True)
class Finding:
    """Something that would go wrong, and what to do about it."""

    what: str
    remedy: str
    is_fatal: bool


def doctor(args: argparse.Namespace, env: Mapping[str, str], screen: Console) -> int:
    """Print what this machine has and what would go wrong. Return 1 if nothing can be served."""
    from engine.planning.checkup import check_machine  # imports torch

    found = check_machine()
    findings = [
        *(Finding(one.what, one.remedy, one.is_fatal) for one in found.problems),
        *_configuration(args, env),
    ]
    if args.json:
        print(
            json.dumps({**asdict(found), "problems": [asdict(one) for one in findings]}, indent=2)
        )
    else:
        _show(found, findings, screen)
    return 1 if any(one.is_fatal for one in findings) else 0


def _configuration(args: argparse.Namespace, env: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is wrong in the files of settings and models, and with the port."""
    try:
        folders = search_path(asked_folder(args.config, env), Path.cwd(), env)
        settings = load_settings(folders, env, {})
        read_entries(folders)
    except ConfigError as error:
        yield Finding(str(error), "correct it; docs/settings.md lists every key", is_fatal=True)
        return
    urls = [server.url for server in running_servers(env)]
    if any(url.endswith(f":{settings.port}") for url in urls):
        return
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", settings.port)) == 0:
            what = f"another program listens on port {settings.port}"
            yield Finding(what, "end it, or choose another port with --port", is_fatal=False)


def _show(found: "Checkup", findings: list[Finding], screen: Console) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _rows(found):
        table.add_row(name, escape(escaped(value)))
    screen.print(table)
    if not findings:
        screen.print("\nNo problem was found.")
    for one in findings:
        mark = "[red]problem[/red]" if one.is_fatal else "[yellow]note[/yellow]"
        screen.print(f"\n{mark}: {escape(escaped(one.what))}\n  {escape(escaped(one.remedy))}")


def _rows(found: "Checkup") -> Iterator[tuple[str, str]]:
    """Yield names and figures, those of a device with its own memory only where there is one."""
    yield "understudy", f"{found.version}, Python {found.python}"
    yield "system", found.system
    installed = [f"{name} {version or '(missing)'}" for name, version in found.libraries.items()]
    yield "libraries", ", ".join(installed)
    yield "CPU", f"{found.cpu}, {found.num_cores} cores"
    yield "RAM", f"{size_text(found.free_ram)} of {size_text(found.ram)} free"
    yield "NVIDIA driver", found.driver or "not loaded"
    yield "PyTorch for", f"CUDA {found.torch_cuda}" if found.torch_cuda else "CPUs"
    yield "device", found.device
    if found.device_memory is not None:
        yield "device memory", f"{size_text(found.device_memory)} free"
        yield "pinned memory", "works" if found.is_pinned else "refused"
    if found.link_gbps is not None:
        yield "link", f"{found.link_gbps:.1f} GB/s from RAM to the device"
    free = "unknown" if found.free_disk is None else size_text(found.free_disk)
    speed = "not writable" if found.disk_gbps is None else f"reads {found.disk_gbps:.1f} GB/s"
    yield "cache", f"{found.cache}, {free} free, {speed}"
