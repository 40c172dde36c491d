"""Imports point one way, and the core does no I/O.

Each module of the core stands in one layer of the table and may import only from layers below it,
not even from its own. What is outside the core may use all of the core, and of the rest only what
the table grants. The package's `__init__` only re-exports.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "jobqueue_broadcast"

# Lowest first.
LAYERS = {
    "errors": ["errors"],
    "events": ["events"],
    "vocabulary": [
        "topics", "client_format", "commands", "control", "positions", "clock", "stats",
    ],
    "declared events": ["event_types"],
    "rules": ["predicates", "handshake", "rate_limit"],
    "contracts": ["frames", "auth", "backplane"],
    "state": [
        "job_states", "history", "outbox", "undelivered", "revocations",
    ],
    "pictures of the state": ["full_state", "catch_up"],
    "delivery": ["delivery"],
    "indexes": ["_routing", "subscriptions", "expiries", "claims"],
    "peers": ["monitors", "clients"],
    "intake": ["intake"],
    "broadcaster": ["broadcaster"],
    "questions and answers": ["asks", "answers"],
    "what a command may need first": ["job_access", "submissions"],
    "commands": ["monitor_commands", "client_commands"],
    "conversation": ["session"],
}  # fmt: skip

# Outside the core: module or folder -> what it may import of the others outside the core. A folder
# ending in ".*" stands for each of its children apart: siblings never import each other.
OUTSIDE: dict[str, list[str]] = {
    "adapters.*": [],
    "backplane.*": [],
    "client": [],
    "metrics": [],
    "signed_tokens": [],
    "testing": [],
    "__main__": ["adapters.*", "backplane.*", "client", "metrics", "signed_tokens"],
}

# No module of the core may import these.
IO_MODULES = {
    "anyio", "asyncio", "concurrent", "http", "multiprocessing", "redis", "select", "selectors",
    "signal", "socket", "socketserver", "ssl", "subprocess", "threading", "trio", "uvloop",
    "websockets",
}  # fmt: skip

# `threading.get_ident` tells which thread this is, and does no I/O: with it `broadcast` refuses to
# be called beside the event loop instead of breaking the order of events.
ALLOWED = {("broadcaster", "threading"): {"get_ident"}}

# The core reads no clock but the one it was given: only the module that defines clocks may.
CLOCK_MODULES = {"time", "datetime"}
CLOCK_OWNER = "clock"

# Each optional dependency is imported by at most one module.
OPTIONAL = {"jwt", "prometheus_client", "redis", "uvloop"}

# `import jobqueue_broadcast` loads none of these, directly or by way of others.
NEVER_LOADED = OPTIONAL | {
    "anyio", "asyncio", "select", "selectors", "socket", "ssl", "trio", "websockets",
}  # fmt: skip


class Import(NamedTuple):
    """One import, for example: topics.py, line 7, imports jobqueue_broadcast.events."""

    module: str  # the importing module, relative to the package; "" is the package itself
    line: int
    target: str  # absolute

    def __str__(self) -> str:
        return f"{FILES[self.module].relative_to(FOLDER)}, line {self.line}, imports {self.target}"


def package_folder() -> Path:
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def module_name(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FOLDER = package_folder()
FILES = {module_name(path, FOLDER): path for path in sorted(FOLDER.rglob("*.py"))}
RANK = {module: rank for rank, layer in enumerate(LAYERS.values()) for module in layer}
LAYER = {module: name for name, layer in LAYERS.items() for module in layer}


@cache
def nodes_of(module: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))))


def imports_of(module: str) -> Iterator[Import]:
    """All imports, also inside functions and under TYPE_CHECKING: a cycle of types is a cycle."""
    path = FILES[module]
    for node in nodes_of(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, module, is_package=path.name == "__init__.py")
            for alias in node.names:
                name = f"{base}.{alias.name}"
                # `from package import module` imports that module, `from module import name` not.
                is_module = name.removeprefix(f"{PACKAGE}.") in FILES
                yield Import(module, node.lineno, name if is_module else base)


def absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """The full name of what `from … import` names, dots resolved."""
    if node.level == 0:
        return node.module or ""
    parts = [PACKAGE, *module.split(".")] if module else [PACKAGE]
    up = node.level - is_package
    base = parts[: len(parts) - up] if up else parts
    return ".".join([*base, node.module] if node.module else base)


def uses_of(module: str, imported: str) -> set[str]:
    """What a module uses of one it imports: names, or "?" where that is not plain to see."""
    nodes = nodes_of(module)
    attributes = [
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == imported
    ]
    mentions = [node for node in nodes if isinstance(node, ast.Name) and node.id == imported]
    parts = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == imported]
    plainly = attributes and len(attributes) == len(mentions) and not parts
    return set(attributes) if plainly else {"?"}


def inside(target: str) -> str | None:
    """The target relative to the package; None when it belongs to others."""
    if target == PACKAGE:
        return ""
    return target.removeprefix(f"{PACKAGE}.") if target.startswith(f"{PACKAGE}.") else None


def top(target: str) -> str:
    return target.partition(".")[0]


def unit_of(module: str) -> tuple[str, str] | None:
    """The entry of OUTSIDE that a module belongs to, and the unit that may import itself."""
    if module in RANK:
        return None
    for entry in OUTSIDE:
        base = entry.removesuffix(".*")
        if entry.endswith(".*") and module.startswith(f"{base}."):
            return entry, ".".join(module.split(".")[: base.count(".") + 2])
        if module == base or module.startswith(f"{base}."):
            return entry, base
    return None


def test_every_module_is_in_the_table() -> None:
    strangers = [m for m in FILES if m and m not in RANK and unit_of(m) is None]
    assert not strangers, f"say in LAYERS or OUTSIDE where these belong: {strangers}"
    missing = [m for m in RANK if m not in FILES]
    assert not missing, f"LAYERS names modules that do not exist: {missing}"


@pytest.mark.parametrize("module", [m for m in FILES if m in RANK])
def test_core_imports_only_from_lower_layers(module: str) -> None:
    problems = []
    for found in imports_of(module):
        target = inside(found.target)
        if target is None:
            continue
        if target not in RANK:
            problems.append(f"{found}: that is not of the core")
        elif RANK[target] >= RANK[module]:
            problems.append(
                f"{found}: layer {LAYER[target]!r} is not below layer {LAYER[module]!r} ({module})"
            )
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("module", [m for m in FILES if m in RANK])
def test_core_does_no_io(module: str) -> None:
    problems = [
        f"{found}: the core does no I/O"
        for found in imports_of(module)
        if top(found.target) in IO_MODULES
        and uses_of(module, found.target) - ALLOWED.get((module, found.target), set())
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("module", [m for m in FILES if m in RANK and m != CLOCK_OWNER])
def test_core_reads_no_clock_but_the_one_given(module: str) -> None:
    problems = [
        f"{found}: only {CLOCK_OWNER} may read a clock"
        for found in imports_of(module)
        if top(found.target) in CLOCK_MODULES
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("module", [m for m in FILES if unit_of(m) is not None])
def test_outside_the_core_units_do_not_import_each_other(module: str) -> None:
    own = unit_of(module)
    assert own is not None
    problems = []
    for found in imports_of(module):
        target = inside(found.target)
        other = unit_of(target) if target else None
        if other is not None and other[1] != own[1] and other[0] not in OUTSIDE[own[0]]:
            problems.append(f"{found}: {own[1]} may not import {other[1]}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("package", sorted(OPTIONAL))
def test_an_optional_dependency_is_imported_by_one_module(package: str) -> None:
    found = [imp for module in FILES for imp in imports_of(module) if top(imp.target) == package]
    assert len({imp.module for imp in found}) <= 1, "\n".join(map(str, found))


def test_importing_the_package_loads_no_io_library() -> None:
    """Nor an optional dependency. (msgspec and typing-extensions load none of these themselves.)"""
    # Isolated (-I), but with this very package, installed or not.
    program = (
        f"import sys; sys.path.insert(0, {str(FOLDER.parent)!r}); "
        f"import {PACKAGE}; print(*sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True
    )
    loaded = {top(name) for name in result.stdout.split()}
    assert not loaded & NEVER_LOADED, f"import {PACKAGE} loads {sorted(loaded & NEVER_LOADED)}"
