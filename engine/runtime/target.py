"""The target's files, read but not loaded: configuration, tokenizer, units, sizes."""

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from engine import __version__
from engine.drafting.method import DraftNeeds
from engine.errors import ModelError
from engine.kv.cache import PAGE, KVCache
from engine.messages import ModelInfo
from engine.model.decoder import STRICT_ROWS, Decoder, Weights, build_on_meta
from engine.model.resident import Expanded, expanded_bytes
from engine.planning.footprint import Demand, making_bytes
from engine.planning.machine import choose_device
from engine.planning.plan import Plan
from engine.sequences.sequence import Limits
from engine.spec import ModelSpec, Numerics
from engine.streaming.packed_cache import packed
from engine.streaming.ring import LayerStream
from engine.text.tokenizer import read_tokenizer
from engine.weights.family import EXPERTS_LAST, kv_shape, read_config
from engine.weights.formats.linear import substitute_bytes
from engine.weights.formats.nf4 import dense_layout, is_packed
from engine.weights.hub import resolve
from engine.weights.layout import UnitReader
from engine.weights.outline import Outline, UnreadUnits, stored_blocks
from engine.weights.units import CheckpointUnits

Progress = Callable[[str, int, int], None]
SLICE_BYTES = 256 << 20  # a layer above this moves in slices, where its family can
FAST_TILE = 1024  # rows of a long prompt that run through a layer at a time, fast numerics
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Blueprint:
    """A model as its config.json tells it: without weights, on the `meta` device.

    Raises `ModelError` for a model that cannot be served.
    """

    def __init__(self, spec: ModelSpec, folder: Path) -> None:
        self.spec = spec
        self.folder = folder
        self.strict = spec.numerics != "fast"
        self.config = read_config(folder)
        self.dtype = _dtype(spec, self.config)
        self.model = build_on_meta(self.config, self.dtype, strict=self.strict)
        # Rows of the embedding; may be more than the tokenizer has tokens.
        self.vocab_size, self.hidden_size = self.model.get_input_embeddings().weight.shape
        self.context_length = self._context_length()

    @property
    def slice_bytes(self) -> int | None:
        """The largest unit, where the family's layers can move in slices."""
        return SLICE_BYTES if self.config.model_type in EXPERTS_LAST else None

    def outline(self) -> Outline:
        """The units, as the configuration alone tells them."""
        quantize, stored = self.spec.target.quantize, stored_blocks(self.model)
        return Outline(self.model, self.dtype, quantize, stored, self.slice_bytes)

    def demand(self, outline: Outline, method: str, needs: DraftNeeds) -> Demand:
        """What the target of these units and a draft of these needs would like to take."""
        config, shape = self.config, kv_shape(self.config)
        embedding = self.vocab_size * self.hidden_size * self.dtype.itemsize
        expanded = expanded_bytes(UnreadUnits(outline), self.dtype)
        # Resident units that are expanded for the time of a pass have nothing to share.
        shares = method == "subspec" and not expanded
        group = self.spec.draft.group
        substitutes = [substitute_bytes(u, group) for u in outline.layouts] if shares else ()
        sizes = [torch.Size(s).numel() * d.itemsize for d, s in outline.other_tensors.values()]
        return Demand(
            unit_bytes=[layout.nbytes for layout in outline.layouts],
            layers=outline.layers,
            expanded_bytes=expanded,
            other_device_bytes=sum(sizes) - embedding,
            hidden_size=self.hidden_size,
            widest=max(self.hidden_size, getattr(config, "intermediate_size", None) or 0),
            num_heads=config.num_attention_heads,
            vocab_size=self.vocab_size,
            item_bytes=self.dtype.itemsize,
            kv_bytes_per_token=shape.bytes_per_token(self.dtype) + needs.kv_bytes_per_token,
            draft_weight_bytes=needs.weight_bytes,
            scratch_rows=needs.scratch_rows,
            draft_rows=needs.draft_rows,
            draft_kv_bytes_per_token=needs.kv_bytes_per_token,
            context_length=self.context_length,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            tile=STRICT_ROWS if self.strict else FAST_TILE,
            embedding_bytes=embedding,
            making_bytes=making_bytes(outline.layouts) if method == "subspec" else 0,
            dense_bytes=sum(
                dense_layout(u, self.dtype).nbytes if is_packed(u) else u.nbytes
                for u in outline.layouts
            ),
            active_share=active_share(config),
            substitute_bytes=substitutes,
        )

    def _context_length(self) -> int:
        own = int(self.config.max_position_embeddings)
        wanted = self.spec.context_length
        if wanted is not None and wanted > own:
            raise ModelError(
                f"context_length: {wanted} is more than the model's own {own} "
                "(max_position_embeddings in config.json)"
            )
        return wanted or own


class TargetFiles(Blueprint):
    """A checked checkpoint. Raises `ModelError` for anything that cannot be served."""

    def __init__(self, spec: ModelSpec, progress: Progress) -> None:
        self.progress = progress
        self.device = choose_device(spec.device)
        source = resolve(spec.target.source, spec.target.revision, progress)
        super().__init__(spec, source.folder)
        self._revision = source.identity
        self.tokenizer = read_tokenizer(self.folder)
        self.units = CheckpointUnits(
            self.folder,
            self.model,
            self.dtype,
            spec.target.quantize,
            slice_bytes=self.slice_bytes,
        )
        self.tensors = self.units.other()

    @property
    def identity(self) -> str:
        """What the weights are: source, revision and precision."""
        parts = [self._revision, str(self.dtype), str(self.spec.target.quantize)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @property
    def is_expanded(self) -> bool:
        """Whether the checkpoint's own 4-bit form (MXFP4) does not stay packed."""
        stored = getattr(self.config, "quantization_config", None) or {}
        return bool(stored) and dict(stored).get("quant_method") == "mxfp4"

    @cached_property
    def eos_token_ids(self) -> frozenset[int]:
        """All end-of-sequence ids: the generation config's, else the model's."""
        path = self.folder / "generation_config.json"
        generation: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        ids = generation.get("eos_token_id")
        if ids is None:
            ids = self.config.eos_token_id
        if ids is None:
            return frozenset()
        return frozenset(ids if isinstance(ids, list) else [ids])

    def reader(self, plan: Plan) -> UnitReader:
        """The units; packs what the stream will read from disk, and what is quantized, once."""
        if "disk" in plan.tiers or self.spec.target.quantize is not None:
            limit = self.spec.memory.cache
            return packed(self.units, self.spec.id, self.identity, limit, self.progress)
        return self.units

    def stream(self, plan: Plan, reader: UnitReader) -> LayerStream:
        """The weight stream over the units of `reader`."""
        return LayerStream(
            reader,
            plan.tiers,
            device=self.device,
            slots=max(plan.slots, 1),  # a ring without units has none anyway
            simulate_gbps=self.spec.stream.simulate_gbps,
            progress=self.progress,
        )

    def decoder(self, stream: LayerStream) -> Decoder:
        weights: Weights = stream
        if expanded_bytes(self.units, self.dtype):
            weights = Expanded(stream, self.units, self.device, self.dtype)
        return Decoder(
            self.model,
            weights,
            self.tensors,
            device=self.device,
            strict=self.strict,
            tile=FAST_TILE,
            layers=self.units.layers,
        )

    def kv_cache(self, plan: Plan) -> KVCache:
        shape = kv_shape(self.config)
        return KVCache(
            shape.num_layers,
            plan.num_pages,
            shape.num_kv_heads,
            shape.head_dim,
            self.dtype,
            self.device,
            prefix_cache=self.spec.prefix_cache,
            host_pages=plan.host_pages,
        )

    def limits(self, plan: Plan, decoder: Decoder) -> Limits:
        return Limits(
            max_tokens=min(self.context_length, plan.num_pages * PAGE),
            eos_token_ids=self.eos_token_ids,
            original_length=decoder.original_length,
        )

    def info(self, plan: Plan, link_gbps: float) -> ModelInfo:
        numerics: Numerics = "strict" if self.strict else "fast"
        parts = [self.identity, numerics, __version__]
        return ModelInfo(
            model_id=self.spec.id,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            capacity_tokens=plan.num_pages * PAGE,
            max_sequences=plan.max_sequences,
            eos_token_ids=tuple(sorted(self.eos_token_ids)),
            numerics=numerics,
            fingerprint="us-" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12],
            tokenizer_path=str(self.folder),
            plan=str(plan),
            num_pages=plan.num_pages,
            link_gbps=link_gbps,
        )


def active_share(config: Any) -> float:
    """What one token uses of the weights; of a mixture roughly, nearly all of it being experts."""
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    return float(config.num_experts_per_tok / experts) if experts else 1.0


def _dtype(spec: ModelSpec, config: Any) -> torch.dtype:
    if spec.target.dtype is not None:
        return DTYPES[spec.target.dtype]
    return torch.float32 if config.dtype == torch.float32 else torch.bfloat16
