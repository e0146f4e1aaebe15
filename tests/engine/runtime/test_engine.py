"""Tests of the engine's step: aborts, failures, tiers, quantized targets, refused models."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from engine.errors import ModelError, RequestError
from engine.messages import AnswerFormat, Failed, Tokens
from engine.runtime.engine import Engine
from engine.spec import DraftSpec, MemorySpec, StreamSpec, TargetSpec
from engine.weights.family import check_family
from tests.engine.grammars import SPECIAL, ids, json_checkpoint, lark
from tests.engine.models import (
    PLAIN,
    SMALL,
    SUBSPEC,
    alone,
    checkpoint,
    draft_model,
    drain,
    exact,
    hooks,
    load,
    model_spec,
    prompt,
    request,
    run,
)
from tests.variations import variations


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = load(checkpoint("llama"), SUBSPEC)
    yield made
    made.close()


def test_an_abort_frees_the_pages_and_leaves_the_others_alone(engine: Engine) -> None:
    asked = [request(str(i), prompt(70, i), max_tokens=30) for i in range(3)]
    unhurried = alone(engine, asked)
    for message in asked:
        engine.add(message)
    engine.step()
    engine.step()
    engine.abort("1")
    rest = drain(engine)
    assert ("1", 0) not in rest
    for name in ("0", "2"):
        want = unhurried[(name, 0)].ids
        assert want[-len(rest[(name, 0)].ids) :] == rest[(name, 0)].ids
    assert engine._cache.num_free_pages == engine._cache.num_pages


@pytest.mark.parametrize("unit", range(4))
def test_an_abort_takes_effect_before_the_next_layer(engine: Engine, unit: int) -> None:
    engine.add(request("r", prompt(70), max_tokens=30))
    engine.step()
    seen = []

    def abort(count: int) -> None:
        seen.append(count)
        if len(seen) == unit + 1:
            engine.abort("r")

    hooks(engine).on_unit = abort
    engine.step()
    assert len(seen) == unit + 1, "no unit ran after the abort"
    assert engine.step() == [] and not engine.has_work()
    hooks(engine).on_unit = None
    again = run(engine, [request("next", prompt(70), max_tokens=8)])
    assert again[("next", 0)].finish == "length"


def test_the_engine_works_after_all_clients_left_during_a_pass(engine: Engine) -> None:
    want = run(engine, [request("a", prompt(40), max_tokens=12)])[("a", 0)]
    for i in range(3):
        engine.add(request(f"gone{i}", prompt(40, i), max_tokens=30))

    def leave(_: int) -> None:
        for i in range(3):
            engine.abort(f"gone{i}")

    hooks(engine).on_unit = leave
    engine.step()
    hooks(engine).on_unit = None
    assert run(engine, [request("a", prompt(40), max_tokens=12)])[("a", 0)].exact == want.exact


def test_an_abort_while_drafting_leaves_no_incomplete_page_to_share() -> None:
    folder = checkpoint("llama")
    engine = load(folder, DraftSpec("specexec", source=str(folder), **SMALL))
    model = draft_model(engine)
    for layer in model.decoder.decoder.layers:
        layer.tile = 64  # so that some tiles hold only rows of the cancelled request
    engine.add(request("leaves", prompt(200), max_tokens=30))
    engine.add(request("stays", prompt(70, 1), max_tokens=30))
    engine.step()
    hooks(engine).on_unit = lambda _: engine.abort("leaves")
    drain(engine)
    with torch.inference_mode():
        assert model.caches.cache.open(prompt(200)).length == 0
        assert model.caches.cache.open(prompt(70, 1)).length == 69
    engine.close()


def test_a_draft_that_runs_a_prompt_reports_progress() -> None:
    folder, units = checkpoint("llama"), 4
    engine = load(folder, DraftSpec("specexec", source=str(folder), **SMALL))
    engine.add(request("r", prompt(40), max_tokens=30))
    seen: list[int] = []
    hooks(engine).on_unit = seen.append
    engine.step()
    assert len(seen) == units, "no tree is drafted for the prompt"
    engine.step()
    assert len(seen) > 2 * units, "the draft reports progress too"
    engine.close()


def test_a_request_is_reported_when_its_first_pass_begins(engine: Engine) -> None:
    started: list[str] = []
    hooks(engine).on_prompt = lambda name, _: started.append(name)
    engine.add(request("r", prompt(5), max_tokens=4))
    hooks(engine).on_unit = lambda _: started.append("a layer")
    engine.step()
    assert started[:2] == ["r", "a layer"]
    hooks(engine).on_unit = None
    run(engine, [])
    assert started.count("r") == 1


def test_the_progress_of_a_long_prompt_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(checkpoint("llama"), DraftSpec("none"))
    engine._scheduler.max_rows = 64
    reported: list[tuple[str, int]] = []
    hooks(engine).on_prompt = lambda name, done: reported.append((name, done))
    for name, seconds in (("each pass", 0.0), ("seldom", 1e9)):
        monkeypatch.setattr("engine.sequences.sequence.REPORT_SECONDS", seconds)
        run(engine, [request(name, prompt(150, len(reported)), max_tokens=4)])
    assert reported == [("each pass", 0), ("each pass", 64), ("each pass", 128), ("seldom", 0)]


def test_aborting_an_unknown_or_finished_request_changes_nothing(engine: Engine) -> None:
    engine.abort("never")
    run(engine, [request("r", prompt(5), max_tokens=2)])
    engine.abort("r")
    assert not engine.has_work()


def test_a_failed_read_fails_only_the_requests_of_its_pass() -> None:
    engine = load(checkpoint("llama"), PLAIN, stream=StreamSpec(tier="disk", slots=2))
    want = run(engine, [request("a", prompt(9), max_tokens=6)])[("a", 0)]
    reader: Any = engine._loaded.stream
    broken = BrokenOnce(reader)
    engine.add(request("a", prompt(9), max_tokens=6))
    engine.add(request("b", prompt(9, 1), max_tokens=6))
    events = engine.step()
    broken.restore()
    assert {e.request_id for e in events if isinstance(e, Failed)} == {"a", "b"}
    assert all("layers.1" in e.message for e in events if isinstance(e, Failed))
    assert run(engine, [request("a", prompt(9), max_tokens=6)])[("a", 0)].exact == want.exact
    engine.close()


def test_an_answer_that_cannot_be_parsed_fails_alone(engine: Engine) -> None:
    unknown = AnswerFormat("no such format", "none", {}, "")
    broken = request("a", prompt(9), max_tokens=6, stop=("x",), n=2)
    engine.add(replace(broken, answer_format=unknown))
    engine.add(request("b", prompt(9, 1), max_tokens=6, stop=("x",)))
    events: list[Tokens | Failed] = []
    while engine.has_work():
        events += engine.step()
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert (failed.request_id, failed.code) == ("a", "answer_unreadable")
    assert [e.request_id for e in events if isinstance(e, Tokens) and e.finish] == ["b"]
    assert engine._cache.num_free_pages == engine._cache.num_pages


class BrokenOnce:
    """A patch that makes a stream raise at unit 1, as it does when the disk fails."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._unit = stream, stream.unit
        stream.unit = self._fail

    def _fail(self, index: int, on_wait: Any = None) -> Any:
        if index == 1:
            raise ModelError("model.layers.1: its weights could not be read")
        return self._unit(index, on_wait)

    def restore(self) -> None:
        self._stream.unit = self._unit


@pytest.mark.parametrize(
    "stream",
    [
        StreamSpec(tier="disk", slots=1),
        StreamSpec(tier="disk", slots=3),
        StreamSpec(tier="resident"),
        StreamSpec(resident=1, slots=2),
        StreamSpec(tier="ram", simulate_gbps=5.0),
        StreamSpec(),
    ],
    ids=str,
)
@pytest.mark.parametrize("draft", [PLAIN, SUBSPEC], ids=["plain", "subspec"])
def test_answers_do_not_depend_on_the_tiers_of_the_weights(
    stream: StreamSpec, draft: DraftSpec
) -> None:
    asked = [request("g", prompt(30)), request("s", prompt(9), temperature=1.0, seed=3)]
    want = run(load(checkpoint("llama"), PLAIN), asked)
    engine = load(checkpoint("llama"), draft, stream=stream)
    got = run(engine, asked)
    assert exact(got) == exact(want)
    engine.close()


@pytest.mark.parametrize("tier", variations(["ram", "disk", "resident"], quick=["disk"]))
def test_answers_of_a_quantized_target_do_not_depend_on_the_draft(tier: Any) -> None:
    """Four bits change the answers, but drafts and batches still do not."""
    folder = checkpoint("llama")
    target = TargetSpec(str(folder), quantize="nf4")
    asked = [request(str(i), prompt(20, i), temperature=float(i), seed=i) for i in range(3)]
    plain = load(folder, PLAIN, target=target)
    want = alone(plain, asked)
    dense = run(load(folder, PLAIN), asked)
    engine = load(folder, SUBSPEC, target=target, stream=StreamSpec(tier=tier, slots=2))
    got = run(engine, asked)
    assert exact(got) == exact(want)
    assert any(dense[key].ids != got[key].ids for key in got), "four bits change the answers"
    engine.close()


def test_each_end_token_of_the_generation_config_ends_an_answer(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path)
    path = folder / "generation_config.json"
    free = run(load(folder, PLAIN), [request("r", prompt(8), max_tokens=20)])[("r", 0)].ids
    ends = [free[4], free[9]]
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": ends}))
    params: dict[str, Any] = {"max_tokens": 20, "ignore_eos": False}
    answer = run(load(folder, SUBSPEC), [request("r", prompt(8), **params)])[("r", 0)]
    first = min(free.index(end) for end in ends)
    assert answer.ids == free[: first + 1] and answer.finish == "stop"
    assert answer.stats is not None and answer.stats.completion_tokens == first + 1


def test_the_end_token_of_the_tokenizer_ends_an_answer_too(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path)
    free = run(load(folder, PLAIN), [request("r", prompt(8), max_tokens=20)])[("r", 0)].ids
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(free[4])
    tokenizer.save_pretrained(folder)
    asked = request("r", prompt(8), max_tokens=20, ignore_eos=False)
    answer = run(load(folder, SUBSPEC), [asked])[("r", 0)]
    assert answer.ids == free[: free.index(free[4]) + 1] and answer.finish == "stop"


def test_suppressed_tokens_of_the_generation_config_never_occur(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path)
    path = folder / "generation_config.json"
    free = run(load(folder, PLAIN), [request("r", prompt(8), max_tokens=20)])[("r", 0)].ids
    path.write_text(json.dumps({**json.loads(path.read_text()), "suppress_tokens": free[3:6]}))
    asked = [request("r", prompt(8), max_tokens=20), request("s", prompt(8), n=2, temperature=1.0)]
    want = alone(load(folder, PLAIN), asked)
    got = run(load(folder, SUBSPEC), asked)
    assert exact(got) == exact(want)
    assert got[("r", 0)].ids[:3] == free[:3] or set(free[:3]) & set(free[3:6])
    assert not any(set(answer.ids) & set(free[3:6]) for answer in got.values())


def test_a_damaged_generation_config_is_found_before_weights_are_read(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path)
    (folder / "generation_config.json").write_text("{")
    steps: list[str] = []
    with pytest.raises(ModelError, match=r"generation_config\.json: not valid JSON"):
        Engine.load(model_spec(folder, PLAIN), lambda step: steps.append(step.what))
    assert steps == []


def test_cached_tokens_are_reported_and_never_include_the_last_one(engine: Engine) -> None:
    first = run(engine, [request("a", prompt(150), max_tokens=2)])[("a", 0)]
    second = run(engine, [request("b", prompt(150), max_tokens=2)])[("b", 0)]
    assert first.stats is not None and second.stats is not None
    assert first.stats.cached_tokens == 0 and second.stats.cached_tokens == 149
    off = load(checkpoint("llama"), SUBSPEC, prefix_cache=False)
    for name in ("a", "b"):
        stats = run(off, [request(name, prompt(150), max_tokens=2)])[(name, 0)].stats
        assert stats is not None and stats.cached_tokens == 0


def test_a_second_request_gets_tokens_while_the_first_still_runs(engine: Engine) -> None:
    engine.add(request("first", prompt(10), max_tokens=60))
    engine.step()
    engine.add(request("second", prompt(10, 1), max_tokens=60))
    got = [e.request_id for _ in range(3) for e in engine.step() if isinstance(e, Tokens)]
    assert "second" in got and "first" in got
    drain(engine)


def test_a_prompt_that_can_never_fit_is_refused(engine: Engine) -> None:
    with pytest.raises(RequestError, match="513 tokens") as caught:
        engine.add(request("r", prompt(513)))
    assert caught.value.code == "context_length_exceeded"


def copied(family: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint(family), tmp_path / family))


def edit_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "no_such_model"}, "no_such_model"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "dynamic",
        ),
        ({"quantization_config": {"quant_method": "quanto", "bits": 4}}, "quanto"),
    ],
)
def test_the_error_of_an_unsupported_model_names_the_reason(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load(edit_config(copied("llama", tmp_path), **changes), PLAIN)


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "falcon_mamba"])
def test_models_without_attention_are_refused_by_name(kind: str) -> None:
    with pytest.raises(ModelError, match=kind):
        check_family(AutoConfig.for_model(kind))


def test_a_draft_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    other = copied("llama", tmp_path)
    path = other / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    a, b, *_ = vocab
    vocab[a], vocab[b] = vocab[b], vocab[a]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="another vocabulary"):
        load(checkpoint("llama"), DraftSpec("specexec", source=str(other)))


def test_the_error_of_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"ngram, none, .*, specexec, subspec"):
        load(checkpoint("llama"), DraftSpec("medusa"))


def test_a_context_longer_than_the_models_is_refused() -> None:
    with pytest.raises(ModelError, match="context_length: 4096"):
        load(checkpoint("llama"), PLAIN, context_length=4096)


def test_the_error_of_too_little_memory_has_the_numbers() -> None:
    with pytest.raises(ModelError, match=r"memory.device: 1.0 MiB is .* too little"):
        load(checkpoint("llama"), PLAIN, memory=MemorySpec(device=1 << 20))


def test_a_draft_is_chosen_if_no_method_is_set() -> None:
    slow = StreamSpec(tier="ram", simulate_gbps=0.01)
    streamed = load(checkpoint("llama"), DraftSpec(), stream=slow)
    assert draft_model(streamed).name == "subspec" and "ngram" in streamed.info.draft_methods
    mixture = load(checkpoint("mixtral"), DraftSpec(), stream=slow)
    assert draft_model(mixture).name == "subspec"


def test_logprobs_equal_those_of_transformers() -> None:
    folder, ids = checkpoint("llama"), prompt(12)
    params: dict[str, Any] = {"temperature": 1.5, "seed": 2, "top_k": 3, "logprobs": 4}
    answer = run(load(folder, SUBSPEC), [request("r", ids, max_tokens=6, **params)])[("r", 0)]
    model: Any = AutoModelForCausalLM
    model = model.from_pretrained(folder)
    logits: Tensor = model(torch.tensor([ids + answer.ids])).logits[0, len(ids) - 1 : -1]
    want = logits.log_softmax(-1)
    for row, entry in zip(want, answer.logprobs, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token].item(), abs=1e-4)
        assert [t for t, _ in entry.top] == row.topk(4).indices.tolist()


def test_a_special_token_is_shown_to_requests_that_ask_for_it() -> None:
    engine = load(json_checkpoint(), PLAIN)
    grammar = lark(f'start: "a" <[{SPECIAL.index("<tag>")}]> "b"')
    asked = [
        request("hidden", ids("go"), grammar=grammar),
        request("shown", ids("go"), grammar=grammar, shown_tokens=(SPECIAL.index("<tag>"),)),
        request("stop", ids("go"), grammar=grammar, stop=("<",), ignore_eos=False),
    ]
    hidden, shown, stop = (run(engine, [message])[message.request_id, 0] for message in asked)
    assert (hidden.text, shown.text, stop.text) == ("ab", "a<tag>b", "ab")
    assert hidden.ids == shown.ids == stop.ids
