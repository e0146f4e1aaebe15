"""The number of sequences that run at once, and of states of recurrent layers."""

from dataclasses import dataclass

from engine.planning.footprint import Demand
from engine.spec import ModelSpec

DEFAULT_SEQUENCES = 8
STATE_SHARE = 0.125  # of the device limit for states of recurrent layers, if more than one fits
STORED_STATES = 4  # of prefixes, for each sequence at most


@dataclass(frozen=True)
class StateCounts:
    """The numbers of sequences and of states."""

    max_sequences: int
    running: int  # states of sequences, each with the rows of a tree; 0 without recurrent layers
    stored: int  # states of stored prefixes
    nbytes: int  # of all states


def count_states(spec: ModelSpec, demand: Demand, limit: int) -> StateCounts:
    """Return the most sequences and their states.

    Where no number of sequences is asked for, there are fewer if their states are large.

    Args:
        limit: the bytes of the device that a plan may use.
    """
    room, own = int(limit * STATE_SHARE), demand.state_bytes + demand.stash_bytes
    if not demand.state_bytes:
        return StateCounts(spec.max_sequences or DEFAULT_SEQUENCES, 0, 0, 0)
    audits = int(spec.audit > 0)  # the audit has a state of its own
    fitting = max(min(DEFAULT_SEQUENCES, room // own - audits), 1)
    sequences = spec.max_sequences or fitting
    running = sequences + audits
    left = max(room - running * own, 0) if spec.prefix_cache else 0
    stored = min(STORED_STATES * sequences, left // demand.state_bytes)
    return StateCounts(sequences, running, stored, running * own + stored * demand.state_bytes)
