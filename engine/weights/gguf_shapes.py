"""A check that the tensors of a GGUF file have the sizes that its metadata say.

It needs the header alone, so that a file whose parts do not belong together is refused before
anything is built of it, by the names that the file has.
"""

import logging
import re
from collections.abc import Iterator, Mapping

from engine.errors import ModelError
from engine.weights.gguf_config import ARCHITECTURES, DENSE_MLP, EXPERTS, Architecture
from engine.weights.gguf_keys import EMBEDDING, metadata_names
from engine.weights.gguf_model import Model, Values

log = logging.getLogger(__name__)

_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias|scale)")
_TOKENS = "tokenizer.ggml.tokens"
_REMEDY = "Metadata and tensors are not of one model: download the file again, or use another"

# A dimension is a sum of products of values of config.json.
_Product = tuple[str, ...]
_Dimension = tuple[_Product, ...]
_Shape = tuple[_Dimension, ...]


def _of(*keys: str) -> _Dimension:
    return (keys,)


_ROWS, _HIDDEN, _WIDTH = _of("vocab_size"), _of("hidden_size"), _of("intermediate_size")
_HEADS, _HEAD = _of("num_attention_heads"), _of("head_dim")
_PAIRS = _of("num_key_value_heads")
_QUERIES, _KEYS = (_of(f"num_{kind}_heads", "head_dim") for kind in ("attention", "key_value"))
# Of experts. A configuration has one key of each two.
_COUNT, _EXPERT = (
    _of("num_experts|num_local_experts"),
    _of("moe_intermediate_size|intermediate_size"),
)

# Of the inputs that each layer has of its own.
_INPUT = _of("hidden_size_per_layer_input")
_INPUTS = _of("num_hidden_layers", "hidden_size_per_layer_input")
_STREAMS, _RANK = _of("altup_num_inputs"), _of("laurel_rank")

_OUTSIDE: Mapping[str, _Shape] = {
    EMBEDDING: (_ROWS, _HIDDEN),
    "output.weight": (_ROWS, _HIDDEN),
    "output_norm.weight": (_HIDDEN,),
    "per_layer_token_embd.weight": (_of("vocab_size_per_layer_input"), _INPUTS),
    "per_layer_model_proj.weight": (_INPUTS, _HIDDEN),
    "per_layer_proj_norm.weight": (_INPUT,),
}
# Of the weights of a layer: outputs, then inputs. A bias has the outputs alone.
_SHAPES: Mapping[str, _Shape] = {
    "attn_norm": (_HIDDEN,),
    "attn_q": (_QUERIES, _HIDDEN),
    "attn_k": (_KEYS, _HIDDEN),
    "attn_v": (_KEYS, _HIDDEN),
    "attn_qkv": (_QUERIES + _KEYS + _KEYS, _HIDDEN),
    "attn_output": (_HIDDEN, _QUERIES),
    "attn_q_norm": (_HEAD,),
    "attn_k_norm": (_HEAD,),
    "attn_sinks": (_HEADS,),
    "post_attention_norm": (_HIDDEN,),
    "ffn_norm": (_HIDDEN,),
    "post_ffw_norm": (_HIDDEN,),
    "ffn_gate": (_WIDTH, _HIDDEN),
    "ffn_up": (_WIDTH, _HIDDEN),
    "ffn_down": (_HIDDEN, _WIDTH),
    "ffn_gate_inp": (_COUNT, _HIDDEN),
    "ffn_gate_exps": (_COUNT, _EXPERT, _HIDDEN),
    "ffn_up_exps": (_COUNT, _EXPERT, _HIDDEN),
    "ffn_gate_up_exps": (_COUNT, _EXPERT + _EXPERT, _HIDDEN),
    "ffn_down_exps": (_COUNT, _HIDDEN, _EXPERT),
    "post_ffw_norm_1": (_HIDDEN,),
    "post_ffw_norm_2": (_HIDDEN,),
    "pre_ffw_norm_2": (_HIDDEN,),
    "inp_gate": (_INPUT, _HIDDEN),
    "proj": (_HIDDEN, _INPUT),
    "post_norm": (_HIDDEN,),
    "layer_output_scale": (((),),),
    "altup_correct_coef": (_STREAMS, _STREAMS),
    "altup_correct_scale": (_HIDDEN,),
    "altup_predict_coef": (_of("altup_num_inputs", "altup_num_inputs"), _STREAMS),
    "altup_router": (_STREAMS, _HIDDEN),
    "altup_router_norm": (_HIDDEN,),
    "laurel_l": (_RANK, _HIDDEN),
    "laurel_r": (_HIDDEN, _RANK),
    "laurel_post_norm": (_HIDDEN,),
}
# Of vectors beside the weights of a layer.
_SCALES: Mapping[str, _Shape] = {"ffn_gate_inp": (_HIDDEN,), "ffn_down_exps": (_COUNT,)}
# One norm for each head.
_OF_HEADS: Mapping[str, _Shape] = {"attn_q_norm": (_HEADS, _HEAD), "attn_k_norm": (_PAIRS, _HEAD)}
# The gate and up parts of one tensor.
_BOTH: Mapping[str, _Shape] = {"ffn_up": (_WIDTH + _WIDTH, _HIDDEN)}


def check_tensors(model: Model, values: Values) -> None:
    """Raise `ModelError` unless the tensors are those of the layers and sizes of the metadata.

    Tensors that the family has no place for are left to the reader of the checkpoint.

    Args:
        model: the metadata and the tensors of the file.
        values: the values of config.json that were made of the metadata.
    """
    family = ARCHITECTURES[model.architecture]
    _check_layers(model, values["num_hidden_layers"], sorted(_needed(model, family)))
    shapes = {**_SHAPES, **_BOTH} if "attn_qkv" in family.names else _SHAPES
    if family.names.get("attn_q_norm", "").endswith("*"):
        shapes = {**_SHAPES, **_OF_HEADS}
    for name, info in model.tensors.items():
        layer = _LAYER.fullmatch(name)
        wanted, held = _OUTSIDE.get(name), values
        if layer is not None:
            number, part, suffix = layer.groups()
            wanted = (_SCALES if suffix == "scale" else shapes).get(part)
            wanted, held = _in_layer(wanted, values, int(number))
            if wanted is not None and suffix == "bias":
                wanted = wanted[:-1] if len(wanted) > 1 else wanted
        if wanted is None or not _is_known(wanted, held):
            continue
        sizes = [_size(dimension, held) for dimension in wanted]
        if list(info.shape) != sizes:
            said = ", ".join(dict.fromkeys(_said(wanted, info.shape, model, held)))
            raise ModelError(
                f"{model.path}: {name} has shape {list(info.shape)}, but {sizes} is expected by "
                f"{said}. {_REMEDY}"
            )
    _check_vocabulary(model)


def _is_known(wanted: _Shape, values: Values) -> bool:
    """Return whether there is a value for each dimension, which other families' parts lack."""
    keys = (key for dimension in wanted for product in dimension for key in product)
    return all(any(name in values for name in key.split("|")) for key in keys)


def _in_layer(wanted: _Shape | None, values: Values, layer: int) -> tuple[_Shape | None, Values]:
    """Return the shape of a part in this layer, and the values that hold there.

    Layers may have MLPs of different widths. In Gemma 4, the heads of the layers without a window
    have other sizes, and the MLPs of the layers that share keys and values may be twice as wide.
    """
    widths = values.get("intermediate_size")
    if isinstance(widths, list):
        return wanted, {**values, "intermediate_size": widths[layer]}
    if wanted is None or "global_head_dim" not in values:
        return wanted, values
    if values["layer_types"][layer] == "full_attention":
        own = {key: name for key, name in _GLOBAL.items() if name in values}
        wanted = tuple(
            tuple(tuple(own.get(key, key) for key in product) for product in dimension)
            for dimension in wanted
        )
    is_shared = layer >= values["num_hidden_layers"] - values["num_kv_shared_layers"]
    if values["use_double_wide_mlp"] and is_shared:
        wanted = tuple(_WIDTH + _WIDTH if size == _WIDTH else size for size in wanted)
    return wanted, values


_GLOBAL = {
    "head_dim": "global_head_dim",
    "num_key_value_heads": "num_global_key_value_heads",
}


def _check_vocabulary(model: Model) -> None:
    """Raise `ModelError` unless the embedding has a row for each token, as many as the file says.

    Rows without a token are logged: they are padding, or the list of tokens is incomplete.
    """
    tokens, rows = model.metadata.get(_TOKENS), model.tensors[EMBEDDING].shape[0]
    found = f"{_TOKENS}: {len(tokens)} tokens" if isinstance(tokens, list) else ""
    if isinstance(tokens, list) and len(tokens) > rows:
        raise ModelError(f"{model.path}: {found}, but {EMBEDDING} has {rows} rows. {_REMEDY}")
    if model.value("vocab_size") is None:
        return
    size = model.integer("vocab_size")
    key = f"{model.architecture}.vocab_size is {size}"
    if size != rows:
        beside = f" and {found}" if found else ""
        raise ModelError(f"{model.path}: {key}, but {EMBEDDING} has {rows} rows{beside}. {_REMEDY}")
    if isinstance(tokens, list) and len(tokens) < size:
        log.warning("%s: %s, but %s: the other rows have no text", model.path, key, found)


def _check_layers(model: Model, count: int, needed: list[str]) -> None:
    """Raise `ModelError` unless the layers of the file are `count` and have the `needed` parts."""
    found = {int(layer[1]) for name in model.tensors if (layer := _LAYER.fullmatch(name))}
    if found != set(range(count)):
        held = (
            f"of {len(found)} layers, blk.{min(found)} to blk.{max(found)}"
            if found
            else "of no layer"
        )
        raise ModelError(
            f"{model.path}: {model.architecture}.block_count: {count} layers, but the file has "
            f"tensors {held}. {_REMEDY}"
        )
    wanted = [f"blk.{index}.{name}" for index in range(count) for name in needed]
    for name in ("output_norm.weight", *wanted):
        if name not in model.tensors:
            raise ModelError(
                f"{model.path}: {name} is missing. The file is damaged or incomplete: download it "
                "again"
            )


def _needed(model: Model, family: Architecture) -> set[str]:
    """Return the names of the tensors that each layer of a family has."""
    parts = {
        part
        for part in family.names
        if part not in family.irregular
        and (part not in family.optional or f"blk.0.{_named_tensor(part)}" in model.tensors)
    }
    if not model.integer("expert_count", 0):
        parts -= {"ffn_gate_inp"}
    elif "ffn_gate_inp" in parts and "ffn_gate_inp" not in family.optional:
        parts = parts - DENSE_MLP | EXPERTS
    return {_named_tensor(part) for part in parts}


def _named_tensor(part: str) -> str:
    """Return the name in a layer of the tensor of a part, which may have its suffix already."""
    return part if "." in part else f"{part}.weight"


def _value(key: str, values: Values) -> int:
    return int(next(values[name] for name in key.split("|") if name in values))


def _size(dimension: _Dimension, values: Values) -> int:
    total = 0
    for product in dimension:
        size = 1
        for key in product:
            size *= _value(key, values)
        total += size
    return total


def _said(wanted: _Shape, shape: tuple[int, ...], model: Model, values: Values) -> Iterator[str]:
    """Yield the metadata, with their values, that the wrong dimensions of a tensor come from."""
    is_same = len(shape) == len(wanted)
    for index, dimension in enumerate(wanted):
        if is_same and shape[index] == _size(dimension, values):
            continue
        for product in dimension:
            for key in product:
                yield from _named(key, model, values)


def _named(key: str, model: Model, values: Values) -> Iterator[str]:
    """Yield the name and the value in the file of a value of config.json."""
    own = next(name for name in key.split("|") if name in values)
    if own == "head_dim" and model.value("attention.key_length") is None:
        yield from _named("hidden_size", model, values)  # it is their quotient
        yield from _named("num_attention_heads", model, values)
        return
    name = metadata_names(model.architecture)[own]
    yield f"{name} ({values[own]}{' rows' if name in model.tensors else ''})"
