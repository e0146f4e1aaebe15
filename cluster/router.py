"""The router of Ray Serve: a request goes to the replica that `cluster.placement` has chosen.

Ray's routers choose among replicas by what each has reported to the controller, in the process of
the caller. Here the caller has chosen already: it knows the pages and the queue of each replica
from reports of its own, counts what it has sent since, and must know where a stream runs to move
it. So this router only finds the replica by its name, which is the first argument of each call, and
fails at once where it is gone: Ray's own would wait, or take another one.

This file needs Ray (`understudy[cluster]`).
"""

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from cluster.members import ReplicaGone, note_members
from cluster.remote import ANY


class PlacedRouter(RequestRouter):
    """Sends each call to the replica that its first argument names; `ANY` is the least busy."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the replica that a call is for."""
        wanted = ANY if pending_request is None else pending_request.args[0]
        if wanted == ANY:
            return [candidate_replicas]
        for replica in candidate_replicas:
            if replica.replica_id.unique_id == wanted:
                return [[replica]]
        if pending_request is not None and not pending_request.future.done():
            pending_request.future.set_exception(ReplicaGone(wanted))
        return [candidate_replicas]  # the routing of this call ends, as its future is done

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Note which replicas take requests."""
        super().update_replicas(replicas)
        self._publish()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Note that a replica has died."""
        super().on_replica_actor_died(replica_id)
        self._publish()

    def _publish(self) -> None:
        replicas: dict[Any, Any] = self.curr_replicas
        note_members(self.app_name, frozenset(own.unique_id for own in replicas))
