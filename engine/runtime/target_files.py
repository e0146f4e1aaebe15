"""The target's files before its weights are loaded: configuration, tokenizer, units, sizes."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any

from engine import __version__
from engine.drafting.model.substitutes import WeightCopies
from engine.errors import ModelError
from engine.kv.disk_cache import DiskCache
from engine.kv.page_pool import PAGE, PagePool
from engine.messages import ModelInfo, ReportProgress
from engine.model.borrowed import Weights
from engine.model.decoder import Decoder
from engine.model.ordered import is_ordered_on
from engine.model.resident import ExpandedWeights, expanded_bytes
from engine.moves import sums_by_tier
from engine.planning.blueprint import FAST_TILE, Blueprint
from engine.planning.choice import Scheme
from engine.planning.plan import Plan
from engine.recurrent.states import StatePool
from engine.spec import ModelSpec, Numerics
from engine.streaming.coded import CodedUnits, Copies, DecodedUnits
from engine.streaming.device import choose_device
from engine.streaming.packed_cache import open_or_pack
from engine.streaming.ring import LayerStream
from engine.text.tokenizer import read_tokenizer
from engine.text.tokenizer_files import CONFIG_FILE as TOKENIZER_CONFIG
from engine.weights.config_place import CONFIG_NAME
from engine.weights.family import TESTED, kv_shape
from engine.weights.generation_config import (
    GENERATION_CONFIG,
    read_generation_config,
    token_ids,
)
from engine.weights.hub import resolve
from engine.weights.identity import identity_of, portable_text, text_digest
from engine.weights.layout import UnitReader, layers_of_units
from engine.weights.packing import dense_bytes
from engine.weights.precision import stored_dtype

log = logging.getLogger(__name__)

# Libraries whose versions may change an answer: what they compute, allow or tokenize.
LIBRARIES = ("torch", "transformers", "tokenizers", "llguidance")


class TargetFiles(Blueprint):
    """A checkpoint that has been found and checked, with what is built from it.

    The constructor raises `ModelError` if the model cannot be served.
    """

    def __init__(
        self, spec: ModelSpec, progress: ReportProgress, *, looks_in_cache: bool = True
    ) -> None:
        self.progress = progress
        self.device = choose_device(spec.device, spec.stream.simulate_gbps)
        source = resolve(spec.target.source, spec.target.revision, progress)
        self.revision, self._text = source.identity, text_digest(source.folder)
        self._portable_text = portable_text(source.folder)
        device = self.device.torch_device
        super().__init__(spec, source.folder, device, looks_in_cache=looks_in_cache)
        self.tokenizer = read_tokenizer(self.folder)
        self.generation = read_generation_config(self.folder, self.vocab_size)
        self.units = self.checkpoint_units()
        # From here on only the open files are read, so later changes by name have no effect.
        if (identity_of(self.folder), text_digest(self.folder)) != (self.revision, self._text):
            raise ModelError(
                f"{self.folder}: its files changed while they were read. Load the model again when "
                "they are complete"
            )
        self.outlines = {True: self.units.outline, False: self.units.expanded().outline}
        self.expanded_when_read = self.units.expanded_when_read
        self._packed, self._coded = True, False
        self.tensors = self.units.other_tensors()

    def log_remarks(self) -> None:
        """Log what the user may not expect: an untested family, expanded parts, another type."""
        if self.config.model_type not in TESTED:
            log.warning("Model family %s is not among the tested ones", self.config.model_type)
        stored_type = stored_dtype(self.folder)
        if self.expanded_when_read:
            log.info("%s: %s", self.spec.id, self.expanded_when_read)
        if stored_type is not None and stored_type != self.dtype:
            names = [str(dtype).removeprefix("torch.") for dtype in (stored_type, self.dtype)]
            why = "target.dtype" if self.spec.target.dtype else f"dtype in {CONFIG_NAME}"
            log.info("%s: weights are converted from %s to %s (%s)", self.spec.id, *names, why)

    @cached_property
    def eos_token_ids(self) -> frozenset[int]:
        """All end-of-sequence token ids: of the generation config, else of the model's config.

        The tokenizer's own is always one, because some models name their end of turn only there.
        Values that are not ids of the vocabulary are left out and logged.
        """
        path, ids = self.folder / GENERATION_CONFIG, self.generation.eos_token_id
        if ids is None:
            path, ids = self.folder / CONFIG_NAME, getattr(self.whole_config, "eos_token_id", None)
            ids = getattr(self.config, "eos_token_id", None) if ids is None else ids
        found = token_ids(path, "eos_token_id", ids, self.vocab_size)
        path, own = self.folder / TOKENIZER_CONFIG, self.tokenizer.eos_token_id
        return found | token_ids(path, "eos_token", own, self.vocab_size)

    def choose_form(self, *, packed: bool, coded: bool) -> None:
        """Choose the form in which weights travel.

        Args:
            packed: whether tensors that are stored packed stay so, or are expanded when read.
            coded: whether weights travel in a lossless code.
        """
        self._packed, self._coded = packed, coded
        if not packed:
            self.units = self.units.expanded()

    def make_reader(self, plan: Plan) -> UnitReader:
        """Return the reader of the units, after `choose_form`.

        If the plan has units on disk, or the target is quantized, the units are read from the cache
        of packed models, and packed first if they are not there. Units that travel coded are
        packed later (`make_coded_reader`), so that here they are read from the checkpoint.
        """
        if self._coded:
            return self.units
        if "disk" in plan.tiers or self.spec.target.quantize is not None:
            limit, key = self.spec.memory.cache, self.identity
            if self._packed and self.spec.target.quantize is None:
                key += (
                    "\npacked as stored"  # of the same weights the cache may have an expanded copy
                )
            return open_or_pack(self.units, self.spec.id, key, limit, self.progress)
        return self.units

    def make_coded_reader(
        self, copies: WeightCopies | None, check_making: Callable[[], None]
    ) -> DecodedUnits:
        """Return the reader of coded units from the cache, and pack them first if it lacks them.

        Args:
            copies: the 4-bit copies of the draft, by which weights are coded; None: there are none.
            check_making: called before a unit is coded.
        """
        layers = self.units.layers
        packed_copies = None if copies is None else copies.packed
        coded = CodedUnits(self.units, layers, packed_copies, check_making)
        key, limit = f"{self.identity}\n{coded.identity}", self.spec.memory.cache
        packed = open_or_pack(coded, self.spec.id, key, limit, self.progress)

        layer_of = layers_of_units(layers)

        def find(index: int) -> Copies:
            return {} if copies is None else copies.by_layer[layer_of[index]]

        return DecodedUnits(packed, self.units.layouts, find)

    def make_stream(self, plan: Plan, reader: UnitReader) -> LayerStream:
        """Return the weight stream over the units of `reader`, which has yet to start.

        So units in RAM and the ring take no memory while the draft is made and weights are coded.
        """
        return LayerStream(
            reader,
            plan.tiers,
            device=self.device,
            slots=max(plan.slots, 1),  # without streamed units no slot is allocated
            layers=self.units.layers,
            progress=self.progress,
            starts_later=True,
        )

    def make_decoder(self, stream: LayerStream, on_pass_progress: Callable[[], None]) -> Decoder:
        """Return the decoder, whose layers borrow their weights from `stream`."""
        weights: Weights = stream
        units, layers, device = self.units, self.units.layers, self.device.torch_device
        if expanded_bytes(units, layers, self.dtype):
            weights = ExpandedWeights(stream, units, layers, device, self.dtype)
        return Decoder(
            self.model,
            weights,
            self.tensors,
            device=device,
            strict=self.strict,
            tile=FAST_TILE,
            layers=layers,
            on_pass_progress=on_pass_progress,
        )

    def make_kv_cache(self, plan: Plan, stash_rows: int) -> DiskCache:
        """Return the KV cache, with the pages and states of the plan allocated.

        Args:
            stash_rows: the most rows of a tree.
        """
        shape = kv_shape(self.config)
        pool = PagePool.of_shape(shape, plan.num_pages, self.dtype, self.device)
        states = None
        if self.recurrent:
            states = StatePool(
                self.recurrent,
                num_states=plan.num_states + plan.stored_states,
                num_stashes=plan.num_states,
                stash_rows=stash_rows,
                dtype=self.dtype,
                device=self.device.torch_device,
            )
        return DiskCache(
            pool,
            prefix_cache=self.spec.prefix_cache,
            host_pages=plan.host_pages,
            states=states,
        )

    def link_bits(self, plan: Plan, reader: UnitReader) -> float:
        """Return the bits in which one weight of the streamed units travels; 0 if there are none.

        Args:
            reader: from which they are streamed.
        """
        streamed = [unit for unit, tier in enumerate(plan.tiers) if tier != "resident"]
        dense = sum(dense_bytes(self.units.layouts[unit], self.dtype) for unit in streamed)
        travelling = sum(reader.layouts[unit].nbytes for unit in streamed)
        return 8 * self.dtype.itemsize * travelling / dense if dense else 0.0

    def describe(self, scheme: Scheme) -> str:
        """Return one line that says where the weights are, and in which form they travel."""
        forms = (self.expanded_when_read, scheme.form, scheme.coding)
        return "; ".join([str(scheme.plan), *(own for own in forms if own)])

    def model_info(
        self, scheme: Scheme, link_gbps: float, link_bits: float, tile: str
    ) -> ModelInfo:
        """Return what the front end needs to know of the loaded model.

        Args:
            link_bits: what `link_bits` returned.
            tile: what `reference_hash` returned.
        """
        plan = scheme.plan
        numerics: Numerics = "strict" if self.strict else "fast"
        rope, target = dataclasses.astuple(self.spec.target.rope), self.spec.target
        files = _digest([self.identity, self._text, rope])
        form = _digest([str(self.dtype), str(target.quantize), self._portable_text, rope])
        versions = [__version__, *map(version, LIBRARIES)]
        # The hash of a tile differs too, unless all its values are rounded to the same bits.
        is_ordered = self.strict and is_ordered_on(self.device.torch_device)
        parts = [numerics, versions, self.device.arithmetic, is_ordered, tile]
        return ModelInfo(
            model_id=self.spec.id,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            capacity_tokens=plan.num_pages * PAGE,
            max_sequences=plan.max_sequences,
            eos_token_ids=tuple(sorted(self.eos_token_ids)),
            numerics=numerics,
            fingerprint=f"us-{_digest([files, *parts])}",
            files=files,
            revision=self.revision,
            form=form,
            arithmetic=_digest(parts),
            tokenizer_path=str(self.folder),
            plan=self.describe(scheme),
            tiers=sums_by_tier(plan.tiers, [1] * len(plan.tiers)),
            tier_bytes=sums_by_tier(plan.tiers, scheme.demand.placed_bytes(plan.tiers)),
            num_pages=plan.num_pages,
            num_states=plan.num_states + plan.stored_states if self.recurrent else 0,
            link_gbps=link_gbps,
            link_bits=link_bits,
            sampling=self.generation.sampling,
        )


def _digest(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
