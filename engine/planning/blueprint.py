"""A model as its config.json describes it, which is all that a plan needs to know of the model."""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.drafting.method import DraftNeeds
from engine.errors import ModelError
from engine.model.guard import check_decoder
from engine.model.library import build_of_folder, token_tables
from engine.model.ordered import is_ordered_on
from engine.model.recurrent import recurrent_shapes
from engine.model.resident import expanded_bytes
from engine.planning.cached import Cached, find_cached
from engine.planning.experts import Experts
from engine.planning.footprint import Demand
from engine.spec import TILE, ModelSpec
from engine.streaming.packed_cache import find_digest
from engine.weights.checkpoints import num_layers
from engine.weights.coding.units import expected_bytes
from engine.weights.config_place import config_place
from engine.weights.expert_weights import find_experts
from engine.weights.experts import EXPERTS_LAST, chosen_experts
from engine.weights.family import kv_shape, read_config, text_config
from engine.weights.formats.joined import knows_order
from engine.weights.formats.linear import (
    Kernel,
    best_kernel,
    matrix_shapes,
    supports,
    without_experts,
)
from engine.weights.formats.tensor_cores import describe, has_fast_bfloat16
from engine.weights.identity import identity_of
from engine.weights.layout import Field, join_layouts
from engine.weights.mapping import check_published_form
from engine.weights.outline import Outline, UnreadUnits, decoder_layers
from engine.weights.packing import dense_bytes, expanded_by_packing
from engine.weights.precision import computed_dtype
from engine.weights.shards import has_weights
from engine.weights.stored_format import plan_packed
from engine.weights.units import CheckpointUnits

SLICE_BYTES = 256 << 20  # a larger layer moves in slices, if its family supports that
PART_BYTES = 64 << 20  # a larger layer moves in parts, unless it moves in slices
FAST_TILE = 1024  # rows of a long prompt that run through a layer at a time, fast numerics


class Blueprint:
    """A model as its config.json describes it: without weights, on the `meta` device.

    Raises `ModelError` for a model that cannot be served.

    Args:
        torch_device: where it will compute; None: a CUDA card that this machine may not have, of a
            recent kind.
        looks_in_cache: whether a load on this machine need not make what the cache has. Nothing is
            taken as cached for a card that this machine may not have.
    """

    def __init__(
        self,
        spec: ModelSpec,
        folder: Path,
        torch_device: torch.device | None = None,
        *,
        looks_in_cache: bool = True,
    ) -> None:
        self.spec = spec
        self._looks_in_cache = looks_in_cache and torch_device is not None
        self.torch_device = torch_device
        self.folder = folder
        self.strict = spec.numerics != "fast"
        self.whole_config = read_config(folder, spec.target.rope)
        self.config = text_config(self.whole_config)
        self.dtype = computed_dtype(spec.target.dtype, self.whole_config, folder)
        self._check_type()
        self._check_layers()
        self.model = build_of_folder(folder, self.whole_config, self.dtype, strict=self.strict)
        check_decoder(self.whole_config, folder)
        self.recurrent = recurrent_shapes(self.model)
        self.experts = find_experts(decoder_layers(self.model))
        # Rows of the embedding; may be more than the tokenizer has tokens.
        self.vocab_size, self.hidden_size = self.model.get_input_embeddings().weight.shape
        self.context_length = self._context_length()
        self._entries: dict[str, str | None] = {}  # digests of entries of the cache, by name
        self.expanded_when_read = ""  # as `CheckpointUnits` says, where the outlines are read
        # The largest unit in bytes, where the family's layers can move in slices.
        self.slice_bytes = SLICE_BYTES if self.config.model_type in EXPERTS_LAST else None

    @cached_property
    def outlines(self) -> Mapping[bool, Outline]:
        """The outlines in which tensors that are stored packed stay so (True) or not (False).

        They are those of the checkpoint if it exists, else made from config.json.
        """
        if has_weights(self.folder):
            units = self.checkpoint_units()
            units.close()
            self.expanded_when_read = units.expanded_when_read
            return {True: units.outline, False: units.expanded().outline}
        make = partial(
            Outline,
            self.model,
            self.dtype,
            self.spec.target.quantize,
            slice_bytes=self.slice_bytes,
            part_bytes=PART_BYTES,
        )
        with config_place(self.folder).naming():
            check_published_form(self.model)
            return {True: make(stored=plan_packed(self.model)), False: make(stored={})}

    @cached_property
    def revision(self) -> str:
        """The identity of the files with the weights."""
        return identity_of(self.folder)

    @property
    def identity(self) -> str:
        """A hash that identifies the weights: source, revision and precision."""
        parts = [self.revision, str(self.dtype), str(self.spec.target.quantize)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @cached_property
    def expansions(self) -> Mapping[str, int]:
        """The dense bytes that a pass expands if weights stay packed, by the packing's suffix."""
        return expanded_by_packing(self.outlines[True].layouts, self.dtype)

    def checkpoint_units(self) -> CheckpointUnits:
        """Return the units of the checkpoint in the folder."""
        return CheckpointUnits(
            self.folder,
            self.model,
            self.dtype,
            self.spec.target.quantize,
            slice_bytes=self.slice_bytes,
            part_bytes=PART_BYTES,
        )

    def demand(self, needs: DraftNeeds, *, packed: bool, coded: bool = False) -> Demand:
        """Return the memory that the target and a draft with these needs take without any limit.

        Args:
            packed: whether tensors that are stored packed stay so.
            coded: whether weights travel in a lossless code.
        """
        config, shape, outline = self.config, kv_shape(self.config), self.outlines[packed]
        tables = [table.weight.shape for table in token_tables(self.model)]
        embedding = sum(shape.numel() for shape in tables) * self.dtype.itemsize
        sizes = [torch.Size(s).numel() * d.itemsize for d, s in outline.other_tensors.values()]
        nodes = self.recurrent.values() if needs.substitute_bytes else ()
        return Demand(
            unit_bytes=[layout.nbytes for layout in outline.layouts],
            coded_bytes=self._coded_bytes(outline, needs) if coded else (),
            layers=outline.layers,
            expanded_bytes=expanded_bytes(UnreadUnits(outline), outline.layers, self.dtype),
            other_device_bytes=sum(sizes) - embedding,
            hidden_size=self.hidden_size,
            widest=max(
                self.hidden_size,
                _intermediate_size(config),
                *(2 * shape.channels for shape in self.recurrent.values()),
                config.num_attention_heads * shape.head_dim if shape.is_latent else 0,
            ),
            num_heads=config.num_attention_heads,
            vocab_size=self.vocab_size,
            item_bytes=self.dtype.itemsize,
            kv_bytes_per_token=shape.bytes_per_token(self.dtype) + needs.kv_bytes_per_token,
            draft=needs,
            context_length=self.context_length,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            tile=TILE if self.strict else FAST_TILE,
            embedding_bytes=embedding,
            dense_bytes=sum(dense_bytes(unit, self.dtype) for unit in outline.layouts),
            expansions=self.expansions if packed else {},
            experts=self._mixtures(outline),
            state_bytes=sum(s.state_bytes(self.dtype) for s in self.recurrent.values())
            + needs.state_bytes,
            stash_bytes=needs.scratch_rows
            * sum(s.stash_bytes(self.dtype) for s in self.recurrent.values()),
            node_bytes=sum(s.node_bytes(self.dtype) for s in nodes) + needs.node_bytes,
            node_values=max((s.node_values for s in nodes), default=needs.node_values),
            hidden_states=getattr(config, "altup_num_inputs", 1),
            layer_inputs=sum(shape[1] for shape in tables[1:]),
            strict=self.strict,
            is_ordered=self.strict and self._is_ordered(),
            has_plain_softmax=not _has_caps_or_sinks(self.model, config),
            is_latent=shape.is_latent,
            cached=self._cached(outline, needs),
        )

    def _cached(self, outline: Outline, needs: DraftNeeds) -> Cached:
        """Return what a load of the model would find in the cache."""
        if not self._looks_in_cache or not has_weights(self.folder):
            return Cached()
        is_by_copies = self._is_coded_by_copies(outline, needs)
        return find_cached(self._find_entry, needs, is_coded_by_copies=is_by_copies)

    def _find_entry(self, name: str) -> str | None:
        """Return the digest of an entry of the cache, as it was when it was first looked for."""
        if name not in self._entries:
            self._entries[name] = find_digest(self.spec.id, f"{self.identity}\n{name}")
        return self._entries[name]

    def _mixtures(self, outline: Outline) -> Experts | None:
        """Return the sizes of mixtures of experts; None if no layer is one."""
        if not self.experts.count:
            return None
        chosen = chosen_experts(self.config)[1] or self.experts.count
        sizes = [dense_bytes(unit, self.dtype) for unit in outline.layouts]
        others = [without_experts(unit, self.experts).nbytes for unit in outline.layouts]
        of_experts = [whole - rest for whole, rest in zip(sizes, others, strict=True)]
        units = (layer.units for layer in outline.layers)
        mixed = (own for own in units if any(of_experts[unit] for unit in own))
        return Experts(
            chosen=min(chosen, self.experts.count),
            count=self.experts.count,
            share=sum(of_experts) / sum(sizes),
            units=frozenset(chain.from_iterable(mixed)),
        )

    def _coded_bytes(self, outline: Outline, needs: DraftNeeds) -> list[int]:
        """Return the expected bytes of each unit as it travels in a lossless code.

        Weights are coded by their 4-bit copies, or else by themselves.
        """
        group, device, kernel = self.spec.draft.group, self.torch_device, self._kernel(outline)
        is_known = self._is_coded_by_copies(outline, needs)

        def has_copy(field: Field) -> bool:
            if not is_known or len(field.shape) != 2:
                return False
            out_features, in_features = field.shape
            return supports(in_features, out_features, group, device, kernel)

        return [expected_bytes(layout, has_copy) for layout in outline.layouts]

    def _is_coded_by_copies(self, outline: Outline, needs: DraftNeeds) -> bool:
        """Return whether weights are coded by the 4-bit copies of the draft, if they are."""
        has_copies = bool(needs.substitute_bytes)
        return has_copies and knows_order(self._kernel(outline), self.torch_device)

    def _kernel(self, outline: Outline) -> Kernel:
        first = join_layouts(outline.layouts, outline.layers)[0]
        return best_kernel(matrix_shapes(first), self.spec.draft.group, self.torch_device)

    def compiles(self, *, has_own_memory: bool) -> bool:
        """Return whether code for the CPU is compiled to serve the model on such a device.

        It expands packed weights, also while they are read for a device with memory of its own, and
        codes weights for any device. On a CPU it decodes them, and computes the attention of strict
        numerics.
        """
        codes = self.dtype == torch.bfloat16 and self.spec.stream.coding == "auto"
        return bool(self.expansions) or codes or (not has_own_memory and self.strict)

    def _is_ordered(self) -> bool:
        """Return whether the device computes attention in the order of positions."""
        return self.torch_device is None or is_ordered_on(self.torch_device)

    def _check_type(self) -> None:
        """Raise `ModelError` if the device is slow in the type that the model computes in."""
        if (
            self.dtype != torch.bfloat16
            or self.torch_device is None
            or has_fast_bfloat16(self.torch_device)
        ):
            return
        raise ModelError(
            "target.dtype: the model computes in bfloat16, for which "
            f"{describe(self.torch_device)} has no fast products: they need 8.0 or newer. Set "
            "target.dtype to float16, whose range is smaller (a request whose numbers exceed it "
            "fails with logits_not_finite), or to float32, or set device to cpu"
        )

    def _check_layers(self) -> None:
        """Raise `ModelError` if there is a checkpoint and it has too few layers.

        It is called before the model is built, which takes time and memory for each layer.
        """
        where, wanted = config_place(self.folder), self.config.num_hidden_layers
        if has_weights(self.folder) and (held := num_layers(self.folder)) < wanted:
            raise ModelError(
                f"{where}: {where.name('num_hidden_layers')}: {wanted}, but the checkpoint has "
                f"{held} layers. {where.path.name} does not belong to it, or it is incomplete"
            )

    def _context_length(self) -> int:
        where, own = config_place(self.folder), int(self.config.max_position_embeddings)
        wanted = self.spec.context_length
        if wanted is not None and wanted > own:
            raise ModelError(
                f"context_length: {wanted} is more than the model's own {own} "
                f"({where.name('max_position_embeddings')} in {where})"
            )
        return wanted or own


def _intermediate_size(config: Any) -> int:
    """Return the width of the widest MLP; 0 if the configuration has no key for it."""
    size = getattr(config, "intermediate_size", None) or 0
    widest: int = max(size) if isinstance(size, list) else size
    return widest * (2 if getattr(config, "use_double_wide_mlp", False) else 1)


def _has_caps_or_sinks(model: nn.Module, config: Any) -> bool:
    """Return whether attention caps its scores (Gemma 2) or has sinks (gpt-oss)."""
    names = (name for name, _ in model.named_parameters())
    is_capped = getattr(config, "attn_logit_softcapping", None) is not None
    return is_capped or any(name.endswith(".sinks") for name in names)
