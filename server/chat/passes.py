"""The passes of an answer, as `provenance: "tree"` reports them. Pure."""

from collections.abc import Sequence

from engine.pass_trace import DraftedNodes, PassTrace
from engine.text.detokenize import TokenBytes
from server.schemas.answers import AnswerPass, DraftNode
from server.schemas.fields import GenerationBody

WHOLE_NODES = 16_384  # of an answer that is not streamed: 2 MB of JSON
STREAMED_NODES = 1 << 62  # a stream holds few of them at a time


def traced_nodes(body: GenerationBody, num_prompts: int = 1) -> int:
    """Return the most drafted nodes that the engine reports for each prompt; 0: none are asked for.

    An answer that is not streamed is held until its end, so the nodes of the whole are bounded.
    """
    if body.provenance != "tree":
        return 0
    return STREAMED_NODES if body.stream else max(1, WHOLE_NODES // num_prompts)


def answer_passes(traces: Sequence[PassTrace], spelling: TokenBytes) -> list[AnswerPass]:
    """Return the entries of a choice's `passes`."""
    return [
        {
            "pass": trace.number,
            "tokens": trace.tokens,
            "own_rows": trace.own_rows,
            "rows": trace.rows,
            "sequences": trace.sequences,
            "pass_ms": round(trace.pass_ms, 3),
            "draft_ms": round(trace.draft_ms, 3),
            "copy_stall_ms": round(trace.copy_stall_ms, 3),
            "link_bytes": trace.link_bytes,
            "nodes": _draft_nodes(trace.nodes, spelling),
            "nodes_left_out": trace.nodes_left_out,
            "passes_left_out": trace.passes_left_out,
        }
        for trace in traces
    ]


def _draft_nodes(nodes: DraftedNodes, spelling: TokenBytes) -> list[DraftNode]:
    columns = (nodes.parents, nodes.tokens, nodes.sources, nodes.scores, nodes.accepted)
    return [
        {
            "parent": parent,
            "id": token,
            "token": spelling.text(token),
            "source": source,
            "score": score,
            "accepted": accepted,
        }
        for parent, token, source, score, accepted in zip(*columns, strict=True)
    ]
