"""Replicas as an application of Ray Serve, one for each model, and the way to them.

This file needs Ray (`understudy[cluster]`).
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.exceptions import RayServeException

from cluster.answering import Frame, Observer, no_observer
from cluster.members import ReplicaGone, members_of
from cluster.peer import PeerLost
from cluster.queue_waits import WaitFigures
from cluster.remote import Deployed
from cluster.replica import Replica, Told
from cluster.router import PlacedRouter
from cluster.scaling import Scaling
from cluster.wire import Ask
from engine.messages import ModelInfo
from engine.spec import ModelSpec

DEPLOYMENT = "Replica"
THREADS = "OMP_NUM_THREADS"  # Ray sets it in each actor
MANY = 1_000_000  # requests at once: the engine has its own limit
HEALTH_SECONDS, UNHEALTHY_SECONDS = 5.0, 30.0  # between checks, and for each of them
OBJECT_STORE = 100 << 20  # bytes: frames are small, and do not go through it
LOST = (RayError, RayServeException, ReplicaGone, grpc.RpcError)
UNREADABLE = (ImportError, AttributeError)  # objects of a class that another version has


class Tracing(Protocol):
    """The traces of a replica."""

    def observe(self, model: str, ask: Ask, headers: Mapping[str, str]) -> Observer:
        """Return the observer of a request."""

    def close(self) -> None:
        """Send what is not sent yet."""


@dataclass(frozen=True)
class Options:
    """How the replicas of a model are deployed.

    Args:
        gpus: of each replica.
        drain_seconds: for which a replica that is taken away may go on with streams that no other
            one can go on with.
        threads: `OMP_NUM_THREADS` of the replicas; None: unset, so that the engine measures.
        open_traces: is called in the process of a replica, to trace its requests; None: nothing is
            traced.
    """

    scaling: Scaling
    gpus: float
    max_queue: int
    drain_seconds: float
    threads: str | None
    open_traces: Callable[[], Tracing] | None = None


class ReplicaActor:
    """A replica as an actor of Ray Serve. Calls name the replica, which the router reads."""

    async def __init__(self, spec: ModelSpec, options: Options) -> None:  # type: ignore[misc]  # Ray awaits it
        os.environ.pop(THREADS, None)  # Ray has set it to the number of its own CPUs
        if options.threads is not None:
            os.environ[THREADS] = options.threads
        self._tracing = None if options.open_traces is None else options.open_traces()
        self._replica = Replica(
            spec,
            max_queue=options.max_queue,
            wait_limit=options.scaling.wait_seconds,
            observe=no_observer if self._tracing is None else self._tracing.observe,
        )
        await self._replica.start()

    async def __del__(self) -> None:
        await self._replica.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def check_health(self) -> None:
        """Raise if the engine is gone for good: Ray then starts another replica."""
        self._replica.check_health()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the figures that `QueueWaitPolicy` reads."""
        return dataclasses.asdict(self._replica.waits())

    async def describe(self, _name: str) -> ModelInfo:
        """Return the properties of the model."""
        return self._replica.describe()

    async def tell(self, _name: str, since: int, instance: str, events_since: int) -> Told:
        """Return what has changed since an earlier call."""
        return self._replica.tell(since, instance, events_since)

    async def generate(
        self, _name: str, ask: Ask, headers: dict[str, str]
    ) -> AsyncGenerator[Frame | None, None]:
        """Run a request, and yield its frames."""
        async with contextlib.aclosing(self._replica.generate(ask, headers)) as frames:
            async for frame in frames:
                yield frame


class QueueWaitPolicy:
    """The policy of Ray Serve's autoscaler that asks `Scaling`."""

    def __init__(self, **scaling: Any) -> None:
        self._scaling = Scaling(**scaling)

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas that there should be, and no state."""
        series = context.raw_metrics or {}
        latest: dict[Any, dict[str, float]] = {own: {} for own in context.running_replicas}
        for field in dataclasses.fields(WaitFigures):
            for replica, points in series.get(field.name, {}).items():
                if replica in latest and points:
                    latest[replica][field.name] = points[-1].value
        whole = len(dataclasses.fields(WaitFigures))
        figures = [
            WaitFigures(int(own["waits"]), int(own["long_waits"]), own["idle_seconds"])
            for own in latest.values()
            if len(own) == whole
        ]
        return self._scaling.wanted(context.target_num_replicas, figures), {}


def application(spec: ModelSpec, options: Options) -> serve.Application:
    """Return the application that serves a model by replicas, which have no route of HTTP."""
    scaling = options.scaling
    deployment = serve.deployment(
        ReplicaActor,
        name=DEPLOYMENT,
        max_ongoing_requests=MANY,
        ray_actor_options={"num_cpus": 0, "num_gpus": options.gpus},
        health_check_period_s=HEALTH_SECONDS,
        health_check_timeout_s=UNHEALTHY_SECONDS,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=options.drain_seconds,
        request_router_config=RequestRouterConfig(request_router_class=PlacedRouter),
        **_number_of_replicas(scaling),
    )
    return deployment.bind(spec, options)


def _number_of_replicas(scaling: Scaling) -> dict[str, Any]:
    if scaling.least == scaling.most:
        return {"num_replicas": scaling.least}
    policy = AutoscalingPolicy(
        policy_function=QueueWaitPolicy, policy_kwargs=dataclasses.asdict(scaling)
    )
    config = AutoscalingConfig(
        min_replicas=scaling.least,
        initial_replicas=scaling.least,
        max_replicas=scaling.most,
        upscale_delay_s=0,  # the waits of a minute have been counted already
        downscale_delay_s=0,
        policy=policy,
    )
    return {"autoscaling_config": config}


def deploy(name: str, spec: ModelSpec, options: Options) -> None:
    """Deploy the application of a model, or change the one with this name. It is not awaited."""
    serve.start(proxy_location="Disabled")
    target = serve.RunTarget(application(spec, options), name=name, route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)


class Handles:
    """The way to the replicas of an application, by the handles of Ray Serve."""

    def __init__(self, app: str) -> None:
        self._app = app
        # Frames go over gRPC at once. By reference, Ray's default, they took 3 times as long.
        handle = serve.get_deployment_handle(DEPLOYMENT, app).options(_by_reference=False)
        self._handle, self._streams = handle, handle.options(stream=True)

    def members(self) -> frozenset[str]:
        """Return the names of the replicas that take requests."""
        return members_of(self._app)

    async def describe(self, replica: str) -> ModelInfo:
        """Return the properties of the model on a replica; `ANY` waits for the first one."""
        with _losing():
            info: ModelInfo = await self._handle.describe.remote(replica)
            return info

    async def tell(self, replica: str, since: int, instance: str, events_since: int) -> Told:
        """Return what a replica tells."""
        with _losing():
            told: Told = await self._handle.tell.remote(replica, since, instance, events_since)
            return told

    async def generate(
        self, replica: str, ask: Ask, headers: Mapping[str, str]
    ) -> AsyncGenerator[Frame | None, None]:
        """Yield the frames of a request that a replica runs."""
        stream = self._streams.generate.remote(replica, ask, dict(headers))
        try:
            with _losing():
                async for frame in stream:
                    yield frame
        finally:
            stream.cancel()

    async def deployed(self) -> Deployed:
        """Return the state of the deployment."""
        with _losing():
            status = await asyncio.to_thread(serve.status)
        found = status.applications.get(self._app)
        if found is None:
            return Deployed(0, 0, f"there is no application {self._app!r}")
        own = found.deployments.get(DEPLOYMENT)
        states = {} if own is None else own.replica_states
        is_failed = found.status == "DEPLOY_FAILED"
        failure = (own.message if own is not None else "") or found.message
        return Deployed(
            states.get("RUNNING", 0), sum(states.values()), failure if is_failed else ""
        )


@contextlib.contextmanager
def _losing() -> Iterator[None]:
    """Turn the errors of Ray into `PeerLost`."""
    try:
        yield
    except (*LOST, *UNREADABLE) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PeerLost(lines[0]) from error


def connect(address: str | None) -> None:
    """Connect to the Ray cluster at an address, or start one on this machine.

    Neither the dashboard nor the HTTP proxies of one that is started here run. Call
    `cluster.authentication.want_token` before this file is imported.

    Args:
        address: "auto" is the cluster that this machine belongs to; None starts one.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(
        address=address or "local",
        include_dashboard=None if address else False,
        log_to_driver=False,
        logging_level="WARNING",
        **({} if address else {"object_store_memory": OBJECT_STORE}),
    )


def gpus_per_replica() -> int:
    """Return the GPUs that a replica needs in this cluster: one, if there are any."""
    return 1 if ray.cluster_resources().get("GPU", 0) else 0


def disconnect(app: str | None) -> None:
    """Take an application away, if one is named, and leave the cluster."""
    if app is not None:
        serve.delete(app)
    ray.shutdown()
