"""The bytes that a model, its draft and the activations of a pass need.

The formulas for activations follow what the decoder, the attention and the sampler hold at once;
benchmarks/plan_memory.py compares their sum with the memory that a process takes.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from engine.compiled.attention import BLOCK
from engine.compiled.compiler import is_available
from engine.drafting.method import DraftNeeds
from engine.drafting.model.cuda_graphs import GRAPH_BYTES, ROW_COUNTS, Bucket, all_buckets
from engine.kv.page_pool import PAGE
from engine.model.blockwise import KEY_BLOCK, MAX_SCORES
from engine.model.fused import MAX_KEPT, MAX_MASK
from engine.model.padded import MAX_SEGMENT_ROWS, MAX_SLOTS
from engine.planning.cached import Cached
from engine.planning.experts import Experts
from engine.sampling.large_vocabularies.blocks import AT_ONCE
from engine.sampling.noise import MAX_NUMBERS
from engine.spec import TILE, Tier
from engine.triton_kernels.attention import CHUNK, MAX_SUMS
from engine.triton_kernels.recurrence import MAX_STATE_BYTES
from engine.weights.formats.linear import is_read_faster
from engine.weights.layout import LayerUnits

LARGEST_PASS = 8192  # rows; a longer prompt takes several passes
_LANES = 64  # pairs of a row and a query head that compiled code computes at a time
THREADS = 16  # that compute attention at once, each with memory of its own
_FLOAT32, _FLOAT64 = 4, 8
_INT64 = 8
DRAFT_STREAMS = 2  # that draft models compute on: beside a pass, and while graphs are captured


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
    # Expected bytes of each unit as it travels, if weights travel in a lossless code; else empty.
    coded_bytes: Sequence[int] = ()
    num_kv_heads: int = 1
    head_dim: int = 0
    tile: int = TILE  # rows that run through a layer at a time
    embedding_bytes: int = 0  # in the page cache, as far as its rows are used
    dense_bytes: int = 0  # of all units after packed weights are expanded
    experts: Experts | None = None  # None: no layer is a mixture of experts
    # Dense bytes that a pass expands, by the packing's suffix; none if nothing travels packed.
    expansions: Mapping[str, int] = field(default_factory=dict)
    state_bytes: int = 0  # of recurrent layers after one sequence of tokens, the draft's included
    stash_bytes: int = 0  # of the rows of one tree in recurrent layers
    node_bytes: int = 0  # of a drafted row in recurrent layers of the draft
    node_values: int = 0  # elements of such a row that a step reads in one layer
    hidden_states: int = 1  # that a row has side by side
    layer_inputs: int = 0  # elements that a row has for all layers beside its hidden state
    strict: bool = True  # numerics of the target
    # Whether a GPU computes attention in the order of positions (strict numerics), not in float64.
    is_ordered: bool = False
    has_plain_softmax: bool = True  # no soft caps or sinks, which fused kernels lack
    is_latent: bool = False  # values have no memory of their own: they are a part of the keys
    cached: Cached = field(default_factory=Cached)  # what a load does not have to make

    @property
    def link_bytes(self) -> Sequence[int]:
        """Return the bytes of each unit as it travels, and as it is kept in RAM and on disk."""
        return self.coded_bytes or self.unit_bytes

    def products(self, rows: int, share: float) -> float:
        """Return the products with a tile of rows that some rows take, for each of the weights.

        All rows are multiplied with all weights but those of experts, in tiles.

        Args:
            share: that of experts in the weights.
        """
        tiles = -(-rows // TILE)
        if self.experts is None:
            return tiles
        return (1 - share) * tiles + share * self.experts.used_share(rows)

    def travelling_bytes(self, units: Iterable[int]) -> int:
        """Return the bytes of units as they travel."""
        return sum(self.link_bytes[unit] for unit in units)

    def placed_bytes(self, tiers: Sequence[Tier]) -> list[int]:
        """Return the bytes of each unit where it is kept."""
        sizes = zip(tiers, self.unit_bytes, self.link_bytes, strict=True)
        return [plain if tier == "resident" else travels for tier, plain, travels in sizes]

    def largest_coded(self, resident: Set[int]) -> int | None:
        """Return the bytes of the largest unit that is streamed coded; None if none is."""
        streamed = (size for unit, size in enumerate(self.coded_bytes) if unit not in resident)
        return max(streamed, default=None)

    def draft_bytes(self, resident: Set[int]) -> int:
        """Return the device bytes of the draft's weights, without substitutes of resident units."""
        spared = sum(self._spared_bytes(unit) for unit in resident)
        is_mixture = self.experts is not None
        if self._has_draft_head and not is_mixture and len(resident) == len(self.unit_bytes):
            spared += self.draft.substitute_bytes[-1]  # the draft is the target itself
        return self.draft.weight_bytes - spared

    def net_bytes(self, unit: int) -> int:
        """Return how many more device bytes a resident unit takes than its substitute."""
        return self.unit_bytes[unit] - self._spared_bytes(unit)

    def _spared_bytes(self, unit: int) -> int:
        """Return the bytes of the low-bit copy that is not needed if this unit is resident."""
        if self.experts is not None and unit in self.experts.units:
            return 0
        is_own = self._has_draft_head and unit == len(self.unit_bytes) - 1
        return self.draft.substitute_bytes[unit] if self.shares_resident and not is_own else 0

    @property
    def _has_draft_head(self) -> bool:
        """Return whether the draft has a low-bit head although the target's is resident."""
        return self.shares_resident and is_read_faster(
            self.draft.substitute_bytes[-1], self.unit_bytes[-1]
        )

    @property
    def shares_resident(self) -> bool:
        """Return True if the draft uses the target's resident units in place of low-bit copies.

        Layers with experts have copies all the same. Units that are packed and expanded during a
        pass cannot be shared.
        """
        return self.is_self_drafted and not self.expanded_bytes

    @property
    def is_self_drafted(self) -> bool:
        """Return True if the draft model consists of low-bit copies of the target's own layers."""
        return bool(self.draft.substitute_bytes)

    @property
    def has_draft_model(self) -> bool:
        """Return True if the drafts come from a model on the device."""
        return self.draft.weight_bytes > 0

    @property
    def page_bytes(self) -> int:
        """Return the device bytes of one KV page, the draft's own cache included."""
        return self.kv_bytes_per_token * PAGE

    @property
    def host_page_bytes(self) -> int:
        """Return the bytes of one idle page in host memory: only the target's KV moves there."""
        return (self.kv_bytes_per_token - self.draft.kv_bytes_per_token) * PAGE

    @property
    def has_states(self) -> bool:
        """Return whether the model or its draft has recurrent layers, whose states may be empty."""
        return max(self.state_bytes, self.stash_bytes, self.node_bytes) > 0

    @property
    def drafted_rows(self) -> int:
        """Return the most rows that a draft model runs for one sequence, in either KV cache."""
        return self.draft.draft_rows + self.draft.own_rows

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


def activation_bytes(
    demand: Demand, max_rows: int, longest: int, *, has_own_memory: bool, tree_rows: int = 0
) -> int:
    """Return the bytes of all activations of a pass.

    They are the hidden states, a tile in a layer, a block of logits, and attention: that of the
    target, and that of a draft model, which may run between two layers of the pass. Recurrent
    layers on CUDA devices keep states of nodes of trees.

    These parts run one after another, but memory that one part freed may not fit the
    next: so they are added up.

    Args:
        longest: the most tokens of all sequences together that the KV cache holds.
        has_own_memory: whether the device has memory of its own, beside the RAM.
        tree_rows: the rows of the trees of all sequences.
    """
    length = min(demand.context_length + demand.draft.scratch_rows, longest)
    if not demand.strict:
        attention = _fused_bytes(demand, demand.tile, length, longest)
    elif has_own_memory and demand.is_ordered:
        attention = _chunked_bytes(demand, length, tree_rows)
    elif has_own_memory:
        attention = _float64_bytes(demand, length)
    else:
        attention = _ordered_bytes(demand, length)
    if has_own_memory and demand.state_bytes:
        attention += MAX_STATE_BYTES
    if rows := demand.draft.step_rows:
        attention += _fused_bytes(demand, rows, length, longest) + _expert_bytes(demand, rows)
        attention += 2 * _FLOAT32 * demand.drafted_rows * demand.node_values
    return (
        _hidden_bytes(demand, max_rows)
        + demand.tile * 4 * demand.widest * demand.item_bytes
        + _choosing_bytes(demand, has_own_memory)
        + attention
    )


def graph_bytes(demand: Demand, num_slots: int) -> int:
    """Return the bytes of all CUDA graphs of a draft model, over a KV cache of `num_slots` slots.

    They are the kernels and the inputs of each graph, the logits of each number of rows, and the
    activations of the largest step, whose memory the others share. Steps of hybrids run without.
    """
    if demand.node_bytes:
        return 0
    buckets = all_buckets(num_slots)
    logits = sum(ROW_COUNTS) * demand.vocab_size * demand.item_bytes
    inputs = sum(_graph_input_bytes(demand, bucket) for bucket in buckets)
    kernels = GRAPH_BYTES if demand.experts is None else 2 * GRAPH_BYTES
    return len(buckets) * kernels + inputs + logits + _graph_step_bytes(demand, buckets[0])


def _graph_input_bytes(demand: Demand, bucket: Bucket) -> int:
    """Return the bytes of embedded rows, slots, positions, numbers and mask of a padded step."""
    keys = bucket.kv + bucket.rows
    embedded = bucket.rows * demand.hidden_size * demand.hidden_states * demand.item_bytes
    return embedded + (2 * _INT64 + bucket.rows) * keys + _INT64 * max(bucket.kv, bucket.rows)


def _graph_step_bytes(demand: Demand, bucket: Bucket) -> int:
    """Return the bytes of the activations of a padded step in fast numerics."""
    states = demand.hidden_size * (4 * demand.item_bytes + 2 * _FLOAT32) * demand.hidden_states
    layer = 4 * demand.widest * demand.item_bytes
    logits = demand.vocab_size * (demand.item_bytes + _FLOAT32)
    keys = bucket.kv + bucket.rows
    step = bucket.rows * (states + layer + logits) + _expert_bytes(demand, bucket.rows)
    return step + _fused_bytes(demand, bucket.rows, keys, keys)


def _expert_bytes(demand: Demand, rows: int) -> int:
    """Return the bytes of the results of all experts of some rows of a draft step in a layer."""
    if demand.experts is None:
        return 0
    return 4 * rows * demand.experts.chosen * demand.widest * demand.item_bytes


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


def _choosing_bytes(demand: Demand, has_own_memory: bool) -> int:
    """Return the bytes of a block of logits, and of choosing tokens at its rows.

    On a device of its own memory, noise is computed for whole rows: random numbers of 64 bits, and
    five copies of the values in float32.
    """
    values = TILE * demand.vocab_size
    few = 2 * values * _FLOAT64
    if not has_own_memory:
        return few
    whole = 5 * _FLOAT32 * min(values, AT_ONCE) + 3 * _FLOAT64 * min(values, MAX_NUMBERS)
    return max(few, 2 * values * demand.item_bytes + whole)


def _float64_bytes(demand: Demand, length: int) -> int:
    """Return the bytes of one tile's scores in float64, three times, and of its keys and values.

    It is the attention of strict numerics on GPUs without Triton.
    """
    at_once = _key_heads_at_once(demand, TILE, length)
    widened = 2 * min(length, KEY_BLOCK) * at_once * demand.head_dim * _FLOAT64
    scores = 3 * _num_scores(demand, TILE, length) * _FLOAT64
    return scores + _gathered_bytes(demand, length) + widened


def _chunked_bytes(demand: Demand, length: int, tree_rows: int) -> int:
    """Return the bytes of one tile's attention in the order of positions, in float32 on a GPU.

    Kernels read keys and values where they are stored. Each chunk of positions has sums of its own,
    which bound the rows that are computed at a time.
    The slots that the rows of trees see are kept for the whole pass, by each reach of the layers.
    """
    lanes = TILE * demand.num_heads
    chunks = -(-length // CHUNK) + 1
    at_once = max(MAX_SUMS // (chunks * demand.num_heads * demand.head_dim), 1)
    sums = chunks * min(at_once, TILE) * demand.num_heads * (2 + demand.head_dim) * _FLOAT32
    rows = 4 * lanes * demand.head_dim * _FLOAT32
    widest = CHUNK + demand.draft.scratch_rows
    kept = 2 * tree_rows * widest * _INT64
    making = demand.draft.scratch_rows**2 * (2 * _INT64 + 1)  # of one sequence: places, masks
    return sums + rows + kept + making


def _ordered_bytes(demand: Demand, length: int) -> int:
    """Return the bytes of one tile's attention in the order of positions, in float32 on a CPU.

    Compiled code reads keys and values where they are stored. Each thread expands those of one
    block and of a tree, and holds their scores. Where there is no compiled code, keys and values
    are copied and expanded to float32.
    """
    block = BLOCK + demand.sequence_rows
    heads = TILE * demand.num_heads
    of_thread = (block + 3 * _LANES) * (2 * demand.head_dim + _LANES) * _FLOAT32
    expanded = length * demand.num_kv_heads * 2 * demand.head_dim * _FLOAT32
    scores = 4 * heads * block * _FLOAT32
    without = _gathered_bytes(demand, length) + expanded + scores + TILE * length
    rows = 4 * heads * demand.head_dim * _FLOAT32 + 2 * TILE * demand.sequence_rows
    return rows + (THREADS * of_thread if is_available() else without)


def _fused_bytes(demand: Demand, tile: int, length: int, longest: int) -> int:
    """Return the bytes of attention under fast numerics: copied keys and values, masks, and rows.

    Where fused kernels cannot be used, scores in float32 are held instead of masks. Several
    sequences may be padded for one product.
    """
    group = demand.num_heads // demand.num_kv_heads
    rows = 4 * tile * demand.num_heads * demand.head_dim * demand.item_bytes
    if not demand.has_plain_softmax:
        scores = 3 * _num_scores(demand, tile, length) * _FLOAT32
        return _gathered_bytes(demand, length) + 2 * tile * length + scores + rows
    padded = min(MAX_SLOTS, longest)
    product = group * max(tile * length, min(tile, MAX_SEGMENT_ROWS) * padded)
    mask, kept = min(product, MAX_MASK), min(product, MAX_KEPT)
    masks = (mask + kept) * demand.item_bytes + 3 * mask // group  # and booleans to make one of
    if demand.is_latent:  # kernels that hold no scores need keys and values of the same width
        masks += 2 * mask * _FLOAT32
    return _gathered_bytes(demand, max(length, padded)) + masks + rows


def _key_heads_at_once(demand: Demand, rows: int, length: int) -> int:
    """Return the number of key heads whose scores are computed at a time."""
    of_one_head = demand.num_heads // demand.num_kv_heads * rows * length
    return min(max(MAX_SCORES // of_one_head, 1), demand.num_kv_heads)


def _num_scores(demand: Demand, rows: int, length: int) -> int:
    """Return the number of scores that are computed at a time without a fused kernel."""
    heads = _key_heads_at_once(demand, rows, length) * demand.num_heads // demand.num_kv_heads
    return heads * rows * min(length, KEY_BLOCK)


def _gathered_bytes(demand: Demand, slots: int) -> int:
    """Return the bytes of a copy of one layer's keys and values."""
    parts = 1 if demand.is_latent else 2
    return parts * slots * demand.num_kv_heads * demand.head_dim * demand.item_bytes


def size_text(num_bytes: float) -> str:
    """Return a number of bytes as text in binary units, such as "7.2 GiB"."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes / 1024:.1f} KiB"
