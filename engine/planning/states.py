"""The memory of recurrent layers in a plan: states, and what drafts keep of their rows."""

from dataclasses import dataclass

from engine.planning.footprint import Demand
from engine.spec import ModelSpec

DEFAULT_SEQUENCES = 8
STATE_SHARE = 0.125  # of the device limit for states and nodes, if more than one sequence fits
STORED_STATES = 4  # of prefixes, for each sequence at most
# Drafted rows for each sequence after the first one, which may have a tree of full size alone.
FURTHER_NODES = 64


@dataclass(frozen=True)
class States:
    """The memory of recurrent layers; all of it is 0 without such layers."""

    num_states: int  # of sequences, with what is kept of a tree that is verified
    stored_states: int  # further ones, of stored prefixes
    num_nodes: int  # rows that a draft model keeps, of all sequences together
    nbytes: int


def default_sequences(spec: ModelSpec, demand: Demand, limit: int) -> int:
    """Return the most sequences where none are asked for: fewer if their states are large.

    Args:
        limit: the device memory in bytes.
    """
    if not demand.state_bytes:
        return DEFAULT_SEQUENCES
    room = int(limit * STATE_SHARE)
    counts = range(1, DEFAULT_SEQUENCES + 1)
    return max((own for own in counts if _running_bytes(spec, demand, own) <= room), default=1)


def plan_states(spec: ModelSpec, demand: Demand, limit: int, max_sequences: int) -> States:
    """Return the memory of recurrent layers for this many sequences.

    Args:
        limit: the device memory in bytes.
    """
    if not demand.state_bytes:
        return States(num_states=0, stored_states=0, num_nodes=0, nbytes=0)
    running = _running_bytes(spec, demand, max_sequences)
    stored = 0
    if spec.prefix_cache:
        room = max(int(limit * STATE_SHARE) - running, 0)
        stored = min(STORED_STATES * max_sequences, room // demand.state_bytes)
    return States(
        num_states=_num_states(spec, max_sequences),
        stored_states=stored,
        num_nodes=num_nodes(demand, max_sequences),
        nbytes=running + stored * demand.state_bytes,
    )


def num_nodes(demand: Demand, max_sequences: int) -> int:
    """Return the drafted rows for which recurrent layers have memory."""
    if not demand.node_bytes:
        return 0
    return demand.draft.draft_rows + FURTHER_NODES * (max_sequences - 1)


def _num_states(spec: ModelSpec, max_sequences: int) -> int:
    return max_sequences + (spec.audit > 0)  # the audit has a state of its own


def _running_bytes(spec: ModelSpec, demand: Demand, max_sequences: int) -> int:
    """Return the bytes for running sequences."""
    states = _num_states(spec, max_sequences) * (demand.state_bytes + demand.stash_bytes)
    return states + num_nodes(demand, max_sequences) * demand.node_bytes
