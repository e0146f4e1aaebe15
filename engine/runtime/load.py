"""Loading a model: from its specification to everything that a step needs."""

import gc
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from engine.drafting.calibration import Calibration
from engine.drafting.drafter import Drafting
from engine.drafting.lookups.lookup import Lookup
from engine.drafting.method import (
    BuildDraft,
    DraftContext,
    LoadedTarget,
    all_lookups,
    candidates,
    facts_of,
    prepare,
)
from engine.drafting.model.draft_model import DraftModel
from engine.drafting.policy import TreePolicy
from engine.drafting.tree import Bounds
from engine.kv.cache import KVCache
from engine.kv.disk_cache import DiskCache
from engine.kv.page_pool import PAGE
from engine.malloc import give_back_freed
from engine.messages import (
    PREDICTION,
    Generate,
    LoadProgress,
    ModelInfo,
    ReportProgress,
    SamplingParams,
)
from engine.model.decoder import Decoder
from engine.planning import link_probe, probe
from engine.planning.assumed import DISK_GBPS, Machine
from engine.planning.cached import Cached
from engine.planning.choice import Scheme, best_scheme, make_scheme, measured_draft
from engine.planning.forecast import USERS
from engine.planning.machine import available_memory, check_free, name_shortage
from engine.planning.making import CODES, COPIES
from engine.planning.plan import Plan
from engine.planning.replan import Replanner
from engine.runtime.kept_kv import keep_on_disk
from engine.runtime.reference_tile import reference_hash
from engine.runtime.target_files import TargetFiles
from engine.sampling.grammar.constraint import Constraint
from engine.sampling.grammar.grammar import Grammars
from engine.sampling.thinking import ThinkingRule, ThinkingState
from engine.sequences.sequence import Limits
from engine.spec import TILE, MemorySpec, ModelSpec
from engine.streaming.coded import DecodedUnits
from engine.streaming.device import Device
from engine.streaming.making_check import MakingCheck, MakingNotPlanned
from engine.streaming.packed import PackedUnits
from engine.streaming.recheck import Rechecks
from engine.streaming.ring import LayerStream
from engine.text.detokenize import Detokenizer, TokenBytes
from engine.text.stop import StopRules
from engine.timing import PassTimes, StepTimes
from engine.weights.layout import UnitReader, WholeLayers

log = logging.getLogger(__name__)

FAST_ROWS = 16  # fast numerics: this many rows take as long as one
# Of mixtures of experts, where each further row may choose other experts. 1 would take some
# milliseconds of a cycle, in which the number of rows is chosen.
EXPERT_GRANULARITY = 4


@dataclass(frozen=True)
class Loaded:
    """A loaded model and everything that serves requests with it."""

    info: ModelInfo
    limits: Limits
    plan: Plan
    device: Device
    decoder: Decoder
    stream: LayerStream
    cache: DiskCache
    drafting: Drafting
    scratch_rows: int  # the most rows of a tree
    draft_rows: int  # the most rows that a tree's draft stores in the target's KV cache
    tokens: TokenBytes
    grammars: Grammars
    audit: float  # the share of finished answers that is checked
    replanner: Replanner
    memory: MemorySpec  # the limits in the model's file
    describe: Callable[[Plan], str]  # returns the text of `ModelInfo.plan` for a plan
    rechecks: Rechecks

    def constraint(self, params: SamplingParams) -> Constraint | None:
        """Return the grammar that answers to a request must match, or None if there is none.

        Raises `RequestError` if the grammar cannot be compiled.
        """
        return Constraint(self.grammars.compile(params.grammar)) if params.grammar else None

    def thinking(self, params: SamplingParams) -> ThinkingState | None:
        """Return the thinking budget of a request before its first token; None without one."""
        if params.thinking is None:
            return None
        spelling = self.tokens.showing(params.shown_tokens)
        return ThinkingRule(params.thinking, spelling.__getitem__).start()

    def stop_rules(self, message: Generate) -> StopRules:
        """Return new stop rules for one choice of a request."""
        most = self.limits.max_tokens - len(message.prompt)
        wanted = message.params.max_tokens
        return StopRules(
            message.params,
            eos_token_ids=self.limits.eos_token_ids,
            max_tokens=most if wanted is None else min(most, wanted),
            detokenizer=Detokenizer(self.tokens.showing(message.params.shown_tokens)),
            answer_format=message.answer_format,
        )


def load(
    spec: ModelSpec, progress: ReportProgress, on_pass_progress: Callable[[], None] = lambda: None
) -> Loaded:
    """Load a model within the memory limits of its specification.

    Args:
        progress: called with the progress of loading.
        on_pass_progress: called by the loaded model before each unit and each tile of a pass.

    The plan has no memory to make what the cache has. Where that turns out to be missing or
    damaged, all of the model is loaded anew by a plan that has this memory.

    Raises `ModelError`, which names the file or setting that is wrong.
    """
    try:
        return _load(spec, progress, on_pass_progress, looks_in_cache=True)
    except MakingNotPlanned as error:
        log.warning(
            "%s: %s. It is planned and loaded anew, with memory to make them", spec.id, error
        )
    gc.collect()  # what was loaded, whose last references went with the error
    return _load(spec, progress, on_pass_progress, looks_in_cache=False)


def _load(
    spec: ModelSpec,
    progress: ReportProgress,
    on_pass_progress: Callable[[], None],
    *,
    looks_in_cache: bool,
) -> Loaded:
    """Plan and load a model.

    Args:
        looks_in_cache: whether the plan has no memory to make what the cache seems to have. Then
            `MakingNotPlanned` is raised if it does not have it.
    """
    files = TargetFiles(spec, progress, looks_in_cache=looks_in_cache)
    files.device.use_compute_stream()
    files.log_remarks()
    progress(LoadProgress("measuring this machine", 0, 0))
    measured = probe.pass_times(files, files.device)
    with name_shortage(files.device, "measuring its speed"):
        build, scheme = _choose_scheme(files, measured.rows)
    _log_choice(spec, scheme)
    with name_shortage(files.device, "loading the model", scheme.plan):
        return _load_as_planned(files, measured, build, scheme, on_pass_progress)


def _load_as_planned(
    files: TargetFiles,
    measured: probe.MeasuredPass,
    build: BuildDraft,
    scheme: Scheme,
    on_pass_progress: Callable[[], None],
) -> Loaded:
    """Load the weights and the draft, and allocate the KV cache."""
    spec, plan = files.spec, scheme.plan
    checks = _making_checks(scheme.demand.cached)
    files.choose_form(packed=scheme.packed, coded=scheme.coded)
    reader = files.make_reader(plan)
    check_free(plan)
    stream = files.make_stream(plan, reader)
    with ExitStack() as stack:
        stack.callback(stream.close)
        decoder = files.make_decoder(stream, on_pass_progress)
        cache = files.make_kv_cache(plan, scheme.demand.draft.scratch_rows)
        stack.callback(cache.release)
        draft = build(_lend_target(files, scheme, reader, stream, decoder, cache, checks[0]))
        if scheme.coded:  # by the 4-bit copies of the draft
            copies = draft.copies if isinstance(draft, DraftModel) else None
            reader = files.make_coded_reader(copies, checks[1])
        give_back_freed()  # what was made took memory, which units in RAM and the ring need
        stream.start(reader, files.progress)
        tile = reference_hash(decoder, stream, cache)
        link_gbps = stream.measure_link()
        passes = _expected_pass_times(files, measured, scheme, link_gbps)
        drafting = _make_drafting(files, draft, scheme.bounds, passes)
        for check in checks:
            check.allow()  # damage is repaired while requests are served
        stack.pop_all()
    limits = _make_limits(files, plan, decoder)
    info = replace(
        files.model_info(scheme, link_gbps, files.link_bits(plan, reader), tile),
        draft_methods=drafting.methods,
        draft_method=scheme.method,
    )
    keep_on_disk(cache, spec, info.fingerprint)
    return Loaded(
        info=info,
        limits=limits,
        plan=plan,
        device=files.device,
        decoder=decoder,
        stream=stream,
        cache=cache,
        drafting=drafting,
        scratch_rows=scheme.demand.draft.scratch_rows,
        draft_rows=scheme.demand.draft.draft_rows,
        tokens=TokenBytes(files.tokenizer.backend_tokenizer),
        grammars=Grammars(
            files.tokenizer.backend_tokenizer.to_str, files.vocab_size, limits.eos_token_ids
        ),
        audit=spec.audit,
        replanner=Replanner(spec, scheme.demand, plan),
        memory=spec.memory,
        describe=lambda own: files.describe(replace(scheme, plan=own)),
        rechecks=_make_rechecks(spec, plan, reader),
    )


def _making_checks(cached: Cached) -> tuple[MakingCheck, MakingCheck]:
    """Return the checks before copies are made and before weights are coded."""
    copies = MakingCheck(COPIES, is_allowed=not cached.copies)
    return copies, MakingCheck(CODES, is_allowed=not cached.codes)


def _lend_target(
    files: TargetFiles,
    scheme: Scheme,
    reader: UnitReader,
    stream: LayerStream,
    decoder: Decoder,
    cache: KVCache,
    check_making: MakingCheck,
) -> LoadedTarget:
    """Return the parts of the target that a draft may share."""
    plan = scheme.plan
    return LoadedTarget(
        tensors=files.tensors,
        reader=WholeLayers(reader, files.units.layers),
        stream=stream,
        decoder=decoder,
        cache=cache,
        num_nodes=plan.num_nodes,
        num_states=plan.num_states,
        stored_states=plan.stored_states,
        is_coded=scheme.coded,
        check_making=check_making,
    )


def _make_limits(files: TargetFiles, plan: Plan, decoder: Decoder) -> Limits:
    return Limits(
        max_tokens=min(files.context_length, plan.num_pages * PAGE),
        eos_token_ids=files.eos_token_ids,
        original_length=decoder.original_length,
        suppressed=files.generation.suppressed,
    )


def _log_choice(spec: ModelSpec, scheme: Scheme) -> None:
    """Log which drafting method is used, with its keys, how packed weights travel, and why."""
    keys = sorted(facts_of(scheme.method).keys & {"bits", "group", "source"})
    values = ", ".join(f"{key} {getattr(spec.draft, key)}" for key in keys)
    why = "as the model's file says" if spec.draft.method else "which has the fastest forecast"
    draft = f"{scheme.method} ({values})" if values else scheme.method
    log.debug("%s: %s", spec.id, scheme.plan)  # the front end logs it when the model is loaded
    log.info("%s: draft %s, %s", spec.id, draft, why)
    for form in (scheme.form, scheme.coding):
        if form:
            log.info("%s: %s", spec.id, form)


def _make_rechecks(spec: ModelSpec, plan: Plan, reader: UnitReader) -> Rechecks:
    """Return the checksum checks, in idle time, of units that each pass reads from the disk."""
    own = reader.coded if isinstance(reader, DecodedUnits) else reader
    packed = own if isinstance(own, PackedUnits) else None
    indices = [index for index, tier in enumerate(plan.tiers) if tier == "disk"]
    return Rechecks(packed, indices, 3600 * spec.stream.recheck_hours)


def _expected_pass_times(
    files: TargetFiles, measured: probe.MeasuredPass, scheme: Scheme, link_gbps: float
) -> PassTimes:
    """Return the expected pass times by number of rows, from measurements where there are any."""
    units = zip(scheme.demand.link_bytes, scheme.plan.tiers, strict=True)
    travelling = [nbytes for nbytes, tier in units if tier != "resident"]
    travels = sum(travelling)
    is_mixture = scheme.demand.experts is not None
    passes = PassTimes(
        EXPERT_GRANULARITY if is_mixture else TILE if files.strict else FAST_ROWS,
        ahead=sum(travelling[: scheme.plan.ring_slots]) / travels if travels else 0.0,
        pair_seconds=measured.pair_seconds,
    )
    link_seconds = travels / link_gbps / 1e9 if link_gbps else 0.0
    expand_seconds = scheme.forecast.expand_seconds + scheme.forecast.decode_seconds
    for rows in probe.EXPERT_ROWS if is_mixture else probe.ROWS:
        seconds = measured.rows.expect(rows)
        if seconds is not None:
            passes.observe(rows, expand_seconds + seconds, link_seconds)
    return passes


def _make_drafting(
    files: TargetFiles, draft: DraftModel | Lookup | None, bounds: Bounds, passes: PassTimes
) -> Drafting:
    """Return the drafting of an engine: the chosen draft, and look-ups that add to its trees."""
    wanted = files.spec.draft
    model = draft if isinstance(draft, DraftModel) else None
    lookups: list[Lookup] = []
    if model is not None or wanted.method is None:
        lookups = all_lookups()
    elif draft is not None and not isinstance(draft, DraftModel):
        # A request's prediction is used even if the settings name another look-up.
        predicted = (own for own in all_lookups() if own.name == PREDICTION)
        lookups = [draft, *(own for own in predicted if own.name != draft.name)]
    policy = TreePolicy(Calibration(), passes, is_tuned=wanted.tuned)
    side_stream = files.device.side_stream()
    return Drafting(
        model, lookups, bounds, policy, can_draft_ahead=wanted.ahead, side_stream=side_stream
    )


def _choose_scheme(files: TargetFiles, passes: StepTimes) -> tuple[BuildDraft, Scheme]:
    """Return the prepared draft method, chosen or named by the settings, and its plan."""
    prepared: dict[str, BuildDraft] = {}
    spec = files.spec
    ram_gbps = spec.stream.simulate_gbps
    if ram_gbps is None:
        ram_gbps = link_probe.copy_gbps(files.device) if files.device.has_own_memory else DISK_GBPS
    expanding = probe.expanding_times(files, files.device)
    disk = link_probe.disk_gbps(files) or DISK_GBPS
    decoding = link_probe.decoding_gbps(files, files.device)
    methods = candidates()
    if spec.draft.method is not None:  # the choice of the code depends on how long it drafts
        methods = [spec.draft.method] if decoding else []
    draft = measured_draft(files, files.device, methods)
    compiles = files.compiles(has_own_memory=files.device.has_own_memory)
    # After the measurements, whose memory it gives back.
    memory = available_memory(files.device, compiles=compiles)
    machine = Machine(
        memory,
        ram_gbps,
        disk,
        passes=passes,
        draft=draft,
        expanding=expanding,
        decoding_gbps=decoding,
    )

    def prepare_scheme(name: str) -> Scheme:
        prepared[name] = prepare(
            DraftContext(
                method=name,
                spec=spec,
                config=files.whole_config,
                dtype=files.dtype,
                device=files.device,
                identity=files.identity,
                tokenizer=files.tokenizer,
                vocab_size=files.vocab_size,
                progress=files.progress,
            )
        )
        return make_scheme(name, spec, files, machine, USERS)

    best = best_scheme(spec, prepare_scheme)
    return prepared[best.method], best
