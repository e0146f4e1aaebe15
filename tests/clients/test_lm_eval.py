"""Tests with lm-evaluation-harness: likelihoods and generated text, by completions."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.demo_server import ROOT

lm_eval = pytest.importorskip("lm_eval")

QUESTIONS = [
    {"question": "Once upon a", "choices": [" time", " GPU", " port"], "answer": 0},
    {"question": "The server listens on port", "choices": [" blue", " 8000"], "answer": 1},
]


@pytest.fixture
def tasks(tmp_path: Path) -> list[dict[str, Any]]:
    """Return two tasks whose data is a local file, so that nothing is downloaded."""
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    common: dict[str, Any] = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path)},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    likelihood = {
        "task": "likelihood",
        "output_type": "multiple_choice",
        "doc_to_target": "answer",
        "doc_to_choice": "choices",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    generated = {
        "task": "generated",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    return [common | likelihood, common | generated]


def test_tasks_run_with_local_completions(url: str, tasks: list[dict[str, Any]]) -> None:
    results = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "demo",
            "base_url": f"{url}/completions",
            "tokenizer_backend": "huggingface",
            "tokenizer": str(ROOT / "configs" / "demo" / "target"),
            "max_length": 2048,
            "max_retries": 1,
        },
        tasks=tasks,
        log_samples=False,
        bootstrap_iters=0,
    )["results"]
    assert results["likelihood"]["acc,none"] == 1
    assert "exact_match,none" in results["generated"]
