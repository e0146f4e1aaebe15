"""Loading a model: from a specification to everything a step needs."""

import logging
from contextlib import ExitStack
from dataclasses import dataclass

from engine.decoder import Decoder
from engine.detokenize import Detokenizer, TokenBytes, token_bytes
from engine.drafter import DraftContext, Drafter, DraftMethod, Target, prepare
from engine.family import TESTED, is_mixture
from engine.kv_cache import KVCache
from engine.machine import available_memory
from engine.messages import Generate, ModelInfo
from engine.plan import Memory, Plan, make_plan
from engine.sequence import Limits
from engine.spec import ModelSpec
from engine.stop import StopRules
from engine.stream import LayerStream
from engine.target import Progress, TargetFiles

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to serve."""

    info: ModelInfo
    limits: Limits
    plan: Plan
    decoder: Decoder
    stream: LayerStream
    cache: KVCache
    drafter: Drafter
    scratch_rows: int  # of the target's cache, for one tree
    tokens: TokenBytes

    def stop_rules(self, message: Generate) -> StopRules:
        """The stop rules of one choice of a request."""
        most = self.limits.max_tokens - len(message.prompt)
        wanted = message.params.max_tokens
        return StopRules(
            message.params,
            eos_token_ids=self.limits.eos_token_ids,
            max_tokens=most if wanted is None else min(most, wanted),
            detokenizer=Detokenizer(self.tokens),
        )


def load(spec: ModelSpec, progress: Progress) -> Loaded:
    """Load a model within its limits. Raises `ModelError` that says what is wrong and where."""
    files = TargetFiles(spec, progress)
    if files.config.model_type not in TESTED:
        log.warning("family %s is not among the tested ones", files.config.model_type)
    if files.is_expanded:
        total = sum(layout.nbytes for layout in files.units.layouts)
        log.info("%s: MXFP4 experts are expanded when read, %.1f GB in all", spec.id, total / 1e9)
    memory = available_memory(files.device)
    method = _draft_method(files, memory)
    plan = _plan(files, method, memory)
    log.info("%s: %s", spec.id, plan)
    reader = files.reader(plan)
    stream = files.stream(plan, reader)
    with ExitStack() as stack:
        stack.callback(stream.close)
        decoder = files.decoder(stream)
        cache = files.kv_cache(plan.num_pages)
        drafter = method.build(Target(files.tensors, reader, stream, decoder, cache))
        stack.pop_all()
    return Loaded(
        info=files.info(plan),
        limits=files.limits(plan, decoder),
        plan=plan,
        decoder=decoder,
        stream=stream,
        cache=cache,
        drafter=drafter,
        scratch_rows=method.needs.scratch_rows,
        tokens=token_bytes(files.tokenizer.backend_tokenizer),
    )


def _plan(files: TargetFiles, method: DraftMethod, memory: Memory) -> Plan:
    needs = method.needs
    demand = files.demand(needs.kv_bytes_per_token, needs.weight_bytes, needs.scratch_rows)
    return make_plan(files.spec, demand, memory)


def _draft_method(files: TargetFiles, memory: Memory) -> DraftMethod:
    """The method the spec names; else subspec if its substitutes fit and pay, else ngram."""
    context = DraftContext(
        spec=files.spec,
        config=files.config,
        dtype=files.dtype,
        device=files.device,
        units=files.units,
        identity=files.identity,
        tokenizer=files.tokenizer,
        vocab_size=files.vocab_size,
        progress=files.progress,
    )
    if files.spec.draft.method is not None:
        return prepare(files.spec.draft.method, context)
    ngram = prepare("ngram", context)
    if is_mixture(files.config):
        return ngram
    subspec = prepare("subspec", context)
    limit = files.spec.memory.device if files.spec.memory.device is not None else memory.device
    if subspec.needs.weight_bytes > limit / 2:
        return ngram
    # A target that is resident as a whole is as fast as its own copy.
    streams = any(tier != "resident" for tier in _plan(files, ngram, memory).tiers)
    return subspec if streams else ngram
