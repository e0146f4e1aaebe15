"""Tests of copies of KV pages to and from host memory: plain ones, and those of a fake GPU.

tests/gpu/test_kv_cuda.py has the same tests for a real GPU.
"""

import logging
import random
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.streaming import page_store
from engine.streaming.cpu_link import CpuDevice
from engine.streaming.cuda_link import CudaDevice
from engine.streaming.cuda_pages import CudaPageStore
from engine.streaming.page_store import num_staging_pages
from tests.engine import fake_cuda
from tests.engine.fake_cuda import DeviceTensor, FakeDevice, install

CUDA = torch.device("cuda:0")
ROWS, PAGES, PLACES, WIDTH = 4, 6, 5, 3  # of the pool: 2 L, pages, host places, a page's values
PAGE_BYTES = ROWS * WIDTH * 4
MS = 1e-3


class PoolTensor(DeviceTensor):
    """Device memory that can also be the source of copies, to the host or to the device."""

    leaving: threading.Event | None = None  # copies to the host wait for it

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.copy_:
            if cls.leaving is not None and not isinstance(args[0], PoolTensor):
                fake_cuda.current_stream().launch(cls.leaving.wait)
            args = (args[0], args[1].as_subclass(Tensor))
        return super().__torch_function__(func, types, args, kwargs)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    fake = FakeDevice()
    monkeypatch.setattr(fake_cuda, "DeviceTensor", PoolTensor)
    install(monkeypatch, fake)
    yield fake
    fake.end()
    assert fake.cudart.pinned == {}, "pinned memory was left behind"


def numbered_pool(pages: int = PAGES) -> Tensor:
    """Return a pool [2 L, pages, values] in which all values are different."""
    return torch.arange(ROWS * pages * WIDTH, dtype=torch.float32).view(ROWS, pages, WIDTH)


def test_pages_can_be_loaded_to_any_page_of_the_pool() -> None:
    pool = numbered_pool()
    before = pool.clone()
    store = CpuDevice().page_store(pool, PLACES)
    assert store.done(store.save([1, 4, 2], [3, 0, 2]))
    pool[:, [1, 2, 4]] = -1.0
    assert store.done(store.load([0, 2], [5, 1]))
    assert torch.equal(pool[:, 5], before[:, 4])
    assert torch.equal(pool[:, 1], before[:, 2])
    assert torch.equal(pool[:, [0, 3]], before[:, [0, 3]])
    store.close()


def test_a_host_page_may_be_saved_to_right_after_its_load() -> None:
    pool = numbered_pool()
    before = pool.clone()
    store = CpuDevice().page_store(pool, 1)
    store.save([0], [0])
    store.load([0], [1])
    store.save([2], [0])
    store.load([0], [3])
    assert torch.equal(pool[:, [1, 3]], before[:, [0, 2]])


def test_a_store_without_host_pages_can_be_used() -> None:
    with closing(CpuDevice().page_store(numbered_pool(), 0)) as store:
        store.wait(0)
        assert store.done(0)


def test_staging_memory_is_bounded_but_holds_at_least_one_page() -> None:
    assert num_staging_pages(page_store.STAGING_BYTES // 4, 100) == 4
    assert num_staging_pages(page_store.STAGING_BYTES * 3, 100) == 1
    assert num_staging_pages(page_store.STAGING_BYTES // 4, 2) == 2


class Orders:
    """A user of a page store that works as the KV cache does and checks pages on the device."""

    def __init__(self, device: FakeDevice, seed: int) -> None:
        self.device = device
        self.random = random.Random(seed)
        self.pool = torch.empty(ROWS, PAGES, WIDTH, device=CUDA)
        self.store = CudaPageStore(self.pool, PLACES, CudaDevice(CUDA))
        self.plain = self.pool.as_subclass(Tensor)
        self.in_pages: list[int | None] = [None] * PAGES
        self.in_places: list[int | None] = [None] * PLACES
        self.tickets = [0] * PAGES
        self.next = 100

    def write(self, page: int) -> None:
        """Fill a page, as a pass does, after waiting for the copies that use it."""
        self.store.wait(self.tickets[page])
        value = self.in_pages[page] = self.next
        self.next += 1
        self.device.compute.launch(lambda: self.plain[:, page].fill_(value))

    def read(self, page: int) -> None:
        """Check a page on the device, as a pass reads it, after waiting for copies that fill it."""
        self.store.wait(self.tickets[page])
        value = self.in_pages[page]
        if value is not None:
            self.device.compute.launch(lambda: self._check(page, value))

    def save(self) -> None:
        pages = self._some([p for p, value in enumerate(self.in_pages) if value is not None])
        places = self.random.sample(range(PLACES), len(pages))
        if pages:
            ticket = self.store.save(pages, places)
            for page, place in zip(pages, places, strict=True):
                self.in_places[place], self.tickets[page] = self.in_pages[page], ticket

    def load(self) -> None:
        places = self._some([p for p, value in enumerate(self.in_places) if value is not None])
        pages = self.random.sample(range(PAGES), len(places))
        if places:
            ticket = self.store.load(places, pages)
            for page, place in zip(pages, places, strict=True):
                self.in_pages[page], self.tickets[page] = self.in_places[place], ticket

    def run(self, steps: int) -> None:
        for _ in range(steps):
            page = self.random.randrange(PAGES)
            match self.random.randrange(4):
                case 0:
                    self.write(page)
                case 1:
                    self.read(page)
                case 2:
                    self.save()
                case 3:
                    self.load()

    def _some(self, usable: list[int]) -> list[int]:
        most = min(len(usable), PLACES, PAGES)
        return self.random.sample(usable, self.random.randrange(most + 1))

    def _check(self, page: int, value: int) -> None:
        assert (self.plain[:, page] == value).all(), f"page {page} does not hold {value}"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("compute", "copies"), [(0, 1), (1, 0), (1, 1)])
def test_pages_are_right_when_compute_or_copies_are_slow(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch, compute: int, copies: int, seed: int
) -> None:
    monkeypatch.setattr(page_store, "STAGING_BYTES", 2 * PAGE_BYTES)
    device.compute.slow, device.copy_speed = compute * MS, copies * MS
    orders = Orders(device, seed)
    with closing(orders.store):
        orders.run(60)
        for page in range(PAGES):
            orders.read(page)


def test_the_host_does_not_wait_for_copies(device: FakeDevice) -> None:
    orders = Orders(device, seed=0)
    gate = threading.Event()
    with closing(orders.store) as store:
        orders.write(0)
        device.streams[0].launch(gate.wait)
        saved = store.save([0], [0])
        loaded = store.load([0], [1])
        orders.in_pages[1], orders.tickets[1] = orders.in_pages[0], loaded
        orders.read(1)
        assert not store.done(saved) and not store.done(loaded)
        gate.set()
        device.compute.synchronize()
        assert store.done(loaded) and store.done(saved)


def test_a_page_may_be_written_before_its_bytes_have_left_the_device(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(PoolTensor, "leaving", gate)
    orders = Orders(device, seed=0)
    with closing(orders.store) as store:
        orders.write(0)
        orders.tickets[0] = store.save([0], [0])
        orders.in_places[0] = orders.in_pages[0]
        orders.write(0)
        device.compute.synchronize()
        assert store.done(orders.tickets[0])
        gate.set()
        orders.tickets[1] = store.load([0], [1])
        orders.in_pages[1] = orders.in_places[0]
        orders.read(1)
        orders.read(0)


def test_memory_that_cannot_be_pinned_is_used_unpinned(
    device: FakeDevice, caplog: pytest.LogCaptureFixture
) -> None:
    device.cudart.limit = 0
    with caplog.at_level(logging.WARNING):
        orders = Orders(device, seed=1)
    assert sum("refused to pin" in text for text in caplog.messages) == 1
    with closing(orders.store):
        orders.run(30)
    orders.store.close()  # a second time
