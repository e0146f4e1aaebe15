"""The rules of the house, as tables, and the checker that reads imports with `ast`.

Used by test_architecture.py. A new module of the engine gets a place in `ENGINE_LAYERS`; nothing
else is registered by hand.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

# Lowest first. A module imports from layers below its own, or from its own; never in a circle.
ENGINE_LAYERS: tuple[tuple[str, ...], ...] = (
    # leaves
    ("engine", "engine.errors", "engine.layout", "engine.spec", "engine.noise", "engine.tree"),
    ("engine.messages", "engine.malloc", "engine.progress", "engine.workers"),
    ("engine.token_ranks",),
    # checkpoints and their formats
    ("engine.checkpoint", "engine.hub", "engine.config_only", "engine.tokenizer", "engine.family"),
    ("engine.nf4", "engine.int4", "engine.mxfp4", "engine.disk", "engine.pack", "engine.cache"),
    ("engine.weights", "engine.outline", "engine.mapping", "engine.sources", "engine.quantize"),
    # the stream
    ("engine.link", "engine.pace", "engine.pinned", "engine.slots"),
    ("engine.host_link", "engine.cuda_link", "engine.stream"),
    # the model
    ("engine.page_store", "engine.prefix_index", "engine.kv_cache", "engine.rope"),
    ("engine.segment", "engine.padded", "engine.attention", "engine.experts"),
    ("engine.decoder", "engine.resident", "engine.substitutes"),
    # what fits
    ("engine.timing", "engine.pass_times", "engine.footprint"),
    ("engine.plan", "engine.machine"),
    ("engine.forecast", "engine.assumed", "engine.changes"),
    # sequences, their tokens and text
    ("engine.blocks", "engine.truncate", "engine.warp"),
    ("engine.sampling", "engine.verify", "engine.detokenize", "engine.stop"),
    ("engine.grammar", "engine.check_grammar", "engine.closing", "engine.constraint"),
    ("engine.sequence",),
    # the parts of a step
    ("engine.lookup", "engine.suffixes", "engine.calibration"),
    ("engine.growth", "engine.policy"),
    ("engine.forcing",),
    ("engine.scheduler", "engine.passes"),
    ("engine.ahead_stream", "engine.cuda_graphs", "engine.logits", "engine.scoring"),
    ("engine.audit",),
    ("engine.draft_cache", "engine.draft_model", "engine.drafters", "engine.drafter"),
    ("engine.drafting", "engine.drafters.*"),
    ("engine.target", "engine.choice", "engine.probe", "engine.preview", "engine.load"),
    ("engine.engine",),
    # the process, and the front end's view of it
    ("engine.pipe", "engine.watchdog", "engine.process"),
    ("engine.admission", "engine.child", "engine.token_stream", "engine.client"),
)

# (who, what it must not import, because)
FORBIDDEN: tuple[tuple[str, str, str], ...] = (
    ("engine*", "server*", "the engine knows nothing of the front end"),
    ("engine*", "fastapi*", "the engine needs nothing of the web stack"),
    ("engine*", "starlette*", "the engine needs nothing of the web stack"),
    ("engine*", "uvicorn*", "the engine needs nothing of the web stack"),
    ("engine*", "pydantic*", "the engine needs nothing of the web stack"),
    ("engine*", "sse_starlette*", "the engine needs nothing of the web stack"),
    ("engine*", "httpx*", "the engine needs nothing of the web stack"),
    ("engine*", "openai*", "the engine needs nothing of the web stack"),
    ("engine.drafters.*", "engine.drafters*", "drafting methods do not know each other"),
    ("engine.drafters.*", "engine.engine", "a drafting method does not know who calls it"),
    ("server*", "torch*", "the front end never touches the device"),
    ("server.schemas*", "engine*", "schemas are the API's words only"),
    ("server.parsers*", "engine*", "parsers are pure"),
    ("server.parsers*", "fastapi*", "parsers are pure"),
    ("server.parsing*", "engine*", "parsers are pure"),
    ("server.parsing*", "fastapi*", "parsers are pure"),
    ("server.doors*", "fastapi*", "doors are pure"),
    ("server*", "server.routes*", "routes are the outermost layer"),
)
# (who, what it may import all the same)
EXCEPTIONS: tuple[tuple[str, str], ...] = (
    ("server.app", "server.routes*"),  # puts the parts together
    ("server.routes*", "server.routes*"),
)

# (who in the server, what it may know of the engine)
ENGINE_SURFACE: tuple[tuple[str, str], ...] = (
    ("server*", "engine"),
    ("server*", "engine.client"),
    ("server*", "engine.detokenize"),
    ("server*", "engine.errors"),
    ("server*", "engine.messages"),
    ("server*", "engine.spec"),
    ("server.structured", "engine.grammar"),  # syntaxes of grammars
    ("server.structured", "engine.check_grammar"),  # whether one compiles
    ("server.tokenizer", "engine.tokenizer"),  # both processes load the same one
    ("server.commands", "engine.hub"),  # `understudy pull`
    ("server.commands", "engine.cache"),  # `understudy prune`
    ("server.commands", "engine.pack"),
    ("server.commands", "engine.plan"),  # `understudy plan`
    ("server.commands", "engine.preview"),
    ("server.plan_table", "engine.*"),
    ("server.model_file", "engine.drafters"),  # the names of the methods
)

IN_ONE_FILE_ONLY = ("bitsandbytes", "llguidance")

MAX_FILE_LINES = 400
MAX_TEST_FILE_LINES = 500
MAX_FUNCTION_LINES = 60


@dataclass(frozen=True)
class Import:
    """One import found in a file, wherever in the file it stands."""

    importer: str  # dotted name of the module that imports
    imported: str
    where: str  # "engine/tree.py:8"


def modules(root: Path, package: str) -> dict[str, Path]:
    """Dotted name -> file, for every module below root/package."""
    found: dict[str, Path] = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(root: Path, package: str) -> list[Import]:
    """Every import in the package, nested and TYPE_CHECKING ones too."""
    known = modules(root, "engine") | modules(root, "server")
    return [
        Import(name, imported, f"{path.relative_to(root)}:{line}")
        for name, path in modules(root, package).items()
        for imported, line in _imported(path, name, known)
    ]


def _imported(path: Path, module: str, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*above, *([source] if source else [])])
            for alias in node.names:  # `from engine import tree` imports engine.tree
                inner = f"{source}.{alias.name}"
                yield (inner if inner in known else source), node.lineno


def layer_of(module: str) -> int | None:
    """The layer of an engine module; None if the table does not place it."""
    for rank, layer in enumerate(ENGINE_LAYERS):
        if module in layer:
            return rank
    for rank, layer in enumerate(ENGINE_LAYERS):
        if any(fnmatchcase(module, pattern) for pattern in layer):
            return rank
    return None


def unplaced(root: Path) -> list[str]:
    """Modules of the engine that `ENGINE_LAYERS` does not place."""
    return [
        f"{path.relative_to(root)}: give {name} a place in ENGINE_LAYERS (tests/architecture.py)"
        for name, path in modules(root, "engine").items()
        if layer_of(name) is None
    ]


def upward_imports(root: Path) -> list[str]:
    """Imports inside the engine that point to a layer above the importer's."""
    wrong = []
    for found in imports(root, "engine"):
        own, other = layer_of(found.importer), layer_of(found.imported)
        if own is not None and other is not None and other > own:
            wrong.append(f"{found.where}: {found.importer} imports {found.imported} from above")
    return wrong


def circles(root: Path) -> list[str]:
    """Modules of one package that import each other, directly or by way of others."""
    wrong = []
    for package in ("engine", "server"):
        edges: dict[str, set[str]] = {}
        for found in imports(root, package):
            if found.imported != found.importer:
                edges.setdefault(found.importer, set()).add(found.imported)
        for start in sorted(edges):
            reached: set[str] = set()
            waiting = list(edges[start])
            while waiting:
                module = waiting.pop()
                if module not in reached:
                    reached.add(module)
                    waiting += edges.get(module, ())
            if start in reached:
                wrong.append(f"{start} imports itself in a circle")
    return wrong


def forbidden_imports(root: Path) -> list[str]:
    """Imports that a line of `FORBIDDEN` rules out."""
    wrong = []
    for found in imports(root, "engine") + imports(root, "server"):
        for who, what, because in FORBIDDEN:
            if not (fnmatchcase(found.importer, who) and fnmatchcase(found.imported, what)):
                continue
            if not _listed(found, EXCEPTIONS):
                wrong.append(f"{found.where}: imports {found.imported}, but {because}")
    return wrong


def deep_imports(root: Path) -> list[str]:
    """Imports by the server of parts of the engine that are not its surface."""
    return [
        f"{found.where}: imports {found.imported}, which is not in ENGINE_SURFACE"
        for found in imports(root, "server")
        if found.imported.split(".")[0] == "engine" and not _listed(found, ENGINE_SURFACE)
    ]


def _listed(found: Import, table: tuple[tuple[str, str], ...]) -> bool:
    return any(fnmatchcase(found.importer, a) and fnmatchcase(found.imported, b) for a, b in table)


def scattered_imports(root: Path) -> list[str]:
    """Packages of `IN_ONE_FILE_ONLY` that more than one file imports."""
    wrong = []
    for package in IN_ONE_FILE_ONLY:
        found = imports(root, "engine") + imports(root, "server")
        files = sorted({f.importer for f in found if f.imported.split(".")[0] == package})
        if len(files) > 1:
            wrong.append(f"{package} is imported in {', '.join(files)}; one file is enough")
    return wrong


def import_time_imports(root: Path) -> list[str]:
    """Packages of `IN_ONE_FILE_ONLY` that are imported before their first use."""
    wrong = []
    for package in ("engine", "server"):
        for path in modules(root, package).values():
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                if any(name.split(".")[0] in IN_ONE_FILE_ONLY for name in names):
                    where = f"{path.relative_to(root)}:{node.lineno}"
                    wrong.append(f"{where}: import {names[0]} inside the function that uses it")
    return wrong


def long_files(root: Path) -> list[str]:
    """Source files over their bound of lines."""
    wrong = []
    for folder in ("engine", "server", "tests", "configs", "benchmarks"):
        bound = MAX_TEST_FILE_LINES if folder == "tests" else MAX_FILE_LINES
        for path in sorted((root / folder).rglob("*.py")):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > bound:
                wrong.append(f"{path.relative_to(root)}: {lines} lines, at most {bound}")
    return wrong


def long_functions(root: Path) -> list[str]:
    """Functions over `MAX_FUNCTION_LINES`, from `def` to their last line."""
    wrong = []
    for folder in ("engine", "server", "tests", "configs", "benchmarks"):
        for path in sorted((root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or node.lineno) - node.lineno + 1
                    if lines > MAX_FUNCTION_LINES:
                        where = f"{path.relative_to(root)}:{node.lineno}"
                        wrong.append(f"{where}: {node.name} has {lines} lines")
    return wrong
