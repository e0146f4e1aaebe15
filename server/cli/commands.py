"""The commands `understudy models`, `plan`, `pull` and `prune`; each returns its exit code."""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
import rich.console
from huggingface_hub.errors import CacheNotFound

from engine.cache_files import check_cache
from engine.errors import ModelError
from engine.messages import LoadProgress
from engine.weights import hub
from server.cli.console import Console, table
from server.cli.suggest import did_you_mean
from server.config.files import ConfigError, asked_folder, search_path
from server.config.model_file import GGUF
from server.config.registry import ModelEntry, Registry, make_entry, read_entries
from server.metrics.load_speed import LoadMeter
from server.models.plan_worker import as_json, refusal_text
from server.sizes import size_text

if TYPE_CHECKING:
    from engine.streaming.packed_cache import CacheEntry

EXIT_DOES_NOT_FIT = 2


def models(args: argparse.Namespace, env: Mapping[str, str], console: Console) -> int:
    """List the models of the registry with their downloads, and the entries of the cache."""
    entries = list(Registry(_read_entries(args, env)).entries.values())
    print(_registry_table(entries, _downloads()))
    from engine.streaming import packed_cache  # imports torch, which `pull` does not need

    packed = packed_cache.entries()
    if packed:
        print("\n" + _packed_table(packed))
    return 0


def pull(args: argparse.Namespace, env: Mapping[str, str], console: Console) -> int:
    """Download a model and its draft, if it has one."""

    meter = LoadMeter()

    def report(step: LoadProgress) -> None:
        console.progress(meter.measure(step, time.monotonic()))

    spec = _find_entry(args.id, _read_entries(args, env)).spec
    wanted = [(spec.target.source, spec.target.revision)]
    if spec.draft.source is not None:
        wanted.append((spec.draft.source, spec.draft.revision))
    for source, revision in wanted:
        console.line(f"{source} is at {hub.resolve(source, revision, report).folder}")
    return 0


def plan(args: argparse.Namespace, env: Mapping[str, str], console: Console) -> int:
    """Print where weights would be and how fast the model would run. Return 2 if it cannot fit."""
    from engine.planning.preview import (
        WhatIf,
        preview,  # imports torch and transformers, which only this command needs
    )
    from engine.planning.refusal import DoesNotFit
    from server.cli import plan_table

    check_cache()
    if args.device_gbps is not None and args.device_memory is None:
        raise ConfigError("--device-gbps is of another card: give its --device-memory too")
    entry = _find_entry(args.model, _read_entries(args, env))
    what_if = WhatIf(
        args.device_memory,
        args.ram,
        args.link_gbps,
        args.disk_gbps,
        args.device_gbps,
        args.users,
    )
    try:
        found = preview(entry.spec, what_if)
    except DoesNotFit as error:
        given = [name for name in ("device_memory", "ram") if getattr(args, name) is not None]
        text, _ = refusal_text(error, given, lambda name: f"--{name.replace('_', '-')}")
        console.line(f"understudy: {args.model} does not fit. {text}")
        return EXIT_DOES_NOT_FIT
    if args.json:
        print(as_json(found, entry, what_if))
    else:
        plan_table.show(found, rich.console.Console(highlight=False))
    return 0


def prune(args: argparse.Namespace, env: Mapping[str, str], console: Console) -> int:
    """Remove the entries of the cache that no engine uses, after asking on the terminal."""
    from engine.streaming import packed_cache  # imports torch, which `pull` does not need

    packed_cache.remove_leftovers()
    packed = packed_cache.entries()
    if not packed:
        print("The cache is empty.")
        return 0
    print(_packed_table(packed))
    total = size_text(sum(entry.nbytes for entry in packed))
    if not args.yes and not _confirm(
        f"Remove {len(packed)} entries of the cache ({total})? [y/N] "
    ):
        return 1
    removed = 0
    for entry in packed:
        try:
            packed_cache.remove(entry)
            removed += entry.nbytes
        except ModelError as error:
            console.line(f"kept {error}")
    print(f"Removed {size_text(removed)}.")
    return 0


def _confirm(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        print()
        raise ConfigError("there is no input; give --yes to remove without asking") from None


def _read_entries(args: argparse.Namespace, env: Mapping[str, str]) -> list[ModelEntry]:
    return read_entries(search_path(asked_folder(args.config, env), Path.cwd(), env))


def _find_entry(name: str, entries: Sequence[ModelEntry]) -> ModelEntry:
    known = {word: entry for entry in reversed(entries) for word in (entry.id, *entry.aliases)}
    if name in known:
        return known[name]
    try:
        return make_entry(name)
    except ConfigError as error:
        raise ConfigError(f"{error}.{did_you_mean(name, known)}") from error


def _registry_table(entries: Sequence[ModelEntry], downloads: Mapping[str, int]) -> str:
    rows = []
    for entry in entries:
        source = entry.spec.target.source
        repository = source.partition(":")[0]  # without the quantization of GGUF files
        if source.startswith("/"):
            have = "file" if source.endswith(GGUF) else "folder"
        else:
            have = size_text(downloads[repository]) if repository in downloads else "-"
        rows.append((entry.id, source, entry.spec.draft.method or "auto", have, str(entry.path)))
    return table(("ID", "SOURCE", "DRAFT", "DOWNLOADED", "FILE"), rows)


def _packed_table(packed: "Sequence[CacheEntry]") -> str:
    rows = [
        (
            entry.model,
            _content(entry),
            size_text(entry.nbytes),
            _day(entry.last_used),
            str(entry.path),
        )
        for entry in packed
    ]
    return table(("CACHED", "CONTENT", "SIZE", "LAST USED", "PATH"), rows)


def _content(entry: "CacheEntry") -> str:
    if entry.is_packed:
        return "packed weights"
    if entry.holds_kv:
        return "KV of prompts and answers"
    return "made of a GGUF file" if entry.is_usable else "made of a GGUF file that is gone"


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))


def _downloads() -> dict[str, int]:
    """Return the bytes of each repository in the hub's cache, by its id."""
    try:
        repos = huggingface_hub.scan_cache_dir().repos
    except CacheNotFound:
        return {}
    return {repo.repo_id: repo.size_on_disk for repo in repos}
