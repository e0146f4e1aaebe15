"""The rope parameters of transformers for the metadata and the factor tensors of a GGUF file."""

import math

from engine.errors import ModelError
from engine.weights.gguf_model import Model, Values, head_dim, shortest

ROPE_TABLES = frozenset(
    {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
)
LARGEST_TABLE = 1 << 12  # values
# Families whose heads may be rotated in part.
_PARTIAL = frozenset({"phi3", "stablelm", "nemotron"})
_NEVER = 1e20  # a factor with which no frequency rotates anything within any context
_TOLERANCE = 1e-5  # of factors that were computed in float32


def rope_parameters(model: Model) -> Values:
    """Return the rope parameters: base, scaling and the factors of single frequencies."""
    theta = model.number("rope.freq_base", 10000.0)
    if theta <= 0:
        raise model.wrong("rope.freq_base", "a number above 0")
    base: Values = {"rope_theta": theta}
    size, turned = head_dim(model), model.integer("rope.dimension_count", head_dim(model))
    if turned != size:
        if model.architecture not in _PARTIAL or not 0 < turned < size:
            raise model.wrong("rope.dimension_count", f"the width of a head ({size})")
        base["partial_rotary_factor"] = _part(turned, size)
    if "rope_factors_long.weight" in model.tables:
        return base | _longrope(model, turned)
    if "rope_freqs.weight" in model.tables:
        return base | _factors(model, theta, turned)
    return base | _scaling(model)


def proportional_rope(model: Model) -> Values:
    """Return the parameters of a rope that rotates the first frequencies of a head and no others.

    In the file, the frequencies that are not rotated have so large a factor that they are 0.
    """
    size, name = head_dim(model), "rope_freqs.weight"
    factors, theta = list(model.tables.get(name, ())), model.number("rope.freq_base")
    turned = factors.count(1.0)
    is_known = factors[:turned] == [1.0] * turned and min(factors[turned:], default=1e30) >= _NEVER
    if not turned or 2 * len(factors) != size or not is_known:
        raise ModelError(
            f"{model.path}: {name}: {size // 2} values are expected, 1 for the frequencies that "
            f"are rotated and at least {_NEVER:g} for the others"
        )
    if theta <= 0:
        raise model.wrong("rope.freq_base", "a number above 0")
    if model.integer("rope.dimension_count", size) != size:
        raise model.wrong("rope.dimension_count", f"the width of a head ({size})")
    if _scaling(model)["rope_type"] != "default":
        raise model.wrong("rope.scaling.type", "none")
    part = _part(2 * turned, size)
    return {"rope_type": "proportional", "rope_theta": theta, "partial_rotary_factor": part}


def _part(turned: int, size: int) -> float:
    """Return a factor whose product with `size`, cut to an integer, is `turned`."""
    factor = turned / size
    return factor if int(size * factor) == turned else math.nextafter(factor, 1.0)


def _scaling(model: Model) -> Values:
    """Return the parameters of a scaling of all frequencies."""
    kind = model.value("rope.scaling.type")
    if kind is None and model.value("rope.scale_linear") is not None:  # of files before 2024
        return {"rope_type": "linear", "factor": model.number("rope.scale_linear")}
    if kind in (None, "none"):
        return {"rope_type": "default"}
    if kind == "linear":
        return {"rope_type": "linear", "factor": model.number("rope.scaling.factor")}
    if kind != "yarn":
        raise model.wrong("rope.scaling.type", "none, linear or yarn")
    factor = model.number("rope.scaling.factor")
    found = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": model.integer("rope.scaling.original_context_length"),
        "beta_fast": model.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": model.number("rope.scaling.yarn_beta_slow", 1.0),
    }
    for name in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"):
        if (own := model.number(name, 1.0)) != 1.0 and factor > 0:
            found["attention_factor"] = own * (0.1 * math.log(factor) + 1.0)
    return found


def _longrope(model: Model, turned: int) -> Values:
    """Return the parameters of Phi-3's rope, whose factors are two tensors."""
    short, long = (
        _table(model, f"rope_factors_{kind}.weight", turned) for kind in ("short", "long")
    )
    original = model.integer("rope.scaling.original_context_length")
    if original < 1:
        raise model.wrong("rope.scaling.original_context_length", "at least 1")
    found: Values = {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "factor": model.integer("context_length") / original,
        "original_max_position_embeddings": original,
    }
    if model.value("rope.scaling.attn_factor") is not None:
        found["attention_factor"] = model.number("rope.scaling.attn_factor")
    return found


def _factors(model: Model, base: float, turned: int) -> Values:
    """Return the parameters of a rope whose frequencies are divided by the factors of a tensor.

    Llama 3's are recognized, so that its frequencies have the bits of the original model. Other
    factors are those of a longrope that is the same for all lengths.
    """
    factors = _table(model, "rope_freqs.weight", turned)
    lengths = [2 * math.pi * base ** (2 * i / turned) for i in range(turned // 2)]
    for original in (8192, *(1 << power for power in range(4, 20))):
        found = {
            "rope_type": "llama3",
            "factor": max(factors),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }
        made = [_llama3_factor(length, max(factors), original) for length in lengths]
        if all(math.isclose(*pair, rel_tol=_TOLERANCE) for pair in zip(made, factors, strict=True)):
            return found
    return {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "attention_factor": 1.0,
        "factor": 1.0,
        "original_max_position_embeddings": model.integer("context_length"),
    }


def _llama3_factor(length: float, factor: float, original: int) -> float:
    """Return the factor of a frequency with this wave length, with Llama 3's limits 1 and 4."""
    if length < original / 4:
        return 1.0
    if length > original:
        return factor
    smooth = (original / length - 1) / 3
    return 1 / ((1 - smooth) / factor + smooth)


def _table(model: Model, name: str, turned: int) -> list[float]:
    """Return the factors of the frequencies, which are positive."""
    values = list(model.tables.get(name, ()))
    if len(values) != turned // 2 or not all(0 < value < math.inf for value in values):
        raise ModelError(
            f"{model.path}: {name}: {turned // 2} positive values are expected, half of "
            f"{model.architecture}.rope.dimension_count or of the width of a head"
        )
    return [shortest(value) for value in values]
