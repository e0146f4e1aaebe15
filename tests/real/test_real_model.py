"""A published model gives the library's text, with every drafting method and over HTTP."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.real.tokens_per_pass import METHODS, compare_forecasts, load_chats, measure
from benchmarks.report_format import Table
from benchmarks.runs import drive, ram_spec, session
from engine.drafting.methods import available
from engine.messages import Generate, SamplingParams
from engine.spec import DraftSpec, ModelSpec, TargetSpec
from tests.demo_server import running_server
from tests.real.conftest import PROMPT, TOKENS

GREEDY = SamplingParams(temperature=0.0, max_tokens=TOKENS)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, seed=3, max_tokens=TOKENS)
Answers = dict[str, tuple[int, ...]]


def make_spec(model_file: Path, draft: DraftSpec) -> ModelSpec:
    """Return the specification of the GGUF file in float32, as the library computes it."""
    spec = ram_spec(model_file, draft, gbps=None, max_sequences=len(PROMPT))
    target = TargetSpec(str(model_file), dtype="float32")
    return replace(spec, target=target, context_length=512)


def answers(spec: ModelSpec, chats: Answers, params: SamplingParams, wrong: Answers) -> Answers:
    """Return the answer to each chat; all run at once.

    Args:
        wrong: texts that the requests predict, which the look-up `prediction` drafts.
    """
    requests = [
        Generate(kind, prompt, params, prediction=wrong[kind]) for kind, prompt in chats.items()
    ]
    with session(spec) as served:
        run = drive(served, requests)
    return {kind: run.tokens_of(kind) for kind in chats}


@pytest.fixture(scope="session")
def wrong(expected: Answers) -> Answers:
    """Return the expected answers without every seventh token."""
    return {kind: tuple(t for i, t in enumerate(ids) if i % 7) for kind, ids in expected.items()}


@pytest.fixture(scope="session")
def sampled(model_file: Path, chats: Answers, wrong: Answers) -> Answers:
    """Return the sampled answers of plain decoding."""
    return answers(make_spec(model_file, DraftSpec("none")), chats, SAMPLED, wrong)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("method", available())
def test_every_method_gives_the_librarys_text(
    method: str,
    model_file: Path,
    chats: Answers,
    expected: Answers,
    sampled: Answers,
    wrong: Answers,
    short_model: Path,
) -> None:
    source = str(short_model) if method == "specexec" else None
    spec = make_spec(model_file, DraftSpec(method, source=source, depth=8, width=4, budget=32))
    assert answers(spec, chats, GREEDY, wrong) == expected
    assert answers(spec, chats, SAMPLED, wrong) == sampled


@pytest.mark.timeout(600)
def test_a_chat_over_http_gives_the_librarys_text(
    model_file: Path, tokenizer: Any, expected: Answers, tmp_path: Path
) -> None:
    folder = tmp_path / "config" / "understudy" / "models"
    folder.mkdir(parents=True)
    target = f"{{source: {model_file}, dtype: float32}}"
    (folder / "real.yaml").write_text(f"target: {target}\ncontext_length: 1024\n")
    command = [sys.executable, "-m", "server.cli.main", "serve", "real", "--port", "0"]
    with running_server(command, tmp_path) as (_, url):
        for kind, text in PROMPT.items():
            body = {
                "model": "real",
                "messages": [{"role": "user", "content": text}],
                "temperature": 0,
                "max_tokens": TOKENS,
            }
            answer = httpx.post(f"{url}/chat/completions", json=body, timeout=300).json()
            (choice,) = answer["choices"]
            ids = expected[kind]
            assert choice["message"]["content"] == tokenizer.decode(ids, skip_special_tokens=True)
            ends = ids[-1] == tokenizer.eos_token_id
            assert choice["finish_reason"] == ("stop" if ends else "length")
            assert answer["usage"]["completion_tokens"] == len(ids)


@pytest.mark.timeout(1800)
def test_drafts_are_worth_their_passes_and_the_forecast_is_near() -> None:
    chats = load_chats(1)
    methods = {name: METHODS[name] for name in ("recycling", "subspec, 64 rows")}
    columns, rows = measure(methods, chats, TOKENS)
    print(f"\n{Table('Tokens per pass', columns, rows)}")
    for recycling, subspec in zip(rows[2:4], rows[4:6], strict=True):  # at each temperature
        assert 1.2 < float(recycling[-1]) < 5 < float(subspec[-1])

    columns, forecasts = compare_forecasts(methods, chats, TOKENS)
    print(f"\n{Table('Forecast and measured speed', columns, forecasts)}")
    for _, forecast, measured, *_ in forecasts:  # answers this short have few tokens per pass
        assert 1 / 3 < float(measured) / float(forecast) < 2
