"""Plans of models for the API: one at a time, each computed in a process of its own.

The front end must not import torch, which computing a plan needs. A process that stayed would keep
350 MB of memory that weights could have.
"""

import asyncio
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection

from engine.errors import ModelError, QueueFull
from engine.spec import ModelSpec
from server.errors import ApiError
from server.models import plan_worker
from server.models.plan_worker import Machine, Planned

MAX_WAITING = 8  # plans that wait for their turn
TIMEOUT_S = 300.0  # for one plan; a config.json may have to be downloaded

EntryPoint = Callable[[Connection, ModelSpec, Machine], None]


class Planner:
    """Computes plans in the order in which they are asked for.

    Args:
        target: is run by each process, and sends a `Planned`; tests give their own.
        timeout: seconds for one plan.
    """

    def __init__(self, target: EntryPoint = plan_worker.main, timeout: float = TIMEOUT_S) -> None:
        self._target = target
        self._timeout = timeout
        self._turn = asyncio.Lock()
        self._num_asked = 0

    async def plan(self, spec: ModelSpec, machine: Machine) -> str:
        """Return the plan of a model as JSON. The process ends when the caller is cancelled.

        Raises `QueueFull` when too many plans wait, `ApiError` 400 when the model does not fit the
        machine and 503 when the plan takes too long, and `ModelError` for a model that cannot be
        served at all.
        """
        if self._num_asked > MAX_WAITING:
            raise QueueFull(f"{self._num_asked} plans wait or are computed; try again later.")
        self._num_asked += 1
        try:
            async with self._turn:
                planned = await self._run(spec, machine)
        finally:
            self._num_asked -= 1
        if not planned.fits:
            raise ApiError(f"{spec.id} does not fit. {planned.error}", code="does_not_fit")
        if planned.error:
            raise ModelError(planned.error)
        return planned.json

    async def _run(self, spec: ModelSpec, machine: Machine) -> Planned:
        context = get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=self._target, args=(theirs, spec, machine), name=f"plan {spec.id}", daemon=True
        )
        try:
            process.start()
        except OSError as error:
            ours.close()
            message = f"The process that plans {spec.id} could not be started: {error.strerror}"
            raise ApiError.unavailable(message, "plan_failed") from error
        finally:
            theirs.close()  # else the end of the process would not close the pipe
        try:
            async with asyncio.timeout(self._timeout):
                planned: Planned = await asyncio.to_thread(ours.recv)
                return planned
        except TimeoutError:
            message = f"The plan of {spec.id} took more than {self._timeout:g} s; try again later."
            raise ApiError.unavailable(message, "plan_timeout") from None
        except EOFError:
            message = (
                f"The process that plans {spec.id} ended early. The server's log may have the "
                "reason. If memory has run out, give 'device_memory' and 'ram', or unload a model."
            )
            raise ApiError(message, code="plan_failed", status=500) from None
        finally:
            process.kill()
            await asyncio.shield(asyncio.to_thread(process.join))
            ours.close()
