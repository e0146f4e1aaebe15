"""SubSpec: low-bit copies of the target's own layers draft the tree (arXiv 2509.18344)."""

from engine.drafting.method import BuildDraft, DraftContext, DraftNeeds, MethodFacts, PlanContext
from engine.drafting.tree import Bounds
from engine.errors import ModelError

MAKING_TEMPORARIES = 96 << 20  # of quantizing 4 M weights at a time in float32


def needs(context: PlanContext) -> DraftNeeds:
    """Return the memory that the copies take.

    Raises `ModelError` for mixtures of experts, and for a device without a 4-bit product.

    Making a copy needs host memory for a while: the dense unit and three times a quarter of it, for
    the copy as it is written, as it is copied and as it is packed; and the unit as it is stored, if
    that is packed.
    """
    from engine.weights.experts import has_experts
    from engine.weights.formats.linear import best_kernel, matrix_shapes, substitute_bytes
    from engine.weights.formats.tensor_cores import describe, has_fast_bfloat16
    from engine.weights.layout import join_layouts
    from engine.weights.packing import dense_bytes

    if has_experts(context.config, context.layouts):
        raise ModelError(
            f"draft.method: subspec has no substitutes for mixtures of experts "
            f"({context.config.model_type!r}). Use specexec with a small model of the same "
            "vocabulary, or ngram."
        )
    group, device = context.draft.group, context.device
    layers = join_layouts(context.layouts, context.layers)  # copies are made of whole layers
    kernel = best_kernel(matrix_shapes(layers[0]), group, device)
    if device is not None and kernel == "int4" and not has_fast_bfloat16(device):
        raise ModelError(
            f"draft.method: subspec has no 4-bit product on {describe(device)}: int4 needs 8.0 or "
            "newer. Install the package bitsandbytes, whose nf4 runs there, or use specexec or "
            "ngram."
        )
    copies = [substitute_bytes(unit, group, device, kernel) for unit in context.layouts]
    sizes = [(layer.nbytes, dense_bytes(layer, context.dtype)) for layer in layers]
    largest = max(dense * 7 // 4 + (own if own < dense else 0) for own, dense in sizes)
    return DraftNeeds(
        scratch_rows=context.bounds.budget,
        draft_rows=context.bounds.draft_rows,
        step_rows=context.bounds.width,
        weight_bytes=sum(copies),
        making_bytes=largest + MAKING_TEMPORARIES,
        substitute_bytes=copies,
    )


FACTS = MethodFacts(
    bounds=Bounds(depth=48, width=6, branch=6, budget=256),
    # A published model of 135 M parameters has .934: 14.6 tokens a pass at this depth, over 18
    # chats at temperatures 0 and 0.8. Larger models lose less by 4 bits; for 32 B, 12.5 times the
    # speed of plain decoding were reported with all drafting (arXiv 2509.18344).
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
