"""The target's files, read but not loaded: configuration, tokenizer, units, sizes."""

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from engine import __version__
from engine.cache import packed
from engine.decoder import Decoder, Weights, build_on_meta
from engine.errors import ModelError
from engine.family import EXPERTS_LAST, kv_shape, read_config
from engine.hub import resolve
from engine.kv_cache import PAGE, KVCache
from engine.layout import UnitReader
from engine.machine import choose_device
from engine.messages import ModelInfo
from engine.plan import Demand, Plan
from engine.resident import Expanded, expanded_bytes
from engine.sequence import Limits
from engine.spec import ModelSpec, Numerics
from engine.stream import LayerStream
from engine.tokenizer import read_tokenizer
from engine.weights import CheckpointUnits

Progress = Callable[[str, int, int], None]
SLICE_BYTES = 256 << 20  # a layer above this moves in slices, where its family can
FAST_TILE = 1024  # rows of a long prompt that run through a layer at a time, fast numerics
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class TargetFiles:
    """A checked checkpoint. Raises `ModelError` for anything that cannot be served."""

    def __init__(self, spec: ModelSpec, progress: Progress) -> None:
        self.spec = spec
        self.progress = progress
        self.device = choose_device(spec.device)
        self.strict = spec.numerics != "fast"
        source = resolve(spec.target.source, spec.target.revision, progress)
        self.folder = source.folder
        self._revision = source.identity
        self.config = read_config(self.folder)
        self.dtype = _dtype(spec, self.config)
        self.tokenizer = read_tokenizer(self.folder)
        self.model = build_on_meta(self.config, self.dtype, strict=self.strict)
        self.units = CheckpointUnits(
            self.folder,
            self.model,
            self.dtype,
            spec.target.quantize,
            slice_bytes=SLICE_BYTES if self.config.model_type in EXPERTS_LAST else None,
        )
        self.tensors = self.units.other()
        # Rows of the embedding; may be more than the tokenizer has tokens.
        self.vocab_size, self.hidden_size = self.model.get_input_embeddings().weight.shape
        self.context_length = self._context_length()

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

    def demand(self, kv_bytes: int, draft_bytes: int, scratch_rows: int) -> Demand:
        """What target and draft would like to take; `kv_bytes` per token are the draft's own."""
        config = self.config
        everything = sum(tensor.nbytes for tensor in self.tensors.values())
        embedding = self.vocab_size * self.hidden_size * self.dtype.itemsize
        return Demand(
            unit_bytes=[layout.nbytes for layout in self.units.layouts],
            layers=self.units.layers,
            expanded_bytes=expanded_bytes(self.units, self.dtype),
            other_device_bytes=everything - embedding,
            hidden_size=self.hidden_size,
            widest=max(self.hidden_size, getattr(config, "intermediate_size", None) or 0),
            num_heads=config.num_attention_heads,
            vocab_size=self.vocab_size,
            item_bytes=self.dtype.itemsize,
            kv_bytes_per_token=kv_shape(config).bytes_per_token(self.dtype) + kv_bytes,
            draft_weight_bytes=draft_bytes,
            scratch_rows=scratch_rows,
            context_length=self.context_length,
        )

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

    def kv_cache(self, num_pages: int) -> KVCache:
        shape = kv_shape(self.config)
        return KVCache(
            shape.num_layers,
            num_pages,
            shape.num_kv_heads,
            shape.head_dim,
            self.dtype,
            self.device,
            prefix_cache=self.spec.prefix_cache,
        )

    def limits(self, plan: Plan, decoder: Decoder) -> Limits:
        return Limits(
            max_tokens=min(self.context_length, plan.num_pages * PAGE),
            eos_token_ids=self.eos_token_ids,
            original_length=decoder.original_length,
        )

    def info(self, plan: Plan) -> ModelInfo:
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


def _dtype(spec: ModelSpec, config: Any) -> torch.dtype:
    if spec.target.dtype is not None:
        return DTYPES[spec.target.dtype]
    return torch.float32 if config.dtype == torch.float32 else torch.bfloat16
