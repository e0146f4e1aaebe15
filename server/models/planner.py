"""Plans of models for the API: computed one at a time, in a process beside the front end.

The front end must not import torch, which computing a plan needs. Importing it takes seconds, and a
plan for another machine then takes a tenth of one. So the process is kept for a while after a plan,
for the next value of a slider. It is then ended: it has 350 MB of memory that weights could have.
"""

import asyncio
from multiprocessing import get_context

from engine.errors import QueueFull, system_reason
from server.config.registry import ModelEntry
from server.errors import ApiError
from server.models import plan_worker
from server.models.plan_worker import Compute, Machine, Planned

MAX_WAITING = 8  # plans that wait for their turn
TIMEOUT_S = 300.0  # for one plan; a config.json may have to be downloaded
KEEP_S = 30.0  # for which a process waits for another plan
ABANDONED_S = 20.0  # for which a plan that nobody waits for may delay the next one


class _PlanProcess:
    """A process that computes plans, and our end of its pipe."""

    def __init__(self, compute: Compute) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=plan_worker.main, args=(theirs, compute), name="planner", daemon=True
        )
        try:
            self._process.start()
        except OSError:
            self._pipe.close()
            raise
        finally:
            theirs.close()  # else the end of the process would not close the pipe

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def compute(self, entry: ModelEntry, machine: Machine) -> Planned:
        """Return a plan. Raises `EOFError` or `OSError` if the process ends meanwhile."""
        self._pipe.send((entry, machine))
        planned: Planned = self._pipe.recv()
        return planned

    def kill(self) -> None:
        """End a running plan: `compute` raises an error."""
        self._process.kill()

    def close(self) -> None:
        """End the process, which computes nothing now, and wait for its end."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


class Planner:
    """Computes plans in the order in which they are asked for.

    Args:
        compute: computes each plan in the other process; tests give their own.
        timeout: seconds for one plan.
        keep: seconds for which the process is kept after a plan.
    """

    def __init__(
        self,
        compute: Compute = plan_worker.compute,
        timeout: float = TIMEOUT_S,
        keep: float = KEEP_S,
    ) -> None:
        self._compute = compute
        self._timeout = timeout
        self._keep = keep
        self._turn = asyncio.Lock()
        self._num_asked = 0
        self._process: _PlanProcess | None = None
        self._running: asyncio.Task[Planned | ApiError] | None = None
        self._end_later: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    async def plan(self, entry: ModelEntry, machine: Machine) -> str:
        """Return the plan of a model as JSON.

        When the caller is cancelled, the plan goes on for a while: a new process would take longer
        for the next one.

        Raises `QueueFull` when too many plans wait, `ApiError` 400 when the model does not fit the
        machine, 500 when it cannot be served at all, and 503 when the plan takes too long.
        """
        if self._num_asked > MAX_WAITING:
            raise QueueFull(f"{self._num_asked} plans wait or are computed; try again later.")
        self._num_asked += 1
        try:
            async with self._turn:
                await self._wait_for_abandoned()
                self._running = asyncio.create_task(self._run(entry, machine))
                planned = await asyncio.shield(self._running)
        finally:
            self._num_asked -= 1
        if isinstance(planned, ApiError):
            raise planned
        if not planned.fits:
            message = f"{entry.id} does not fit. {planned.error}"
            raise ApiError(message, code="does_not_fit", param=planned.param)
        if planned.error:
            code = "model_load_failed"
            raise ApiError(planned.error, code=code, param=planned.param, status=500)
        return planned.json

    async def close(self) -> None:
        """End the process. A running plan fails."""
        if self._running is not None and not self._running.done():
            self._kill()
            await asyncio.wait([self._running])
        self._end()
        if self._ending is not None:
            await self._ending

    async def _wait_for_abandoned(self) -> None:
        """Wait for a plan whose caller has left. End it if it takes long."""
        if self._running is None or self._running.done():
            return
        done, _ = await asyncio.wait([self._running], timeout=ABANDONED_S)
        if not done:
            self._kill()
            await asyncio.wait([self._running])

    async def _run(self, entry: ModelEntry, machine: Machine) -> Planned | ApiError:
        """Return a plan, or the error of a process that gave none."""
        if self._end_later is not None:
            self._end_later.cancel()
        if self._process is not None and not self._process.is_alive:
            self._end()
        if self._process is None:
            try:
                self._process = _PlanProcess(self._compute)
            except OSError as error:
                reason = system_reason(error)
                message = f"The process that plans {entry.id} could not be started: {reason}"
                return ApiError.unavailable(message, "plan_failed")
        thread = asyncio.to_thread(self._process.compute, entry, machine)
        computing = asyncio.create_task(thread)
        done, _ = await asyncio.wait([computing], timeout=self._timeout)
        if not done:
            self._kill()
            await asyncio.wait([computing])
        try:
            planned = computing.result()
        except (EOFError, OSError):
            self._end()
            return _too_long(entry, self._timeout) if not done else _ended_early(entry)
        self._end_later = asyncio.get_running_loop().call_later(self._keep, self._end)
        return planned

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _end(self) -> None:
        """End the process, which computes nothing now."""
        if self._end_later is not None:
            self._end_later.cancel()
        process, self._process = self._process, None
        if process is not None:
            self._ending = asyncio.create_task(asyncio.to_thread(process.close))


def _too_long(entry: ModelEntry, timeout: float) -> ApiError:
    message = f"The plan of {entry.id} took more than {timeout:g} s; try again later."
    return ApiError.unavailable(message, "plan_timeout")


def _ended_early(entry: ModelEntry) -> ApiError:
    message = (
        f"The process that plans {entry.id} ended early. The server's log may have the reason. If "
        "memory has run out, give 'device_memory' and 'ram', or unload a model."
    )
    return ApiError(message, code="plan_failed", status=500)
