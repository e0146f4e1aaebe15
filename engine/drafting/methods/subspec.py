"""SubSpec: low-bit copies of the target's own layers draft the tree (arXiv 2509.18344)."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from engine.drafting.method import BuildDraft, DraftContext, DraftNeeds, MethodFacts, PlanContext
from engine.drafting.tree import Bounds
from engine.errors import ModelError

if TYPE_CHECKING:
    from engine.weights.expert_weights import ExpertWeights
    from engine.weights.formats.linear import Kernel

MAKING_TEMPORARIES = 96 << 20  # of quantizing 4 M weights at a time in float32


def needs(context: PlanContext) -> DraftNeeds:
    """Return the memory that the copies take.

    Raises `ModelError` for experts that cannot be copied or whose copies would be of no use, and
    for a device without a 4-bit product.

    Making a copy needs host memory for a while: the dense unit and three times a quarter of it, for
    the copy as it is written, as it is copied and as it is packed; the unit as it is stored, if
    that is packed; and a slice of experts, if the unit is made of such. Reading one takes two of
    the three quarters.
    """
    from engine.weights.expert_weights import ExpertWeights
    from engine.weights.formats.linear import (
        best_kernel,
        matrix_shapes,
        substitute_bytes,
        without_experts,
    )
    from engine.weights.formats.tensor_cores import describe, has_fast_bfloat16
    from engine.weights.layout import join_layouts
    from engine.weights.packing import dense_bytes

    group, device, experts = context.draft.group, context.device, context.experts
    experts = experts or ExpertWeights()
    if experts.unknown:
        raise ModelError(
            f"draft.method: subspec has no copies of experts as {context.config.model_type!r} has "
            f"them ({', '.join(sorted(experts.unknown))}), which are computed by code of its own. "
            "Use specexec with a small model of the same vocabulary, or ngram."
        )
    layers = join_layouts(context.layouts, context.layers)  # copies are made of whole layers
    kernel = best_kernel(matrix_shapes(layers[0]), group, device)
    if device is not None and kernel == "int4" and not has_fast_bfloat16(device):
        raise ModelError(
            f"draft.method: subspec has no 4-bit product on {describe(device)}: int4 needs 8.0 or "
            "newer. Install the package bitsandbytes, whose nf4 runs there, or use specexec or "
            "ngram."
        )
    copies = [substitute_bytes(unit, group, device, kernel, experts) for unit in context.layouts]
    others = [without_experts(unit, experts) for unit in context.layouts]
    of_experts = sum(copies) - sum(
        substitute_bytes(unit, group, device, kernel, experts) for unit in others
    )
    _check_stored(context, experts, of_experts)
    sizes = [(layer.nbytes, dense_bytes(layer, context.dtype)) for layer in layers]
    largest = max(dense * 7 // 4 + (own if own < dense else 0) for own, dense in sizes)
    if any(layer.slices for layer in context.layers):
        largest += max(unit.nbytes for unit in context.layouts)
    return DraftNeeds(
        scratch_rows=context.bounds.budget,
        draft_rows=context.bounds.draft_rows,
        step_rows=context.bounds.width,
        weight_bytes=sum(copies),
        making_bytes=largest + MAKING_TEMPORARIES,
        reading_bytes=max(dense // 2 for _, dense in sizes),
        cache_entries=_cache_entries(context, kernel),
        substitute_bytes=copies,
        expert_bytes=of_experts,
    )


FACTS = MethodFacts(
    bounds=Bounds(depth=48, width=6, branch=6, budget=256),
    # A published model of 135 M parameters has .934: 14.6 tokens a pass at this depth, over 18
    # chats at temperatures 0 and 0.8. Larger models lose less by 4 bits; for 32 B, 12.5 times the
    # speed of plain decoding were reported with all drafting (arXiv 2509.18344). Published mixtures
    # of experts are not measured: they are taken to agree as often.
    agreement=0.94,
    has_draft_steps=True,
    is_candidate=True,
    needs=needs,
    keys=frozenset({"bits", "group", "calibrate"}),
)


def prepare(context: DraftContext) -> BuildDraft:
    """Return the function that makes or reads the copies and builds the draft."""
    from engine.drafting.model.self_draft import SelfDraft

    return SelfDraft(context).build


def _cache_entries(context: PlanContext, kernel: Kernel) -> tuple[str, ...]:
    """Return the names of what is made for the draft, as the cache has it."""
    from engine.drafting.model.importance import describe_importance
    from engine.drafting.model.substitutes import describe_form

    group, is_fitted = context.draft.group, context.draft.calibrate
    form = describe_form(kernel, group, context.device, is_fitted=is_fitted)
    return (describe_importance(), form) if is_fitted else (form,)


def _check_stored(context: PlanContext, experts: ExpertWeights, of_experts: int) -> None:
    """Raise `ModelError` if experts are stored in as few bytes as their copies would take.

    A device that has room for such copies has nearly room for the experts themselves.
    """
    from engine.weights.packing import dense_tensors

    weights = packed = 0
    for unit in context.stored:
        dense = dense_tensors(unit, context.dtype).items()
        weights += sum(prod(shape) for name, (_, shape) in dense if name in experts.stacks)
        plain = {field.name for field in unit.fields}
        suffixed = tuple(f"{name}." for name in experts.stacks if name not in plain)
        packed += sum(own.nbytes for own in unit.fields if own.name.startswith(suffixed))
    if packed and of_experts >= packed:
        raise ModelError(
            f"draft.method: subspec is of no use for {context.config.model_type!r} as it is "
            f"stored: its experts have {8 * packed / weights:.3g} bits a weight, and their copies "
            f"would have {8 * of_experts / weights:.3g}. Use ngram or recycling, or specexec with "
            "a small model of the same vocabulary."
        )
