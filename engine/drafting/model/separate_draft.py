"""A separate, smaller model of the target's vocabulary as the draft.

The draft has a paged KV cache of its own. Before it drafts, it runs every verified token that its
cache lacks (the bonus token, an accepted leaf, a prompt), so the cache has no holes.
"""

from engine.drafting.method import DraftContext, LoadedTarget, candidates
from engine.drafting.model.cuda_graphs import graphed_steps
from engine.drafting.model.draft_cache import OwnCache
from engine.drafting.model.draft_model import BoundWeights, DraftModel
from engine.drafting.model.fused.fuse import fuse
from engine.drafting.model.fused.triton_operations import choose_operations
from engine.drafting.model.pending import PROMPT_TILE
from engine.errors import ModelError
from engine.kv.cache import KVCache
from engine.kv.page_pool import PagePool
from engine.model.decoder import Decoder
from engine.model.guard import check_decoder
from engine.model.library import build_of_folder
from engine.model.recurrent import recurrent_shapes
from engine.model.resident import bind_resident
from engine.recurrent.nodes import NodeMemory
from engine.recurrent.states import StatePool
from engine.text.tokenizer import read_tokenizer
from engine.weights.family import kv_shape, read_config
from engine.weights.hub import resolve
from engine.weights.units import CheckpointUnits

SHARED = 0.9  # the draft must have at least this share of the target's tokens


class SeparateDraft:
    """A draft model whose files are there and whose vocabulary fits the target's.

    Raises `ModelError` where that is not so. The weights are loaded by `build`.
    """

    def __init__(self, context: DraftContext) -> None:
        draft = context.spec.draft
        if draft.source is None:
            raise ModelError(
                f"draft.source: method {context.method} needs a draft model (a hub id or a folder)"
            )
        self.context = context
        self.folder = resolve(draft.source, draft.revision, context.progress).folder
        self.config = read_config(self.folder)
        self._check_vocabulary()
        self.model = build_of_folder(self.folder, self.config, context.dtype, strict=False)
        check_decoder(self.config, self.folder)
        self.recurrent = recurrent_shapes(self.model)
        # It stays on the device, where it is read in every step: so its weights are dense.
        self.units = CheckpointUnits(self.folder, self.model, context.dtype).expanded()

    def _check_vocabulary(self) -> None:
        """Raise `ModelError` unless the same text has the same ids in both models.

        One of them may lack a few special tokens of the other.
        """
        target = self.context.tokenizer.get_vocab()
        draft = read_tokenizer(self.folder).get_vocab()
        shared = target.keys() & draft.keys()
        differing = sum(target[token] != draft[token] for token in shared)
        if differing or len(shared) < SHARED * len(target):
            others = " or ".join(reversed(candidates()))
            raise ModelError(
                f"draft.source: {self.context.spec.draft.source} has another vocabulary than the "
                f"target: it has {len(shared)} of the target's {len(target)} tokens, {differing} "
                f"of them with other ids. Use a draft of the same family, or draft.method {others}."
            )

    def build(self, target: LoadedTarget) -> DraftModel:
        """Load the draft model to the device, with a KV cache and states for the target's plan."""
        context, device = self.context, self.context.device.torch_device
        bind_resident(self.model, self.units, device, context.progress)
        decoder = Decoder(
            self.model,
            BoundWeights(),
            self.units.other_tensors(),
            device=device,
            strict=False,
            # Rows that read states run in one tile; pending tokens run some at a time then.
            tile=None if self.recurrent else PROMPT_TILE,
            # Prefill of a long prompt may take longer than the watchdog waits for a sign of life.
            on_pass_progress=target.decoder.on_pass_progress,
        )
        shape, num_pages = kv_shape(self.config), target.cache.num_pages
        pool = PagePool.of_shape(shape, num_pages, context.dtype, context.device)
        states, nodes = self._recurrent_memory(target)
        cache = KVCache(pool, prefix_cache=context.spec.prefix_cache, states=states)
        operations = choose_operations(decoder.device, context.dtype)
        fuse(decoder, cache, operations)
        caches, capture = OwnCache(cache, decoder.is_long, nodes), context.device.capture()
        graphs = graphed_steps(decoder, pool, capture, context.progress)
        return DraftModel(
            context.method,
            decoder,
            caches,
            context.bounds,
            context.vocab_size,
            graphs,
            at_once=context.device.is_asynchronous,
        )

    def _recurrent_memory(self, target: LoadedTarget) -> tuple[StatePool | None, NodeMemory | None]:
        """Return the memory of recurrent layers: of states and of drafted rows, if there are any.

        No rows are stashed: those of trees change no state, and pending tokens are accepted.
        """
        if not self.recurrent:
            return None, None
        dtype, device = self.context.dtype, self.context.device.torch_device
        states = StatePool(
            self.recurrent,
            num_states=target.num_states + target.stored_states,
            num_stashes=target.num_states,
            stash_rows=0,
            dtype=dtype,
            device=device,
        )
        return states, NodeMemory(self.recurrent, target.num_nodes, dtype, device)
