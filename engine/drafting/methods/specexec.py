"""SpecExec: a small model of the same vocabulary drafts a large tree (arXiv 2406.02532)."""

from engine.drafting.method import BuildDraft, DraftContext, DraftNeeds, MethodFacts, PlanContext
from engine.drafting.tree import Bounds
from engine.errors import ModelError


def needs(context: PlanContext) -> DraftNeeds:
    """Return the memory that the draft model takes. Its config.json is enough."""
    from engine.drafting.model.draft_model import PROMPT_TILE
    from engine.model.guard import check_decoder
    from engine.model.library import build_of_folder
    from engine.weights.family import has_recurrent_layers, kv_shape, read_config
    from engine.weights.hub import locate
    from engine.weights.outline import Outline

    assert context.draft.source is not None, "the file was checked"
    folder = locate(context.draft.source, context.draft.revision)
    config = read_config(folder)
    if has_recurrent_layers(config):
        raise ModelError(
            f"draft.source: {folder} has recurrent layers, which a draft model cannot have. Use a "
            "model with attention in every layer"
        )
    model = build_of_folder(folder, config, context.dtype, strict=False)
    check_decoder(config, folder)
    outline = Outline(model, context.dtype, None, {})
    return DraftNeeds(
        scratch_rows=context.bounds.budget,
        step_rows=PROMPT_TILE,
        weight_bytes=sum(layout.nbytes for layout in outline.layouts),
        kv_bytes_per_token=kv_shape(config).bytes_per_token(context.dtype),
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
