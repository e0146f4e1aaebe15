"""Test that no module of the front end loads what only the engine process or traces need."""

import json
import subprocess
import sys
from pathlib import Path

from tests.architecture import modules

ROOT = Path(__file__).parents[2]
HEAVY = (
    *("torch", "transformers", "tokenizers", "safetensors", "bitsandbytes", "llguidance"),
    *("engine.kv", "engine.model", "engine.runtime", "engine.streaming"),
    # FastAPI imports OpenTelemetry's API, which does nothing without these.
    *("opentelemetry.sdk", "opentelemetry.exporter"),
)

SCRIPT = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def test_no_module_of_the_front_end_loads_torch_transformers_or_opentelemetry() -> None:
    names = [name for name in modules(ROOT, "server") if not name.startswith("server.traces.")]
    command = [sys.executable, "-c", SCRIPT, json.dumps(names)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert loaded >= set(names)
    assert not loaded & set(HEAVY)
