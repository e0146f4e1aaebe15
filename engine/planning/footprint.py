"""The bytes that a model, its draft and the activations of a pass need.

The formulas for activations follow what the decoder, the attention and the sampler hold at once;
benchmarks/plan_memory.py compares their sum with the memory that a process takes.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from engine.drafting.method import DraftNeeds
from engine.kv.page_pool import PAGE
from engine.model.attention import MAX_SCORES
from engine.spec import TILE
from engine.weights.layout import LayerUnits

LARGEST_PASS = 8192  # rows; a longer prompt takes several passes
_FLOAT32, _FLOAT64 = 4, 8


@dataclass(frozen=True)
class Demand:
    """The sizes of a model and its draft, in bytes where not stated otherwise."""

    unit_bytes: Sequence[int]  # of the layers' units, then of the head
    layers: Sequence[LayerUnits]  # the units of each layer
    expanded_bytes: int  # one unit's dense weights where weights travel packed; else 0
    other_device_bytes: int  # tensors outside layers and head that are kept on the device
    hidden_size: int
    widest: int  # elements of the widest activation of a layer, per row
    num_heads: int
    vocab_size: int
    item_bytes: int  # of one activation
    kv_bytes_per_token: int  # target and draft together
    draft: DraftNeeds
    context_length: int
    num_kv_heads: int = 1
    head_dim: int = 0
    tile: int = TILE  # rows that run through a layer at a time
    embedding_bytes: int = 0  # in the page cache, as far as its rows are used
    dense_bytes: int = 0  # of all units after packed weights are expanded
    active_share: float = 1.0  # of the weights that one token uses
    # Dense bytes that a pass expands, by the packing's suffix; none if nothing travels packed.
    expansions: Mapping[str, int] = field(default_factory=dict)
    state_bytes: int = 0  # of the recurrent layers, after one sequence of tokens
    stash_bytes: int = 0  # of the rows of one tree in recurrent layers
    hidden_states: int = 1  # that a row has side by side
    layer_inputs: int = 0  # elements that a row has for all layers beside its hidden state

    def draft_bytes(self, resident: Set[int]) -> int:
        """Return the device bytes of the draft's weights, without substitutes of resident units."""
        return self.draft.weight_bytes - sum(self._spared_bytes(unit) for unit in resident)

    def net_bytes(self, unit: int) -> int:
        """Return how many more device bytes a resident unit takes than its substitute."""
        return self.unit_bytes[unit] - self._spared_bytes(unit)

    def _spared_bytes(self, unit: int) -> int:
        """Return the bytes of the low-bit copy that is not needed if this unit is resident."""
        return self.draft.substitute_bytes[unit] if self.shares_resident else 0

    @property
    def shares_resident(self) -> bool:
        """Return True if the draft uses the target's resident units in place of low-bit copies.

        Units that are packed and expanded during a pass cannot be shared.
        """
        return self.is_self_drafted and not self.expanded_bytes

    @property
    def is_self_drafted(self) -> bool:
        """Return True if the draft model consists of low-bit copies of the target's own layers."""
        return bool(self.draft.substitute_bytes)

    @property
    def page_bytes(self) -> int:
        """Return the device bytes of one KV page, the draft's own cache included."""
        return self.kv_bytes_per_token * PAGE

    @property
    def host_page_bytes(self) -> int:
        """Return the bytes of one idle page in host memory: only the target's KV moves there."""
        return (self.kv_bytes_per_token - self.draft.kv_bytes_per_token) * PAGE

    @property
    def sequence_rows(self) -> int:
        """Return the number of scratch slots of one sequence in the target's KV cache."""
        return self.draft.scratch_rows + self.draft.draft_rows


def pass_rows(demand: Demand, max_sequences: int) -> int:
    """Return the most rows of a pass: of the longest prompt, or of the trees of all sequences.

    It is a multiple of the page size, and at most `LARGEST_PASS`.
    """
    rows = max(demand.context_length, max_sequences * demand.draft.scratch_rows)
    return min(LARGEST_PASS, -(-rows // PAGE) * PAGE)


def activation_bytes(demand: Demand, max_rows: int, longest: int) -> int:
    """Return the bytes of all activations of a pass.

    They are the hidden states, a tile in a layer, a block of logits, and attention.

    These parts run one after another, but memory that one part freed may not fit the
    next: so they are added up.

    Args:
        longest: the most tokens of a sequence that the KV cache holds.
    """
    return (
        _hidden_bytes(demand, max_rows)
        + demand.tile * 4 * demand.widest * demand.item_bytes
        + 2 * TILE * demand.vocab_size * _FLOAT64
        + _attention_bytes(demand, min(demand.context_length + demand.draft.scratch_rows, longest))
    )


def _hidden_bytes(demand: Demand, max_rows: int) -> int:
    """Return the bytes of the hidden states, of rope, and of the final norm over all rows."""
    norm = demand.item_bytes + 2 * _FLOAT32  # the state, its float32 copy and the copy's square
    # Where experts come in slices, rows also hold a copy of their state and one of the result.
    sliced = 4 * demand.item_bytes if any(layer.slices for layer in demand.layers) else 0
    rope = 4 * demand.head_dim * _FLOAT32  # angles, cosines, sines and temporaries of their size
    # Several states are made one by one and then joined; the inputs of layers are looked up,
    # projected and normed.
    joined = 2 * demand.item_bytes * (demand.hidden_states - 1)
    inputs = (2 * demand.item_bytes + 2 * _FLOAT32) * demand.layer_inputs
    return max_rows * ((max(norm, sliced) + joined) * demand.hidden_size + rope + inputs)


def _attention_bytes(demand: Demand, length: int) -> int:
    """Return the bytes of one tile's scores in float64, three times, and of its keys and values."""
    group = demand.num_heads // demand.num_kv_heads
    of_one_head = group * TILE * length
    at_once = min(max(MAX_SCORES // of_one_head, 1), demand.num_kv_heads)
    gathered = 2 * length * demand.num_kv_heads * demand.head_dim * demand.item_bytes
    widened = 2 * length * at_once * demand.head_dim * _FLOAT64
    return 3 * at_once * of_one_head * _FLOAT64 + gathered + widened


def size_text(num_bytes: float) -> str:
    """Return a number of bytes as text in binary units, such as "7.2 GiB"."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes / 1024:.1f} KiB"
