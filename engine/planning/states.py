"""The number of sequences that run at once, and of states of recurrent layers."""

from dataclasses import dataclass

from engine.planning.footprint import Demand
from engine.spec import ModelSpec

DEFAULT_SEQUENCES = 8
STATE_SHARE = 0.125  # of the device limit for states of recurrent layers, if more than one fits
STORED_STATES = 4  # of prefixes, for each sequence at most
# Drafted rows of one sequence, for each row of the tree that is verified: what is drafted ahead of
# it, and rows that were better once. Others have fewer, since they draft for less time each.
NODES_PER_ROW = 2
FURTHER_NODES = 32


@dataclass(frozen=True)
class StateCounts:
    """The numbers of sequences and of states."""

    max_sequences: int
    running: int  # states of sequences, each with the rows of a tree; 0 without recurrent layers
    stored: int  # states of stored prefixes
    nodes: int  # rows of which a draft model keeps something, of all sequences together
    nbytes: int  # of all of these


def count_states(spec: ModelSpec, demand: Demand, limit: int) -> StateCounts:
    """Return the most sequences and their states.

    Where no number of sequences is asked for, there are fewer if their states are large.

    Args:
        limit: the bytes of the device that a plan may use.
    """
    if not demand.has_states:
        return StateCounts(spec.max_sequences or DEFAULT_SEQUENCES, 0, 0, 0, 0)
    room, audits = int(limit * STATE_SHARE), int(spec.audit > 0)  # the audit has a state of its own

    def running_bytes(sequences: int) -> int:
        states = (sequences + audits) * (demand.state_bytes + demand.stash_bytes)
        return states + count_nodes(demand, sequences) * demand.node_bytes

    # One prefix is stored for each sequence at least: else a chat's turns are computed again.
    prefix = demand.state_bytes if spec.prefix_cache else 0
    counts = range(1, DEFAULT_SEQUENCES + 1)
    fitting = max((n for n in counts if running_bytes(n) + n * prefix <= room), default=1)
    sequences = spec.max_sequences or fitting
    running = running_bytes(sequences)
    stored = STORED_STATES * sequences if spec.prefix_cache else 0
    if demand.state_bytes:  # a convolution over one row has a state without values
        stored = min(stored, max(room - running, 0) // demand.state_bytes)
    return StateCounts(
        max_sequences=sequences,
        running=sequences + audits,
        stored=stored,
        nodes=count_nodes(demand, sequences),
        nbytes=running + stored * demand.state_bytes,
    )


def count_nodes(demand: Demand, max_sequences: int) -> int:
    """Return the drafted rows for which recurrent layers have memory."""
    if not demand.node_bytes:
        return 0
    first = min(demand.drafted_rows, NODES_PER_ROW * demand.draft.scratch_rows)
    return first + FURTHER_NODES * (max_sequences - 1)


def describe_states(num_states: int, num_nodes: int) -> str:
    """Return the numbers of states and of drafted rows as a text."""
    states = "1 state" if num_states == 1 else f"{num_states} states"
    return f"{states} and {num_nodes} drafted rows" if num_nodes else states
