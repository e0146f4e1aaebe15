"""The values of a config.json for a small model of the same structure as another.

Only sizes are made smaller: layers, vocabulary, heads, widths, experts, windows, and the lengths
from which on positions are treated differently. Everything that selects code stays: kinds of
layers, norms, biases, activation functions, types of rope.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.weights.config_place import ConfigError
from engine.weights.family import text_config, text_key

VOCABULARY = 256  # tokens
WINDOW = 24  # tokens of a sliding window or chunk, so that short sequences exceed it
ORIGINAL = 96  # positions, where a rope changes beyond them
# Of an MLP: three threads make pieces of a tile, none of which is a whole number of vectors.
_WIDTH = 1036
_EXPERT_WIDTH = 128
_MOST_LAYERS = 8
_MOST_EXPERTS = 16

_HEADS = re.compile(r"(^|_)(num_attention_heads|num_heads|n_heads?)$")
_KV_HEADS = re.compile(r"(^|_)(num_key_value_heads|num_kv_heads|n_kv_heads|n_head_kv)$")
# Of recurrent layers: heads, whose number is not that of the attention's, and all heads' width.
_RECURRENT_HEADS = re.compile(r"^linear_num_\w*heads$")
_MAMBA_SIZES = frozenset({"mamba_n_heads", "mamba_num_heads", "mamba_d_ssm"})
_MLP = re.compile(r"(intermediate|ffn|feedforward|mlp)\w*(size|dim|width)$|^(n_inner|d_ff)$")
_EXPERTS = frozenset({"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"})
_CHOSEN = frozenset({"num_experts_per_tok", "moe_k", "top_k_experts", "moe_topk"})
_GROUPS = frozenset({"n_group", "num_expert_group"})
_WINDOWS = re.compile(r"window(_size)?$|^attention_chunk_size$")
_LONGEST = "max_position_embeddings"
_ORIGINAL_KEY = "original_max_position_embeddings"
_LENGTHS = {_ORIGINAL_KEY: ORIGINAL, "floor_scale": WINDOW}
_LAYERS = re.compile(r"layers$|layer_indices$")  # a list of the numbers of some layers
_EVERY = re.compile(r"(step|interval|freq|period|pattern)$")  # one of so many layers is different
_FIRST = frozenset({"first_k_dense_replace", "num_dense_layers"})
_SHARED = "num_kv_shared_layers"  # the last ones, which have no keys and values of their own
_SPECIAL = frozenset({"bos_token_id", "eos_token_id", "pad_token_id"})


def reduce_depth(values: Mapping[str, Any], layers: str = "num_hidden_layers") -> dict[str, Any]:
    """Return the values with few layers, a small vocabulary and short windows, at full width.

    One layer of each kind is kept, and at least two layers. Lists with an entry for each layer keep
    those of the layers that are kept. Lengths inside of rope parameters are reduced too.

    Args:
        layers: the key of the number of layers.
    """
    kept = _kept_layers(values, int(values[layers]))
    reduced = _shorten(keep_layers(values, kept, layers))
    for key, value in reduced.items():
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if key.startswith("vocab_size") or key.endswith("vocab_size"):
            reduced[key] = min(value, VOCABULARY)
        elif _WINDOWS.search(key):
            reduced[key] = min(value, WINDOW)
        elif _EVERY.search(key):
            reduced[key] = min(value, 2)
        elif key in _FIRST:
            reduced[key] = min(value, 1)
        elif key in _SPECIAL and value >= VOCABULARY:
            reduced[key] = 0
    return reduced


def keep_layers(
    values: Mapping[str, Any], kept: Sequence[int], layers: str = "num_hidden_layers"
) -> dict[str, Any]:
    """Return the values of a model with only some of its layers, by their numbers, in order.

    Args:
        layers: the key of the number of layers.
    """
    count = int(values[layers])
    reduced = {**values, layers: len(kept)}
    for key, value in values.items():
        if _is_per_layer(value, count):
            reduced[key] = [value[index] for index in kept]
        elif _is_by_layer(value):
            own = {int(index): entry for index, entry in value.items()}
            reduced[key] = {str(kept.index(i)): entry for i, entry in own.items() if i in kept}
        elif _are_layers(key, value, count):
            reduced[key] = [place for place, index in enumerate(kept) if index in value]
        elif key == _SHARED and value:
            reduced[key] = sum(index >= count - value for index in kept)
    return reduced


def change_text(config: Any, change: Callable[[dict[str, Any], str, str], dict[str, Any]]) -> Any:
    """Return the values of a config.json whose language part is changed.

    Args:
        config: the configuration of the whole model.
        change: is given the values of the language part, and its keys of the number of layers and
            of the hidden size; returns the new values.

    Raises `ConfigError` if the configuration does not say how many layers there are or how wide.
    """
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    place = text_key(config)
    names: Mapping[str, str] = text_config(config).attribute_map
    layers, hidden = (names.get(key, key) for key in ("num_hidden_layers", "hidden_size"))
    whole = values if place is None else values[place]
    if layers not in whole and hasattr(text_config(config), layers):  # it counts its layer types
        whole = {**whole, layers: getattr(text_config(config), layers)}
    for key in (layers, hidden):
        if key not in whole:
            raise ConfigError("model_type", f" {config.model_type!r} has no {key}")
    own = change(whole, layers, hidden)
    return own if place is None else {**values, place: own}


def _shorten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with short lengths, also in nested objects.

    The ratio of the longest position to the original one stays, since frequencies depend on it.
    """
    reduced = {k: _shorten(v) if isinstance(v, dict) else v for k, v in values.items()}
    for key, most in _LENGTHS.items():
        if isinstance(value := values.get(key), int):
            reduced[key] = min(value, most)
    longest, original = values.get(_LONGEST), _original(values)
    if isinstance(longest, int) and original > ORIGINAL:
        reduced[_LONGEST] = max(longest * ORIGINAL // original, 2 * ORIGINAL)
    return reduced


def _original(values: Mapping[str, Any]) -> int:
    """Return the original number of positions, of the values or of an object in them; 0 if none."""
    own = values.get(_ORIGINAL_KEY)
    inside = (_original(value) for value in values.values() if isinstance(value, dict))
    return own if isinstance(own, int) else max(inside, default=0)


def reduce_width(values: Mapping[str, Any], hidden: str = "hidden_size") -> dict[str, Any]:
    """Return the values with fewer heads and experts and narrower MLPs.

    The hidden size is divided by the same number as the heads, so that their ratio stays. An even
    number of KV heads becomes 2, and so does an even number of heads that share one.

    Args:
        hidden: the key of the hidden size.
    """
    numbers = {k: v for k, v in values.items() if isinstance(v, int) and not isinstance(v, bool)}
    heads = max((v for k, v in numbers.items() if _is_heads(k)), default=1)
    kv_heads = max((v for k, v in numbers.items() if _KV_HEADS.search(k)), default=heads)
    by_kv = _halved(kv_heads)
    factor = by_kv * _halved(heads // max(kv_heads, 1))
    chosen = max((numbers[key] for key in _CHOSEN & numbers.keys()), default=1)
    groups = max((numbers[key] for key in _GROUPS & numbers.keys()), default=1)
    experts = max(_MOST_EXPERTS, 2 * chosen, 4 * groups)
    by_recurrent = _halved(
        min((v for k, v in numbers.items() if _RECURRENT_HEADS.search(k)), default=2)
    )
    # A mixture of experts that has no key for their width uses that of an MLP.
    has_own_width = any(_MLP.search(key) and "moe" in key for key in numbers)
    is_mixture = any(numbers.get(key) for key in _EXPERTS)
    mlp_width = _EXPERT_WIDTH if is_mixture and not has_own_width else _WIDTH

    def smaller(key: str, value: Any) -> Any:
        if isinstance(value, list) and _MLP.search(key):  # one for each layer
            return [smaller(key, own) for own in value]
        if _is_by_layer(value):
            return {i: {k: smaller(k, v) for k, v in own.items()} for i, own in value.items()}
        if isinstance(value, bool) or not isinstance(value, int):
            return value
        is_mamba = key in _MAMBA_SIZES and numbers[hidden] % factor == 0
        if (_is_heads(key) or is_mamba or value == numbers[hidden]) and value % factor == 0:
            return value // factor
        if _RECURRENT_HEADS.search(key) and value % by_recurrent == 0:
            return value // by_recurrent
        if _KV_HEADS.search(key) and value % by_kv == 0:
            return value // by_kv
        if _MLP.search(key):
            is_dense = not re.search(r"moe|expert", key)
            return min(value, mlp_width if is_dense else _EXPERT_WIDTH)
        return min(value, experts) if key in _EXPERTS else value

    return {key: smaller(key, value) for key, value in values.items()}


def _is_heads(key: str) -> bool:
    """Return whether a key is the number of the attention's query heads."""
    own = key in _MAMBA_SIZES or _RECURRENT_HEADS.search(key)
    return _HEADS.search(key) is not None and not own


def _halved(count: int) -> int:
    """Return by what an even number is divided to become 2; 1 for an odd number."""
    return count // 2 if count and count % 2 == 0 else 1


def _is_per_layer(value: object, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and not _are_indices(value)


def _are_layers(key: str, value: object, count: int) -> bool:
    """Return whether a value is a list of the numbers of some layers, in their order."""
    if not _LAYERS.search(key) or not isinstance(value, list) or _is_per_layer(value, count):
        return False
    whole = all(isinstance(own, int) and 0 <= own < count for own in value)
    return whole and sorted(set(value)) == value


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
    for key, value in values.items():
        if _are_layers(key, value, count):
            columns.append([index in value for index in range(count)])
    first_shared = count - (values.get(_SHARED) or 0)
    columns.append([index >= first_shared for index in range(count)])
    for value in filter(_is_by_layer, values.values()):
        own = {int(index): entry for index, entry in value.items()}
        columns.append([own.get(index) for index in range(count)])
    first: dict[str, int] = {}
    for index in range(count):
        first.setdefault(str([column[index] for column in columns]), index)
    kept = sorted(first.values())[:_MOST_LAYERS]
    others = [index for index in range(count) if index not in kept]
    return sorted(kept + others[: max(2 - len(kept), 0)])
