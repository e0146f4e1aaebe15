"""Tests that the source code keeps the rules of `tests.architecture`, and that each can fail."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import architecture as rules

ROOT = Path(__file__).parent.parent
Rule = Callable[[Path], list[str]]
RULES: tuple[Rule, ...] = (
    rules.unplaced,
    rules.upward_imports,
    rules.circles,
    rules.forbidden_imports,
    rules.deep_imports,
    rules.scattered_imports,
    rules.import_time_imports,
    rules.triton_imports,
    rules.named_methods,
    rules.foreign_attributes,
    rules.device_questions,
    rules.long_files,
    rules.long_functions,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_source_code_keeps_the_rule(rule: Rule) -> None:
    assert rule(ROOT) == []


def test_the_checker_finds_the_imports_of_this_project() -> None:
    found = {(i.importer, i.imported) for i in rules.imports(ROOT, "engine")}
    assert ("engine.messages", "engine.spec") in found


LONG_FUNCTION = "def f() -> None:\n" + "    print()\n" * rules.MAX_FUNCTION_LINES
LONG_FILE = "x = 1\n" * (rules.MAX_FILE_LINES + 1)

VIOLATIONS: tuple[tuple[Rule, dict[str, str], str], ...] = (
    (rules.unplaced, {"engine/fresh/__init__.py": ""}, "engine/fresh"),
    (rules.unplaced, {"server/fresh/module.py": ""}, "server/fresh"),
    (
        rules.upward_imports,
        {"engine/kv/cache.py": "from engine.runtime.engine import Engine"},
        "cache.py:1",
    ),
    (
        rules.upward_imports,
        {"engine/kv/a.py": "from engine.sequences import scheduler"},
        "from above",
    ),
    (rules.upward_imports, {"engine/kv/a.py": "from ..sequences import scheduler"}, "from above"),
    (rules.upward_imports, {"engine/kv/a.py": "from ..sequences.scheduler import x"}, "from above"),
    (
        rules.upward_imports,
        {"engine/spec.py": "def f():\n    import engine.model.decoder"},
        "spec.py:2",
    ),
    (rules.upward_imports, {"server/errors.py": "from server.http import app"}, "from above"),
    (rules.upward_imports, {"engine/spec.py": "import benchmarks.runs"}, "from above"),
    (rules.upward_imports, {"benchmarks/a.py": "from tests.engine import models"}, "from above"),
    (
        rules.circles,
        {"engine/kv/a.py": "import engine.kv.b", "engine/kv/b.py": "import engine.kv.a"},
        "engine.kv.a",
    ),
    (
        rules.circles,
        {"server/a.py": "import server.b", "server/b.py": "from server import a"},
        "server.b",
    ),
    (rules.forbidden_imports, {"engine/spec.py": "import server.http.app"}, "front end"),
    (rules.forbidden_imports, {"engine/spec.py": "from pydantic import BaseModel"}, "web stack"),
    (
        rules.forbidden_imports,
        {"engine/x/y.py": "if True:\n    import starlette.routing"},
        "web stack",
    ),
    (
        rules.forbidden_imports,
        {"engine/drafting/methods/a.py": "from engine.drafting.methods.b import x"},
        "independent",
    ),
    (
        rules.upward_imports,
        {"engine/drafting/methods/a.py": "from engine.runtime.engine import Engine"},
        "from above",
    ),
    (rules.upward_imports, {"server/chat/a.py": "import server.http.routes.chat"}, "from above"),
    (rules.forbidden_imports, {"server/chat/prompt.py": "import torch"}, "device"),
    (
        rules.deep_imports,
        {"server/http/app.py": "from engine.kv.cache import KVCache"},
        "engine.kv.cache",
    ),
    (rules.deep_imports, {"server/http/app.py": "import engine.weights.hub"}, "engine.weights.hub"),
    (
        rules.scattered_imports,
        {
            "engine/weights/formats/nf4.py": "def f():\n    import bitsandbytes",
            "engine/weights/formats/linear.py": "def f():\n    from bitsandbytes import nn",
        },
        "engine.weights.formats.linear, engine.weights.formats.nf4",
    ),
    (rules.import_time_imports, {"engine/nf4.py": "import bitsandbytes as bnb"}, "nf4.py:1"),
    (rules.forbidden_imports, {"server/a.py": "def f():\n    import ray"}, "a.py:2: imports ray"),
    (rules.triton_imports, {"engine/a.py": "def f():\n    import triton"}, "a.py:2: only"),
    (rules.triton_imports, {"engine/triton_kernels/a.py": "import triton.language"}, "a.py:1"),
    (
        rules.triton_imports,
        {
            "engine/triton_kernels/a.py": "from engine.triton_kernels import b_kernel",
            "engine/triton_kernels/b_kernel.py": "import triton",
        },
        "a.py:1: import engine.triton_kernels.b_kernel inside",
    ),
    (rules.named_methods, {"engine/planning/a.py": 'is_b = method == "b"'}, "a.py:1: names 'b'"),
    (rules.named_methods, {"server/config/a.py": 'def f():\n    return {"b": 1}'}, "a.py:2"),
    (
        rules.named_methods,
        {"engine/planning/a.py": "from engine.drafting.methods import b"},
        "imports engine.drafting.methods.b",
    ),
    *(
        (rules.foreign_attributes, {"engine/kv/a.py": f"class A:\n    {text}"}, "a.py:2: b is set")
        for text in (
            "def f(self, a): a.b = 1",
            "def f(self, a): self.a.b += 1",
            "def f(self, a): a.c, (a.b, *_) = self.g()",
            "def f(self, a): del a.b",
            "def f(self, a): setattr(a, 'b', 1)",
        )
    ),
    (rules.device_questions, {"engine/kv/a.py": "x.device.type"}, "a.py:1"),
    (rules.device_questions, {"engine/kv/a.py": "\ny = x.is_cuda"}, "a.py:2"),
    (rules.long_files, {"engine/spec.py": LONG_FILE}, "401 lines"),
    (rules.long_functions, {"server/http/app.py": LONG_FUNCTION}, "f has 61 lines"),
)


@pytest.mark.parametrize(("rule", "files", "message"), VIOLATIONS)
def test_a_violation_is_found(
    rule: Rule, files: dict[str, str], message: str, tmp_path: Path
) -> None:
    for name in ("engine/sequences/scheduler.py", "engine/drafting/methods/b.py"):
        write(tmp_path, name, "")
    assert rule(tmp_path) == []
    for name, text in files.items():
        write(tmp_path, name, text)
    problems = rule(tmp_path)
    assert problems
    assert any(message in problem for problem in problems)


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_records_of_a_file_and_copies_of_self_may_be_changed(tmp_path: Path) -> None:
    text = (
        "@dataclass\nclass R:\n    b: int\n"
        "class A:\n"
        "    def f(self, r): r.b = self.b = 1\n"
        "    def g(self):\n        twin = copy.copy(self)\n        twin.c = 1\n"
    )
    write(tmp_path, "engine/kv/a.py", text)
    assert rules.foreign_attributes(tmp_path) == []
    write(tmp_path, "engine/kv/a.py", text.replace("@dataclass\n", ""))
    assert len(rules.foreign_attributes(tmp_path)) == 1
