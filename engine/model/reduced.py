"""The values of a config.json for a small model of the same structure as another.

Only sizes are made smaller: layers, vocabulary, heads, widths, experts, windows. Everything that
selects code stays: kinds of layers, norms, biases, activation functions, types of rope.
"""

import re
from collections.abc import Mapping
from typing import Any

VOCABULARY = 256  # tokens
WINDOW = 24  # tokens of a sliding window or chunk, so that short sequences exceed it
_WIDTH = 128  # of an MLP or an expert
_MOST_LAYERS = 8
_MOST_EXPERTS = 16

_HEADS = re.compile(r"(^|_)(num_attention_heads|num_heads|n_heads?)$")
_KV_HEADS = re.compile(r"(^|_)(num_key_value_heads|num_kv_heads|n_kv_heads|n_head_kv)$")
_MLP = re.compile(r"(intermediate|ffn|feedforward|mlp)\w*(size|dim|width)$|^(n_inner|d_ff)$")
_EXPERTS = frozenset({"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"})
_CHOSEN = frozenset({"num_experts_per_tok", "moe_k", "top_k_experts", "moe_topk"})
_GROUPS = frozenset({"n_group", "num_expert_group"})
_WINDOWS = re.compile(r"window(_size)?$|chunk_size$")
_EVERY = re.compile(r"(step|interval|freq|period|pattern)$")  # one of so many layers is different
_FIRST = frozenset({"first_k_dense_replace", "num_kv_shared_layers", "num_dense_layers"})
_SPECIAL = frozenset({"bos_token_id", "eos_token_id", "pad_token_id"})


def reduce_depth(values: Mapping[str, Any], layers: str = "num_hidden_layers") -> dict[str, Any]:
    """Return the values with few layers, a small vocabulary and short windows, at full width.

    One layer of each kind is kept, and at least two layers. Lists with an entry for each layer keep
    those of the layers that are kept.

    Args:
        layers: the key of the number of layers.
    """
    count = int(values[layers])
    kept = _kept_layers(values, count)
    reduced = dict(values)
    for key, value in values.items():
        if _is_per_layer(value, count):
            reduced[key] = [value[index] for index in kept]
        elif _is_by_layer(value):
            own = {int(index): entry for index, entry in value.items()}
            reduced[key] = {str(kept.index(i)): entry for i, entry in own.items() if i in kept}
        elif isinstance(value, bool) or not isinstance(value, int):
            continue
        elif key.startswith("vocab_size") or key.endswith("vocab_size"):
            reduced[key] = min(value, VOCABULARY)
        elif _WINDOWS.search(key):
            reduced[key] = min(value, WINDOW)
        elif _EVERY.search(key):
            reduced[key] = min(value, 2)
        elif key in _FIRST:
            reduced[key] = min(value, 1)
        elif key in _SPECIAL and value >= VOCABULARY:
            reduced[key] = 0
    return {**reduced, layers: len(kept)}


def reduce_width(values: Mapping[str, Any], hidden: str = "hidden_size") -> dict[str, Any]:
    """Return the values with fewer heads and experts and narrower MLPs.

    The hidden size is divided by the same number as the heads, so that their ratio stays. An even
    number of KV heads becomes 2, and so does an even number of heads that share one.

    Args:
        hidden: the key of the hidden size.
    """
    numbers = {k: v for k, v in values.items() if isinstance(v, int) and not isinstance(v, bool)}
    heads = max((v for k, v in numbers.items() if _HEADS.search(k)), default=1)
    kv_heads = max((v for k, v in numbers.items() if _KV_HEADS.search(k)), default=heads)
    by_kv = _halved(kv_heads)
    factor = by_kv * _halved(heads // max(kv_heads, 1))
    chosen = max((numbers[key] for key in _CHOSEN & numbers.keys()), default=1)
    groups = max((numbers[key] for key in _GROUPS & numbers.keys()), default=1)
    experts = max(_MOST_EXPERTS, 2 * chosen, 4 * groups)

    def smaller(key: str, value: Any) -> Any:
        if _is_by_layer(value):
            return {i: {k: smaller(k, v) for k, v in own.items()} for i, own in value.items()}
        if isinstance(value, bool) or not isinstance(value, int):
            return value
        if (_HEADS.search(key) or value == numbers[hidden]) and value % factor == 0:
            return value // factor
        if _KV_HEADS.search(key) and value % by_kv == 0:
            return value // by_kv
        if _MLP.search(key):
            return min(value, _WIDTH)
        return min(value, experts) if key in _EXPERTS else value

    return {key: smaller(key, value) for key, value in values.items()}


def _halved(count: int) -> int:
    """Return by what an even number is divided to become 2; 1 for an odd number."""
    return count // 2 if count and count % 2 == 0 else 1


def _is_per_layer(value: object, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and not _are_indices(value)


def _is_by_layer(value: object) -> bool:
    """Return whether a value is an object with an object for some layers, by their numbers."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(str(key).isdigit() and isinstance(own, dict) for key, own in value.items())
    )


def _are_indices(value: list[Any]) -> bool:
    """Return whether a list names layers by their numbers, as lists of dense layers do."""
    return value == list(range(len(value))) and len(value) > 2


def _kept_layers(values: Mapping[str, Any], count: int) -> list[int]:
    """Return the numbers of the layers to keep: the first of each kind, and two at least."""
    columns = [value for value in values.values() if _is_per_layer(value, count)]
    for value in filter(_is_by_layer, values.values()):
        own = {int(index): entry for index, entry in value.items()}
        columns.append([own.get(index) for index in range(count)])
    first: dict[str, int] = {}
    for index in range(count):
        first.setdefault(str([column[index] for column in columns]), index)
    kept = sorted(first.values())[:_MOST_LAYERS]
    others = [index for index in range(count) if index not in kept]
    return sorted(kept + others[: max(2 - len(kept), 0)])
