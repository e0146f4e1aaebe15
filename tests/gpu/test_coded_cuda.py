"""Weights in lossless codes on a device: their decoding, the ring, and whole engines.

tests/engine/streaming/test_cuda_coded.py has the tests of the ring with a fake device. They need
only the dependencies of the engine.
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for sleeps.

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.errors import ModelError
from engine.planning import choice, link_probe
from engine.spec import DraftSpec, StreamSpec, Tier
from engine.streaming.cuda_link import CudaDevice
from engine.streaming.packed import PackedUnits
from engine.streaming.ring import LayerStream
from engine.triton_kernels import weight_decoder
from engine.weights.coding import cells, coded, exponents
from engine.weights.coding.cells import Substitute
from engine.weights.formats import nf4
from engine.weights.formats.joined import weight_copy
from engine.weights.formats.linear import Kernel, substitute
from tests.engine.coded_units import COUNT, FaultyUnits, PlainUnits, decoded, packed
from tests.engine.models import PLAIN, SUBSPEC, checkpoint, exact, load, prompt, request, run
from tests.engine.weights.coding.copies import copy_of, same_bits
from tests.engine.weights.coding.kinds import WEIGHTS, copy_with_any_scale, usual

CUDA = torch.device("cuda", 0)
CYCLES = 2_000_000  # about a millisecond
FORMS = ["int4 32", "int4 64", "int4 128"]
MIXTURES: tuple[tuple[Tier, ...], ...] = (
    ("ram",) * 4,
    ("disk",) * 4,
    ("resident", "ram", "disk", "ram"),
)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_the_kernels_are_used() -> None:
    assert weight_decoder.is_usable(CUDA)
    assert CudaDevice(CUDA).can_decode


def decode(fields: Mapping[str, Tensor], copy: Substitute | None, like: Tensor) -> Tensor:
    """Return the weights that the device decodes."""
    moved = {name: field.to(CUDA) for name, field in fields.items()}
    out = torch.full_like(like, 7.0, device=CUDA)
    if copy is not None:
        copy = Substitute(copy.pairs.to(CUDA), copy.scales.to(CUDA), None, copy.first)
    coded.decode(moved, copy, out)
    return out.cpu()


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_of_any_kind_keep_every_bit(kind: str) -> None:
    torch.manual_seed(0)
    weight = WEIGHTS[kind](67, 1152)
    for form in FORMS:
        copy = copy_of(weight, form)
        assert same_bits(decode(cells.encode(weight, copy), copy, weight), weight), form
    fields = exponents.encode(weight)
    assert fields is not None
    assert same_bits(decode(fields, None, weight), weight)


@pytest.mark.parametrize("form", [*FORMS, "nf4 64"])
def test_any_scale_and_zero_can_be_decoded(form: str) -> None:
    torch.manual_seed(0)
    copy = copy_with_any_scale(form, 2048)
    for kind in ("usual", "any bits"):
        weight = WEIGHTS[kind](len(copy.pairs), 2048)
        assert same_bits(decode(cells.encode(weight, copy), copy, weight), weight)


@pytest.mark.parametrize("kernel", ["int4", "nf4"])
def test_copies_are_read_where_the_products_keep_them(kernel: Kernel) -> None:
    if kernel == "nf4" and not nf4.is_available():
        pytest.skip("needs bitsandbytes")
    weight = usual(512, 1024)
    layer = substitute(weight, None, 64, CUDA, kernel)
    rows = torch.randn(3, 1024, device=CUDA).bfloat16()
    layer(rows)  # a product may put its weight into another order
    kept = weight_copy(layer)
    assert kept is not None and kept.order is None
    own = Substitute(kept.pairs.cpu(), kept.scales.cpu())
    assert own.is_int4 is (kernel == "int4")
    fields = coded.encode(weight, own)
    assert fields is not None and cells.STREAM in fields
    out = torch.empty_like(weight, device=CUDA)
    coded.decode({name: field.to(CUDA) for name, field in fields.items()}, kept, out)
    assert same_bits(out.cpu(), weight)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[PackedUnits, PackedUnits]]:
    with packed(PlainUnits(), tmp_path) as found:
        yield found


class Checks:
    """Comparisons that are made on the device and read at the end, without waiting before."""

    def __init__(self, plain: PlainUnits) -> None:
        self._expected = [
            {name: own.to(CUDA) for name, own in plain.expected(index).items()}
            for index in range(COUNT)
        ]
        self._seen: list[tuple[int, str, Tensor]] = []

    def walk(self, stream: LayerStream, cycles: int, first: int = 0, last: int = COUNT) -> None:
        """Use units twice, with a delay of the device between."""
        for index in range(first, last):
            with stream.unit(index) as weights:
                self._compare(index, weights)
                torch.cuda._sleep(cycles)
                self._compare(index, weights)

    def _compare(self, index: int, weights: Mapping[str, Tensor]) -> None:
        for name, wanted in self._expected[index].items():
            self._seen.append((index, name, (weights[name] != wanted).sum()))

    def check(self) -> None:
        """Wait for the device and read all comparisons."""
        assert self._seen
        for index, name, wrong in self._seen:
            assert int(wrong) == 0, f"unit {index}, {name}"


@pytest.mark.parametrize("cycles", [0, CYCLES])
@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("tiers", MIXTURES, ids="-".join)
def test_the_ring_gives_plain_weights(
    both: tuple[PackedUnits, PackedUnits], tiers: Sequence[Tier], slots: int, cycles: int
) -> None:
    plain = PlainUnits()
    checks, reader = Checks(plain), decoded(both[0], plain, both[1], CUDA)
    with closing(LayerStream(reader, tiers, device=CudaDevice(CUDA), slots=slots)) as stream:
        for _ in range(3):
            checks.walk(stream, cycles)
        assert stream.measure_link() > 0
        for first in (2, 1, 3):
            stream.seek(first)
            checks.walk(stream, cycles, first)
        checks.check()


@pytest.mark.parametrize("tiers", MIXTURES, ids="-".join)
def test_weights_are_right_after_errors(
    both: tuple[PackedUnits, PackedUnits], tiers: Sequence[Tier]
) -> None:
    plain = PlainUnits()
    own = decoded(both[0], plain, both[1], CUDA)
    checks, reader = Checks(plain), FaultyUnits(both[0], plain.layouts, own.copies)
    with closing(LayerStream(reader, tiers, device=CudaDevice(CUDA), slots=2)) as stream:
        for _ in range(8):
            reader.faults = 3
            with suppress(ModelError):
                checks.walk(stream, CYCLES)
            reader.faults = 0
            for _ in range(2):  # each slot may hold a unit that failed ahead
                stream.seek(0)
                with suppress(ModelError):
                    checks.walk(stream, CYCLES)
            stream.seek(0)
            checks.walk(stream, 0)
        checks.check()


@pytest.mark.parametrize("tier", ["ram", "disk"])
@pytest.mark.parametrize("draft", [SUBSPEC, replace(SUBSPEC, group=64), DraftSpec("ngram"), PLAIN])
def test_answers_are_those_of_plain_weights(
    monkeypatch: pytest.MonkeyPatch, draft: DraftSpec, tier: Tier
) -> None:
    pytest.importorskip("numba")  # by which weights are coded
    monkeypatch.setattr(link_probe, "LEAST_CODED_BYTES", 0)
    monkeypatch.setattr(choice, "LEAST_GAIN", 0.0)
    asked = [
        request("greedy", prompt(20, 1), max_tokens=12, logprobs=2),
        request("seeded", prompt(70, 2), max_tokens=12, temperature=1.0, seed=3, logprobs=0),
    ]
    folder, found = checkpoint("llama", torch.bfloat16), []
    for spec in (StreamSpec(tier=tier, slots=2, coding="none"), StreamSpec(tier=tier, slots=2)):
        engine = load(folder, draft, stream=spec, device="cuda:0")
        found.append(exact(run(engine, asked)))
        is_coded = spec.coding == "auto"
        assert ("lossless code" in engine.info.plan) is is_coded
        assert (engine.info.link_bits < 16) is is_coded
    assert found[0] == found[1]
