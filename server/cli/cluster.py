"""The command `understudy cluster serve`: this server in front, its engines in Ray's replicas."""

import argparse
import functools
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from cluster.authentication import start_here, want_token
from cluster.scaling import Scaling
from server.cli.console import Console
from server.cli.serve import Backend, serve
from server.cli.signals import EndSignals
from server.config.files import ConfigError
from server.config.registry import ModelEntry, Registry
from server.config.settings import Settings
from server.version import version

if TYPE_CHECKING:
    from cluster.app import Options

THREADS = "OMP_NUM_THREADS"


def serve_cluster(
    args: argparse.Namespace, env: Mapping[str, str], console: Console, signals: EndSignals
) -> int:
    """Run the server in front of the replicas until a signal ends it. Return the exit code."""
    most = args.max_replicas or args.replicas
    if most < args.replicas:
        raise ConfigError(f"--max-replicas {most}: it must be at least --replicas {args.replicas}")
    if args.attach and not args.address:
        raise ConfigError("--attach: name the Ray cluster too, such as --address auto")
    return serve(args, env, console, signals, functools.partial(open_cluster, args, signals))


def open_cluster(
    args: argparse.Namespace, signals: EndSignals, settings: Settings, registry: Registry
) -> Backend:
    """Connect to Ray, deploy the model, and return the replicas as the backend of a server."""
    if settings.peers:
        raise ConfigError("peers: a server in front of replicas has none; take them out")
    want_token(os.environ, is_new=args.address is None)
    if args.address is None:
        start_here(os.environ)
    try:
        from cluster import app
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the package {error.name} is not installed: pip install 'understudy[cluster]'"
        ) from error
    from cluster.remote import RemoteEngine, Replicas

    entry = replace(registry.find(None), idle_unload=None)  # the replicas stay
    name = app_name(entry)
    try:
        app.connect(args.address)
        if not args.attach:
            app.deploy(name, entry.spec, options_of(args, settings, app.gpus_per_replica()))
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"Ray: {error}") from error
    signals.handle_again()  # Ray has set a handler of its own
    replicas = Replicas(app.Handles(name))
    return Backend(
        Registry([entry], entry.id, strict=settings.strict_model),
        functools.partial(RemoteEngine, replicas=replicas),
        replicas,
        functools.partial(app.disconnect, name if args.address and not args.attach else None),
    )


def options_of(args: argparse.Namespace, settings: Settings, gpus: float) -> "Options":
    """Return how replicas are deployed.

    Args:
        gpus: of each replica, where the command names none.
    """
    from cluster.app import Options

    return Options(
        version=version(if_not_installed="0"),
        scaling=Scaling(
            least=args.replicas,
            most=args.max_replicas or args.replicas,
            wait_seconds=args.up_wait,
            idle_seconds=args.down_idle,
        ),
        gpus=gpus if args.gpus is None else args.gpus,
        max_queue=settings.max_queue,
        drain_seconds=settings.load_timeout,
        threads=os.environ.get(THREADS),
    )


def app_name(entry: ModelEntry) -> str:
    """Return the name of a model's application."""
    return "understudy-" + re.sub(r"[^A-Za-z0-9_.-]", "-", entry.id)
