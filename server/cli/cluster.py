"""The command `understudy cluster serve`: this server in front, its engines in Ray's replicas."""

import argparse
import functools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from cluster.authentication import start_here, want_token
from cluster.scaling import Scaling
from server.cli.backend import Backend
from server.cli.console import Console
from server.cli.serve import open_registry, serve
from server.cli.signals import EndSignals
from server.config.files import (
    ConfigError,
    Section,
    asked_folder,
    check_section,
    search_path,
)
from server.config.registry import ModelEntry, Registry
from server.config.settings import Settings, load_settings

if TYPE_CHECKING:
    from cluster.app import Options
    from server.traces.replicas import ReplicaTraces

THREADS = "OMP_NUM_THREADS"


def serve_cluster(
    args: argparse.Namespace,
    env: Mapping[str, str],
    settings: Settings,
    console: Console,
    signals: EndSignals,
    drain: Callable[[], None],
) -> int:
    """Run the server in front of the replicas until a signal ends it. Return the exit code."""
    if args.attach and not args.address:
        raise ConfigError("--attach: name the Ray cluster too, such as --address auto")
    backend = functools.partial(open_cluster, args, signals)
    return serve(args, env, settings, console, signals, drain, backend)


def open_cluster(
    args: argparse.Namespace, signals: EndSignals, settings: Settings, registry: Registry
) -> Backend:
    """Connect to Ray, deploy the model, and return the replicas as the backend of a server."""
    deployment = _deployment(args)
    if settings.peers:
        raise ConfigError("peers: a server in front of replicas has none; take them out")
    want_token(os.environ, is_new=args.address is None)
    if args.address is None:
        start_here(os.environ)
    try:
        from cluster import app
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Ray is not installed (no package {error.name}): pip install 'understudy[cluster]'"
        ) from error
    from cluster.remote import RemoteEngine, Replicas

    entry = replace(registry.find(None), idle_unload=None)  # the replicas stay
    name = app_name(entry)
    try:
        app.connect(args.address)
        if not args.attach:
            app.deploy(name, entry.spec, deployment.options(settings))
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


class Deployment(Section):
    """How replicas are deployed: the options of the command, or the `args` of a RayService."""

    model: str = "demo"
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=1000)] | None = None  # None: as `replicas`
    up_wait: Annotated[float, Field(gt=0)] = 2.0  # seconds
    down_idle: Annotated[float, Field(gt=0)] = 600.0  # seconds
    gpus: Annotated[float, Field(ge=0)] | None = None  # of each; None: 1 if there are any

    @model_validator(mode="after")
    def _most_is_not_less(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas must be at least replicas, {self.replicas}")
        return self

    def options(self, settings: Settings) -> "Options":
        """Return the options of Ray's application. This process is in the Ray cluster."""
        from cluster.app import Options, gpus_per_replica

        return Options(
            scaling=Scaling(
                self.replicas, self.max_replicas or self.replicas, self.up_wait, self.down_idle
            ),
            gpus=gpus_per_replica() if self.gpus is None else self.gpus,
            max_queue=settings.max_queue,
            drain_seconds=settings.load_timeout,
            threads=os.environ.get(THREADS),
            open_traces=(
                functools.partial(open_replica_traces, _otel_variables(os.environ))
                if settings.traces
                else None
            ),
        )


def open_replica_traces(variables: Mapping[str, str]) -> "ReplicaTraces":
    """Return the traces of the replica whose process this is.

    Args:
        variables: those of OpenTelemetry where the replicas were deployed.
    """
    from server.traces.exporting import export_traces
    from server.traces.replicas import ReplicaTraces

    os.environ.update(variables)  # OpenTelemetry reads them there
    traces = export_traces(os.environ)
    return ReplicaTraces(traces, traces.close)


def _otel_variables(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith("OTEL_")}


def application(args: dict[str, object]) -> Any:
    """Return the application of Ray Serve that a RayService names; `args` are a `Deployment`.

    `understudy cluster serve MODEL --attach` is the server in front of it.
    """
    from cluster import app

    deployment = check_section(dict(args), Deployment, "args", {})
    folders = search_path(asked_folder(None, os.environ), Path.cwd(), os.environ)
    settings = load_settings(folders, os.environ, {"default_model": deployment.model})
    entry = open_registry(folders, settings).find(None)
    return app.application(entry.spec, deployment.options(settings))


def _deployment(args: argparse.Namespace) -> Deployment:
    """Return what the options say."""
    names = ("replicas", "max_replicas", "up_wait", "down_idle", "gpus")
    return check_section({name: getattr(args, name) for name in names}, Deployment, "options")


def app_name(entry: ModelEntry) -> str:
    """Return the name of a model's application."""
    return "understudy-" + re.sub(r"[^A-Za-z0-9_.-]", "-", entry.id)
