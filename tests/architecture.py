"""The rules on the structure of the source code, as tables, and the functions that check them.

test_architecture.py runs them. A new package needs a place in `PACKAGES`; nothing else is
registered by hand.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

# The packages, outermost first. A package imports only packages further down in this list; modules
# of one package may import each other, but not in a circle. A folder that is not listed belongs to
# the package that contains it.
PACKAGES: tuple[str, ...] = (
    "tests",
    "benchmarks",
    "configs",
    "server.cli",
    "server.http",
    "server.doors",
    "server.chat",
    "server.models",
    "server.text",
    "server.conversation",
    "server.traces",
    "server.config",
    "server.logs",
    "server.metrics",
    "server.schemas",
    "server",
    "cluster",
    "engine.process",
    "engine.runtime",
    "engine.planning",
    "engine.drafting",
    "engine.model",
    "engine.sequences",
    "engine.text",
    "engine.parsing",
    "engine.kv",
    "engine.recurrent",
    "engine.streaming",
    "engine.sampling",
    "engine.weights",
    "engine.compiled",
    "engine.triton_kernels",
    "engine",
)

# (importer, what it must not import, reason)
FORBIDDEN: tuple[tuple[str, str, str], ...] = (
    ("engine*", "server*", "the engine does not use the front end"),
    ("engine*", "fastapi*", "the engine needs nothing of the web stack"),
    ("engine*", "starlette*", "the engine needs nothing of the web stack"),
    ("engine*", "uvicorn*", "the engine needs nothing of the web stack"),
    ("engine*", "pydantic*", "the engine needs nothing of the web stack"),
    ("engine*", "sse_starlette*", "the engine needs nothing of the web stack"),
    ("engine*", "httpx*", "the engine needs nothing of the web stack"),
    ("engine*", "openai*", "the engine needs nothing of the web stack"),
    ("engine.drafting.methods.*", "engine.drafting.methods.*", "methods are independent"),
    ("engine.parsing*", "engine.[!p]*", "parsers are pure"),
    ("server*", "torch*", "the front end never touches the device"),
    ("cluster*", "server*", "the front end uses the cluster"),
    ("cluster*", "torch*", "the front end never touches the device"),
    ("server*", "ray*", "Ray belongs in cluster/"),
    ("cluster*", "fastapi*", "HTTP belongs in server/http"),
    ("server.schemas*", "engine*", "schemas describe only the API"),
    ("server.doors*", "fastapi*", "doors are pure"),
    ("server.chat*", "fastapi*", "HTTP belongs in server/http"),
    ("server.models*", "fastapi*", "HTTP belongs in server/http"),
    ("server.metrics*", "fastapi*", "HTTP belongs in server/http"),
    ("server.text*", "fastapi*", "HTTP belongs in server/http"),
)

# (module of the server, module of the engine that it may import)
ENGINE_SURFACE: tuple[tuple[str, str], ...] = (
    ("server*", "engine"),
    ("server*", "engine.process.client"),
    ("server*", "engine.process.interface"),
    ("server*", "engine.process.callbacks"),
    ("server*", "engine.text.detokenize"),
    ("server*", "engine.errors"),
    ("server*", "engine.log_lines"),
    ("server*", "engine.files"),  # reading small files within bounds
    ("server*", "engine.messages"),
    ("server*", "engine.kv_disk_stats"),
    ("server*", "engine.pass_trace"),
    ("server*", "engine.moves"),
    ("server*", "engine.parsing*"),  # the parsers of answers
    ("server*", "engine.spec"),
    ("server.chat.*grammar*", "engine.sampling.grammar.grammar"),  # syntaxes of grammars
    ("server.config.model_file", "engine.text.template"),  # whether one is a template
    ("server.text.tokenizer", "engine.sampling.grammar.check"),  # checks that a grammar compiles
    ("server.chat.fitting", "engine.process.admission"),  # the length that the engine takes
    ("server.text.*", "engine.process.signals"),  # the signals of the group of processes
    ("server.text.tokenizer", "engine.text.tokenizer"),  # both processes load the same one
    ("server.cli.commands", "engine.cache_files"),  # whether the cache can be used
    ("server.cli.serve", "engine.cache_files"),
    ("server.cli.commands", "engine.weights.hub"),  # `understudy pull`
    ("server.cli.commands", "engine.streaming.packed*"),  # `understudy prune`
    ("server.cli.commands", "engine.planning.preview"),  # `understudy plan`
    ("server.cli.commands", "engine.planning.refusal"),
    ("server.cli.plan_table", "engine.*"),
    ("server.cli.doctor", "engine.planning.checkup"),
    ("server.models.contents", "engine.weights.contents"),  # the bytes that peers compare
    ("server.models.plan_worker", "engine.planning.*"),  # `POST /v1/plan`
    ("server.config.model_file", "engine.drafting.method*"),  # names and facts of the methods
    ("server.config.registry", "engine.drafting.method"),  # the settings of the chosen method
)

# (module, name of a drafting method that it may write as a string, reason)
METHODS_NAMED: tuple[tuple[str, str, str], ...] = (
    ("engine.messages", "none", "the value of a request without a draft"),
    ("engine.spec", "none", "a value of `stream.coding`"),
    ("server.config.model_file", "none", "a value of `stream.coding`"),
    ("engine.messages", "prediction", "a source of tokens that answers name"),
    ("engine.process.admission", "prediction", "a field of a request"),
    ("server.chat.received", "prediction", "a field of a request"),
    ("server.schemas.*", "none", "a value of `tool_choice` and `reasoning_effort`"),
    ("server.doors.messages.request", "none", "a value of `tool_choice`"),
    ("server.chat.tools", "none", "a value of `tool_choice`"),
    ("engine.parsing.selection", "none", "a value of `parsers.reasoning`"),
    ("server.config.registry", "none", "an empty list in a message"),
    ("engine.weights.gguf_source", "none", "an empty list in a message"),
    ("engine.weights.gguf_rope", "none", "a type of rope scaling"),
    ("server.traces.exporting", "none", "a value of OTEL_TRACES_EXPORTER"),
)

# (file, attribute, reason why it may be set on another object)
SET_FROM_OUTSIDE: tuple[tuple[str, str, str], ...] = (
    ("engine/log_lines.py", "propagate", "loggers of libraries"),
    ("server/http/certificate.py", "*", "contexts of TLS, which have no constructor for this"),
    ("server/cli/remote.py", "verify_flags", "a context of TLS"),
    ("server/cli/serve.py", "ssl", "uvicorn's configuration, which reads a certificate only once"),
    ("engine/model/library.py", "*", "the one file that changes transformers' modules"),
    (
        "engine/model/recurrent.py",
        "name",
        "functions in the modules of transformers that have recurrent layers",
    ),
    ("engine/model/recurrent.py", "forward", "modules of transformers with recurrent layers"),
    (
        "engine/weights/formats/*.py",
        "weight",
        "a module of torch or bitsandbytes that the file makes",
    ),
    ("engine/weights/formats/*.py", "bias", "a module of torch that the file makes"),
    ("engine/planning/probe.py", "num_hidden_layers", "a copy of transformers' configuration"),
    ("engine/planning/probe.py", "layer_types", "a copy of transformers' configuration"),
    ("engine/compiled/compiler.py", "CACHE_DIR", "a setting of numba, for one compilation"),
    ("engine/compiled/compiler.py", "__qualname__", "numba names files in its cache by it"),
    ("engine/malloc.py", "argtypes", "ctypes declares types like this"),
    ("engine/malloc.py", "restype", "ctypes declares types like this"),
    (
        "server/http/protocol.py",
        "disconnected",
        "an attribute of uvicorn's request, set as its protocol sets it",
    ),
)

# Conditions that `engine.streaming.device.Device` decides, and the modules that may use them too.
DEVICE_QUESTION = re.compile(r"\bdevice\.type\b|\bis_cuda\b|\btorch\.cuda\.")
MAY_ASK_FOR_THE_DEVICE: tuple[tuple[str, str], ...] = (
    ("engine.streaming.device", "this is the device"),
    ("engine.streaming.*_link", "this is the file of a device"),
    ("engine.streaming.cuda_*", "this is a part of the CUDA device"),
    ("engine.weights.formats.*", "kernels are other functions on a CPU"),
    ("engine.weights.packing", "temporaries must fit the cache of a CPU"),
    ("engine.compiled.*", "code is compiled for a CPU"),
    ("engine.transfer", "only copies to and from a CUDA device have to be launched"),
    ("engine.triton_kernels.*", "code is compiled for a GPU"),
    ("engine.model.ordered", "attention in the order of positions is code for a CPU or a GPU"),
    ("engine.model.elementwise", "only a CPU's threads share an operation by its elements"),
    ("engine.sampling.*", "few numbers are computed faster by numpy on a CPU"),
    ("engine.drafting.model.substitutes", "a kernel repacks its weights on a CPU"),
)

OWN = ("engine", "cluster", "server")  # what a wheel has
TOP_LEVEL = (*OWN, "tests", "configs", "benchmarks")
IN_ONE_FILE_ONLY = ("bitsandbytes", "llguidance", "llvmlite", "numba")
# Only CUDA builds of torch contain Triton. Files with these names import it, and functions import
# those files.
TRITON_FILES = "engine.triton_kernels.*_kernel"

MAX_FILE_LINES = 400
MAX_TEST_FILE_LINES = 500
MAX_FUNCTION_LINES = 60


@dataclass(frozen=True)
class Import:
    """One import in a file, at any place of the file."""

    importer: str  # dotted name of the module that imports
    imported: str
    where: str  # "engine/tree.py:8"


def modules(root: Path, package: str) -> dict[str, Path]:
    """Return dotted name -> file for every module below root/package."""
    found: dict[str, Path] = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def own_modules(root: Path) -> dict[str, Path]:
    """Return dotted name -> file for every module that a wheel has."""
    return {name: path for top in OWN for name, path in modules(root, top).items()}


def all_imports(root: Path) -> list[Import]:
    """Return every import of our own code."""
    return [found for top in TOP_LEVEL for found in imports(root, top)]


def own_imports(root: Path) -> list[Import]:
    """Return every import of the code that a wheel has."""
    return [found for top in OWN for found in imports(root, top)]


def imports(root: Path, package: str) -> list[Import]:
    """Return every import of a package, with nested and TYPE_CHECKING imports."""
    known = {name: path for top in TOP_LEVEL for name, path in modules(root, top).items()}
    return [
        Import(name, imported, f"{path.relative_to(root)}:{line}")
        for name, path in modules(root, package).items()
        for imported, line in _imported(path, name, known)
    ]


def _imported(path: Path, module: str, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in _import_statements(path.read_text(encoding="utf-8")):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        else:
            source = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*above, *([source] if source else [])])
            for alias in node.names:  # `from engine import tree` imports engine.tree
                inner = f"{source}.{alias.name}"
                yield (inner if inner in known else source), node.lineno


@cache
def _import_statements(text: str) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """Return the imports of a file, which is read for many rules and parsed once."""
    nodes = ast.walk(ast.parse(text))
    return tuple(node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))


def package_of(module: str) -> str | None:
    """Return the innermost of `PACKAGES` that contains a module, or None."""
    holders = [p for p in PACKAGES if module == p or module.startswith(f"{p}.")]
    return max(holders, key=len, default=None)


def unplaced(root: Path) -> list[str]:
    """Return the folders with code in the packages of `OWN` that `PACKAGES` does not name."""
    return [
        f"{folder.relative_to(root)}: give it a place in PACKAGES (tests/architecture.py)"
        for top in OWN
        for folder in sorted({path.parent for path in (root / top).glob("*/*.py")})
        if f"{top}.{folder.name}" not in PACKAGES
    ]


def upward_imports(root: Path) -> list[str]:
    """Return imports of a package that is above the importer's package."""
    wrong = []
    for found in all_imports(root):
        own, other = package_of(found.importer), package_of(found.imported)
        if own is None or other is None:
            continue
        if PACKAGES.index(other) < PACKAGES.index(own):
            wrong.append(f"{found.where}: {found.importer} imports {found.imported} from above")
    return wrong


def circles(root: Path) -> list[str]:
    """Return modules that import each other, directly or through other modules."""
    wrong = []
    for package in TOP_LEVEL:
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
    """Return imports that a line of `FORBIDDEN` forbids."""
    wrong = []
    for found in own_imports(root):
        for who, what, because in FORBIDDEN:
            if fnmatchcase(found.importer, who) and fnmatchcase(found.imported, what):
                wrong.append(f"{found.where}: imports {found.imported}, but {because}")
    return wrong


def deep_imports(root: Path) -> list[str]:
    """Return imports of the engine by the server that are not in `ENGINE_SURFACE`."""
    return [
        f"{found.where}: imports {found.imported}, which is not in ENGINE_SURFACE"
        for found in imports(root, "server")
        if found.imported.split(".")[0] == "engine" and not _listed(found, ENGINE_SURFACE)
    ]


def _listed(found: Import, table: tuple[tuple[str, str], ...]) -> bool:
    return any(fnmatchcase(found.importer, a) and fnmatchcase(found.imported, b) for a, b in table)


def scattered_imports(root: Path) -> list[str]:
    """Return packages of `IN_ONE_FILE_ONLY` that more than one file imports."""
    wrong = []
    for package in IN_ONE_FILE_ONLY:
        found = own_imports(root)
        files = sorted({f.importer for f in found if f.imported.split(".")[0] == package})
        if len(files) > 1:
            wrong.append(f"{package} is imported in {', '.join(files)}; one file is enough")
    return wrong


def import_time_imports(root: Path) -> list[str]:
    """Return packages of `IN_ONE_FILE_ONLY` that are imported before their first use."""
    wrong = []
    for package in OWN:
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


def triton_imports(root: Path) -> list[str]:
    """Return imports of Triton and of files with kernels that fail where there is no Triton."""
    wrong = []
    for package in OWN:
        known = modules(root, package)
        for name, path in known.items():
            if fnmatchcase(name, TRITON_FILES):
                continue
            at_import = {node.lineno for node in ast.parse(path.read_text("utf-8")).body}
            for imported, line in _imported(path, name, known):
                is_triton = imported.split(".")[0] == "triton"
                where = f"{path.relative_to(root)}:{line}"
                if is_triton and package_of(name) != "engine.triton_kernels":
                    wrong.append(f"{where}: only engine.triton_kernels imports Triton")
                elif line in at_import and (is_triton or fnmatchcase(imported, TRITON_FILES)):
                    wrong.append(f"{where}: import {imported} inside the function that uses it")
    return wrong


def named_methods(root: Path) -> list[str]:
    """Return places that name a drafting method outside its file: as a string, or by import."""
    folder = "engine.drafting.methods"
    names = {path.stem for path in (root / folder.replace(".", "/")).glob("[!_]*.py")}
    own = {f"{folder}.{name}" for name in names}
    wrong = [
        f"{found.where}: imports {found.imported}; its facts are in engine.drafting.method.facts_of"
        for found in own_imports(root)
        if found.imported in own and found.importer != found.imported
    ]
    for module, path in own_modules(root).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Constant) and node.value in names):
                continue
            excused = any(
                fnmatchcase(module, who) and name == node.value for who, name, _ in METHODS_NAMED
            )
            if module != f"{folder}.{node.value}" and not excused:
                wrong.append(f"{path.relative_to(root)}:{node.lineno}: names {node.value!r}")
    return wrong


def foreign_attributes(root: Path) -> list[str]:
    """Return attributes that are set on other objects after their construction.

    `ast` has names, not types. Allowed are attributes of `self` and `cls`, of objects that a
    function makes of them (a copy, a new instance), and fields of dataclasses of the same file,
    because a record belongs to the file that declares it. `SET_FROM_OUTSIDE` lists all others.
    """
    wrong = []
    for package in OWN:
        for path in modules(root, package).values():
            file, tree = str(path.relative_to(root)), ast.parse(path.read_text(encoding="utf-8"))
            fields = _record_fields(tree)
            for name, line in sorted(_attributes_set(tree, frozenset()), key=lambda set_: set_[1]):
                listed = any(
                    fnmatchcase(file, where) and fnmatchcase(name, what)
                    for where, what, _ in SET_FROM_OUTSIDE
                )
                if name not in fields and not listed:
                    wrong.append(f"{file}:{line}: {name} is set on another object")
    return wrong


def _record_fields(tree: ast.Module) -> set[str]:
    """Return the names of the fields of a file's dataclasses."""
    return {
        statement.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


def _attributes_set(node: ast.AST, own: frozenset[str]) -> Iterator[tuple[str, int]]:
    """Yield name and line of attributes that are set or deleted on objects not named in `own`."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        own |= {"self", "cls"} | {
            target.id
            for made in ast.walk(node)
            if isinstance(made, ast.Assign) and _is_made_of_self(made.value)
            for target in made.targets
            if isinstance(target, ast.Name)
        }
    target: ast.expr | None = None
    if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
        target, name = node.value, node.attr
    elif isinstance(node, ast.Call) and re.search(r"\b(set|del)attr$", ast.unparse(node.func)):
        target, name = node.args[0], ast.unparse(node.args[1]).strip("'")
    if target is not None and not (isinstance(target, ast.Name) and target.id in own):
        yield name, target.lineno
    for child in ast.iter_child_nodes(node):
        yield from _attributes_set(child, own)


def _is_made_of_self(value: ast.expr) -> bool:
    """Return whether this is `cls(...)` or a call of `self` or `cls` alone, as `copy(self)`."""
    if not isinstance(value, ast.Call):
        return False
    return ast.unparse(value.func) == "cls" or [ast.unparse(a) for a in value.args] in (
        ["self"],
        ["cls"],
    )


def device_questions(root: Path) -> list[str]:
    """Return lines of the engine that depend on the device outside `MAY_ASK_FOR_THE_DEVICE`."""
    return [
        f"{path.relative_to(root)}:{number}: let engine.streaming.device.Device answer that"
        for name, path in modules(root, "engine").items()
        if not any(fnmatchcase(name, who) for who, _ in MAY_ASK_FOR_THE_DEVICE)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if DEVICE_QUESTION.search(line)
    ]


def long_files(root: Path) -> list[str]:
    """Return source files with too many lines."""
    wrong = []
    for folder in TOP_LEVEL:
        bound = MAX_TEST_FILE_LINES if folder == "tests" else MAX_FILE_LINES
        for path in sorted((root / folder).rglob("*.py")):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > bound:
                wrong.append(f"{path.relative_to(root)}: {lines} lines, at most {bound}")
    return wrong


def long_functions(root: Path) -> list[str]:
    """Return functions longer than `MAX_FUNCTION_LINES`, from `def` to their last line."""
    wrong = []
    for folder in TOP_LEVEL:
        for path in sorted((root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or node.lineno) - node.lineno + 1
                    if lines > MAX_FUNCTION_LINES:
                        where = f"{path.relative_to(root)}:{node.lineno}"
                        wrong.append(f"{where}: {node.name} has {lines} lines")
    return wrong
