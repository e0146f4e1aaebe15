"""Tests of layers that are streamed in parts: the answers are those of whole layers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import engine.planning.blueprint
from engine.drafting.model.self_draft import SelfDraft
from engine.messages import Generate
from engine.model.decoder import StreamedLayer
from engine.runtime.engine import Engine
from engine.spec import DraftSpec, StreamSpec, TargetSpec
from engine.weights.layout import WholeLayers
from tests.engine.models import (
    PLAIN,
    SMALL,
    SUBSPEC,
    alone,
    checkpoint,
    draft_ahead,
    exact,
    load,
    prompt,
    request,
    run,
)

TINY = 1  # bytes: every matrix is a part of its own
RING = StreamSpec(tier="ram", slots=2)


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """Return a function that loads an engine whose layers are divided."""

    def make(folder: Path, draft: DraftSpec, **changes: Any) -> Engine:
        with monkeypatch.context() as tiny:
            tiny.setattr(engine.planning.blueprint, "PART_BYTES", TINY)
            made = load(folder, draft, **changes)
        assert all(layer.units.num_parts > 2 for layer in layers(made))
        return made

    return make


def layers(made: Engine) -> list[StreamedLayer]:
    return list(made._decoder.decoder.layers)


def requests() -> list[Generate]:
    """Return requests of several lengths, one longer than two tiles."""
    return [
        request("greedy", prompt(5, 1) * 4, logprobs=2, max_tokens=10),
        request("sampled", prompt(150, 2), temperature=1.0, seed=3, logprobs=0, max_tokens=6),
        request("twins", prompt(30, 4), n=2, temperature=1.2, seed=5, top_k=6, max_tokens=6),
    ]


@pytest.mark.parametrize(
    "family", ["llama", "phi3_longrope", "gemma3", "qwen3_moe", "gpt_oss", "youtu"]
)
def test_answers_do_not_depend_on_the_parts(in_parts: Any, family: str) -> None:
    folder = checkpoint(family)
    whole = load(folder, PLAIN, stream=RING)
    want, fingerprint = exact(alone(whole, requests())), whole.info.fingerprint
    whole.close()
    made = in_parts(folder, DraftSpec("ngram"), stream=RING)
    for attempt in ("cold", "prefix cached"):
        assert exact(run(made, requests())) == want, attempt
    assert made.info.fingerprint == fingerprint
    made.close()


@pytest.mark.parametrize(
    "stream",
    [
        StreamSpec(tier="disk", slots=2),
        StreamSpec(tier="disk", slots=6),
        StreamSpec(tier="resident"),
        StreamSpec(resident=1),
    ],
    ids=str,
)
def test_answers_of_a_self_draft_do_not_depend_on_tiers(in_parts: Any, stream: StreamSpec) -> None:
    folder = checkpoint("llama", torch.bfloat16)
    whole = load(folder, PLAIN)
    want = exact(alone(whole, requests()))
    whole.close()
    made = in_parts(folder, SUBSPEC, stream=stream)
    draft_ahead(made)
    assert exact(run(made, requests())) == want
    tiers = made._loaded.plan.tiers
    of_layers = [{tiers[unit] for unit in layer.units.units} for layer in layers(made)]
    assert all(len(own) == 1 for own in of_layers), "a layer is resident with all its parts"
    made.close()


def test_a_separate_draft_and_quantized_weights_work_with_parts(in_parts: Any) -> None:
    folder = checkpoint("llama")
    target = TargetSpec(str(folder), quantize="nf4")
    whole = load(folder, PLAIN, target=target)
    want = exact(alone(whole, requests()))
    whole.close()
    for tier in ("ram", "resident"):
        draft, stream = DraftSpec("specexec", source=str(folder), **SMALL), StreamSpec(tier=tier)
        made = in_parts(folder, draft, target=target, stream=stream)
        assert exact(run(made, requests())) == want, tier
        made.close()


def test_fast_numerics_give_the_same_bits_with_parts(in_parts: Any) -> None:
    """Each product is of the same rows as with whole layers."""
    folder = checkpoint("llama", torch.bfloat16)
    whole = load(folder, PLAIN, numerics="fast")
    want = exact(alone(whole, requests()))
    whole.close()
    made = in_parts(folder, PLAIN, numerics="fast")
    assert exact(alone(made, requests())) == want


def test_the_ring_is_smaller_with_parts(in_parts: Any) -> None:
    folder, stream = checkpoint("llama"), StreamSpec(tier="ram", slots=3)
    whole, made = load(folder, PLAIN, stream=stream), in_parts(folder, PLAIN, stream=stream)
    before, now = whole._loaded.plan, made._loaded.plan
    assert before.ring_slots == 3 and now.ring_slots == 5 + 2
    sizes = [layout.nbytes for layout in made._loaded.stream._layouts]
    first = max(sizes[0], sizes[-1])  # the head is as small as a part and uses the same slots
    assert now.ring_bytes == 2 * first + 2 * sizes[1] + sum(sizes[2:5])
    held = sum(slot.memory.nbytes for own in made._loaded.stream._free.values() for slot in own)
    held += sum(load.slot.memory.nbytes for load in made._loaded.stream._loads)
    assert held == now.ring_bytes < 0.6 * before.ring_bytes


def test_a_part_is_borrowed_when_its_first_tensor_is_read(
    in_parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = in_parts(checkpoint("llama"), PLAIN, stream=RING)
    stream, layer = made._loaded.stream, layers(made)[0]
    events: list[str] = []
    own = stream.unit

    def unit(index: int, *others: Any) -> Any:
        if index in layer.units.parts:
            events.append(str(index))
        return own(index, *others)

    monkeypatch.setattr(stream, "unit", unit)
    for name in ("q_proj", "o_proj", "gate_proj", "down_proj"):
        (part,) = (own for path, own in layer.inner.named_modules() if path.endswith(name))
        part.register_forward_hook(lambda *_, name=name: events.append(name))
    run(made, [request("r", prompt(9), max_tokens=1)])
    want = ["0", "q_proj", "1", "o_proj", "2", "gate_proj", "3", "4", "down_proj"]
    assert events == want
    weights = [own for name, own in layer.inner.named_parameters() if name.endswith("_proj.weight")]
    assert [own.is_meta for own in weights] == [False, False, *[True] * 5], "they were returned"


@pytest.mark.parametrize("part", [0, 1, 4])
def test_an_abort_takes_effect_before_the_next_part(
    in_parts: Any, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    made = in_parts(checkpoint("llama"), PLAIN, stream=RING)
    stream = made._loaded.stream
    made.add(request("r", prompt(150), max_tokens=30))
    own, seen = stream.unit, list[int]()

    def unit(index: int, *others: Any) -> Any:
        seen.append(index)
        if index == part:
            made.abort("r")
        return own(index, *others)

    monkeypatch.setattr(stream, "unit", unit)
    made.step()
    assert seen == list(range(part + 1))
    monkeypatch.setattr(stream, "unit", own)
    assert made.step() == [] and not made.has_work()
    again = run(made, [request("next", prompt(70), max_tokens=8)])
    assert again[("next", 0)].finish == "length"


def test_a_draft_reads_whole_layers(in_parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[WholeLayers] = []
    build = SelfDraft.build

    def recorded(draft: SelfDraft, target: Any) -> Any:
        read.append(target.reader)
        return build(draft, target)

    monkeypatch.setattr(SelfDraft, "build", recorded)
    folder = checkpoint("llama")
    load(folder, SUBSPEC)
    in_parts(folder, SUBSPEC)
    whole, joined = read
    assert [len(own) for own in whole.units] == [1] * 4
    assert [len(own) for own in joined.units] == [5, 5, 5, 1]
    for index in range(4):
        fields = [whole_fields(reader, index) for reader in read]
        assert fields[0].keys() == fields[1].keys()
        assert all(torch.equal(fields[1][name], own) for name, own in fields[0].items())


def whole_fields(reader: WholeLayers, index: int) -> dict[str, torch.Tensor]:
    buffer = torch.zeros(reader.layouts[index].nbytes, dtype=torch.uint8)
    reader.read(index, buffer)
    return reader.layouts[index].views(buffer)
