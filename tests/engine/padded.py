"""Draft models whose steps run padded and plain, and whose results are compared."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from engine.drafting.calibration import Calibration
from engine.drafting.growth import Growth, Node
from engine.drafting.model.cuda_graphs import Bucket, GraphedSteps
from engine.drafting.model.draft_cache import OwnCache
from engine.drafting.model.draft_model import BoundWeights, DraftModel
from engine.drafting.tree import Bounds
from engine.kv.cache import KVCache
from engine.kv.page_pool import PagePool
from engine.model.attention import Batch
from engine.model.decoder import Decoder
from engine.model.library import build_on_meta
from engine.model.resident import bind_resident
from engine.spec import TILE
from engine.streaming.device import Capture, Device, Work
from engine.weights.family import kv_shape, read_config
from engine.weights.units import CheckpointUnits
from tests.engine.models import VOCAB

BOUNDS = Bounds(depth=8, width=5, branch=4, budget=40)


def uncaptured(work: Work) -> Work:
    """Return the padded step without capturing it, so that its kernels are launched one by one."""
    return work


class Compared(GraphedSteps):
    """Graphed steps of a draft model whose logits and KV are compared with those of plain steps."""

    def __init__(self, model: DraftModel, capture: Capture, tolerance: float = 2e-5) -> None:
        super().__init__(model.decoder, model.caches.cache.pool, capture)
        self.capture_all(lambda *_: None)
        self.compared: list[Bucket] = []
        self.num_plain = 0
        self._tolerance = tolerance
        model.graphs = self

    def logits(self, embedded: Sequence[Tensor], batch: Batch) -> Tensor | None:
        pool, decoder = self._pool.memory, self._decoder
        positions = torch.cat([s.positions[s.num_scratch :] for s in batch.segments])
        before = pool.clone()
        hidden = decoder.run([own.clone() for own in embedded], positions[None], batch)
        with decoder.head() as head:
            want = torch.cat([head(block) for block in torch.split(hidden, TILE)])
        stored = pool.clone()
        pool.copy_(before)
        found, bucket = super().logits(embedded, batch), Bucket.of(batch)
        if found is None or bucket is None:
            self.num_plain += 1
            return None
        torch.testing.assert_close(found, want, atol=self._tolerance, rtol=1e-4)
        torch.testing.assert_close(pool, stored, atol=self._tolerance, rtol=1e-4)
        others = torch.ones(pool.shape[1], dtype=torch.bool, device=pool.device)
        for segment in batch.segments:
            others[segment.slots[segment.start + segment.num_scratch :]] = False
        assert torch.equal(pool[:, others], before[:, others]), "a padded step wrote to other slots"
        self.compared.append(bucket)
        return found


def draft_of(folder: Path, device: Device) -> DraftModel:
    """Return a separate draft model in float32, as SpecExec uses it."""
    config, dtype = read_config(folder), torch.float32
    model = build_on_meta(config, dtype, strict=False)
    units = CheckpointUnits(folder, model, dtype)
    bind_resident(model, units, device.torch_device, lambda *_: None)
    decoder = Decoder(
        model, BoundWeights(), units.other_tensors(), device=device.torch_device, strict=False
    )
    shape = kv_shape(config)
    pool = PagePool(
        num_layers=shape.num_layers,
        num_pages=40,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        dtype=dtype,
        device=device,
    )
    cache = KVCache(pool)
    return DraftModel("draft", decoder, OwnCache(cache, decoder.is_long), BOUNDS, VOCAB)


def grow(model: DraftModel, growths: Sequence[Growth], steps: int) -> None:
    """Run `steps` draft steps, each over all these trees together."""
    for _ in range(steps):
        chosen: list[tuple[Growth, list[Node]]] = []
        for growth in growths:
            nodes = growth.pop(BOUNDS.width, BOUNDS.depth)
            if nodes:
                chosen.append((growth, nodes))
        assert model.step(chosen, Calibration()) > 0
