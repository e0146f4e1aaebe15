"""The house keeps its order, and the checker that says so can say no."""

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
    rules.long_files,
    rules.long_functions,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule: Rule) -> None:
    assert rule(ROOT) == []


def test_the_checker_sees_the_imports_of_this_house() -> None:
    found = {(i.importer, i.imported) for i in rules.imports(ROOT, "engine")}
    assert ("engine.messages", "engine.spec") in found


LONG_FUNCTION = "def f() -> None:\n" + "    print()\n" * rules.MAX_FUNCTION_LINES
LONG_FILE = "x = 1\n" * (rules.MAX_FILE_LINES + 1)

VIOLATIONS: tuple[tuple[Rule, dict[str, str], str], ...] = (
    (rules.unplaced, {"engine/fresh.py": ""}, "engine.fresh"),
    (rules.upward_imports, {"engine/tree.py": "from engine.engine import Engine"}, "tree.py:1"),
    (rules.upward_imports, {"engine/plan.py": "from engine import scheduler"}, "scheduler"),
    (rules.upward_imports, {"engine/plan.py": "from . import scheduler"}, "scheduler"),
    (rules.upward_imports, {"engine/plan.py": "from .scheduler import x"}, "scheduler"),
    (
        rules.upward_imports,
        {"engine/spec.py": "def f():\n    import engine.decoder"},
        "spec.py:2",
    ),
    (
        rules.circles,
        {"engine/stop.py": "import engine.stream", "engine/stream.py": "import engine.stop"},
        "engine.stop",
    ),
    (
        rules.circles,
        {"server/a.py": "import server.b", "server/b.py": "from server import a"},
        "server.b",
    ),
    (rules.forbidden_imports, {"engine/tree.py": "import server.app"}, "front end"),
    (rules.forbidden_imports, {"engine/tree.py": "from pydantic import BaseModel"}, "web stack"),
    (
        rules.forbidden_imports,
        {"engine/x/y.py": "if True:\n    import starlette.routing"},
        "web stack",
    ),
    (
        rules.forbidden_imports,
        {"engine/drafters/a.py": "from engine.drafters.b import x"},
        "know each other",
    ),
    (
        rules.forbidden_imports,
        {"engine/drafters/a.py": "from engine.engine import Engine"},
        "who calls it",
    ),
    (rules.forbidden_imports, {"server/stream.py": "import server.routes.chat"}, "outermost"),
    (rules.forbidden_imports, {"server/prompt.py": "import torch"}, "device"),
    (rules.deep_imports, {"server/app.py": "from engine.kv_cache import KVCache"}, "kv_cache"),
    (rules.deep_imports, {"server/app.py": "import engine.hub"}, "engine.hub"),
    (rules.forbidden_imports, {"server/registry.py": "import server.routes.chat"}, "outermost"),
    (
        rules.scattered_imports,
        {
            "engine/nf4.py": "def f():\n    import bitsandbytes",
            "engine/quantize.py": "def f():\n    from bitsandbytes.functional import x",
        },
        "engine.nf4, engine.quantize",
    ),
    (rules.import_time_imports, {"engine/nf4.py": "import bitsandbytes as bnb"}, "nf4.py:1"),
    (rules.long_files, {"engine/spec.py": LONG_FILE}, "401 lines"),
    (rules.long_functions, {"server/app.py": LONG_FUNCTION}, "f has 61 lines"),
)


@pytest.mark.parametrize(("rule", "files", "message"), VIOLATIONS)
def test_a_violation_is_found(
    rule: Rule, files: dict[str, str], message: str, tmp_path: Path
) -> None:
    for name in ("engine/scheduler.py", "engine/drafters/b.py"):
        write(tmp_path, name, "")
    assert rule(tmp_path) == []
    for name, text in files.items():
        write(tmp_path, name, text)
    problems = rule(tmp_path)
    assert problems
    assert any(message in problem for problem in problems)


def test_the_app_factory_may_import_the_routes(tmp_path: Path) -> None:
    write(tmp_path, "server/routes/chat.py", "")
    write(tmp_path, "server/app.py", "from server.routes import chat")
    assert rules.forbidden_imports(tmp_path) == []


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
