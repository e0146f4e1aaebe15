"""SpecExec: a small model of the same vocabulary drafts a large tree (arXiv 2406.02532)."""

from engine.drafting.method import BuildDraft, DraftContext, DraftNeeds, MethodFacts, PlanContext
from engine.drafting.tree import Bounds


def needs(context: PlanContext) -> DraftNeeds:
    """Return the memory that the draft model takes. Its config.json is enough."""
    from engine.drafting.model.pending import PROMPT_TILE
    from engine.model.guard import check_decoder
    from engine.model.library import build_of_folder
    from engine.model.recurrent import recurrent_shapes
    from engine.weights.family import kv_shape, read_config
    from engine.weights.hub import locate
    from engine.weights.outline import Outline

    assert context.draft.source is not None, "the file was checked"
    folder = locate(context.draft.source, context.draft.revision)
    config = read_config(folder)
    model = build_of_folder(folder, config, context.dtype, strict=False)
    check_decoder(config, folder)
    outline = Outline(model, context.dtype, None, {})
    recurrent = recurrent_shapes(model).values()
    return DraftNeeds(
        scratch_rows=context.bounds.budget,
        step_rows=PROMPT_TILE,
        weight_bytes=sum(layout.nbytes for layout in outline.layouts),
        kv_bytes_per_token=kv_shape(config).bytes_per_token(context.dtype),
        own_rows=context.bounds.draft_rows,
        state_bytes=sum(shape.state_bytes(context.dtype) for shape in recurrent),
        node_bytes=sum(shape.node_bytes(context.dtype) for shape in recurrent),
        node_values=max((shape.node_values for shape in recurrent), default=0),
    )


FACTS = MethodFacts(
    bounds=Bounds(depth=24, width=32, branch=8, budget=512),
    agreement=0.87,
    has_draft_steps=True,
    needs=needs,
    keys=frozenset({"source", "revision"}),
    required={"source": "the draft model's hub id or folder"},
)


def prepare(context: DraftContext) -> BuildDraft:
    """Check the draft model's files and vocabulary, and return the function that loads it."""
    from engine.drafting.model.separate_draft import SeparateDraft

    return SeparateDraft(context).build
