"""The weights of mixtures of experts in a model, of which drafts have 4-bit copies."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from engine.weights.outline import stacked_weights

# The fused weights that `engine.model.experts` multiplies with.
_MULTIPLIED = frozenset({"gate_up_proj", "up_proj", "down_proj"})
_ROUTERS = frozenset({"gate", "router"})  # a part of the path of a router's weight


@dataclass(frozen=True)
class ExpertWeights:
    """The weights of the mixtures of experts in some layers, by their names in a layer's unit.

    Args:
        stacks: the fused weights. True: they are stored as [experts, inputs, outputs]; False: as
            [experts, outputs, inputs].
        others: routers and biases, which stay as they are in a draft: few bytes decide which
            experts a row is given to.
        unknown: names of classes whose fused weights are computed in another way.
        count: the most experts of a layer.
    """

    stacks: Mapping[str, bool] = field(default_factory=dict)
    others: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()
    count: int = 0


def find_experts(layers: Iterable[nn.Module]) -> ExpertWeights:
    """Return the weights of mixtures of experts in layers of a model that has no weights yet."""
    stacks: dict[str, bool] = {}
    others: set[str] = set()
    unknown: set[str] = set()
    most = 0
    for layer in layers:
        counts = set()
        for name in stacked_weights(layer):
            path, _, own = name.rpartition(".")
            experts = layer.get_submodule(path)
            is_turned = getattr(experts, "is_transposed", None)
            if is_turned is None or own not in _MULTIPLIED:
                unknown.add(type(experts).__name__)
                continue
            stacks[name] = is_turned
            counts.add(len(layer.get_parameter(name)))
            others |= {f"{path}.{n}" for n, p in experts.named_parameters() if p.dim() < 3}
        for name, parameter in layer.named_parameters():
            if parameter.dim() == 2 and len(parameter) in counts:
                others |= {name} if _ROUTERS.intersection(name.split(".")) else set()
        most = max(most, *counts, 0)
    return ExpertWeights(stacks, frozenset(others), frozenset(unknown), most)
