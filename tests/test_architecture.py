"""Imports go downward, and every foreign library that is heavy or awkward has one owner."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import onnxshap

ROOT = Path(onnxshap.__file__).parent
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"blas", "clock", "errors", "progress", "quiet", "streams"}),
    frozenset({"arguments", "core"}),
    frozenset({"blocks", "data", "estimators", "graph", "payoffs", "taps"}),
    frozenset({"backend"}),
    frozenset({"labels"}),
    frozenset({"shapes"}),
    frozenset({"codes", "cost", "groups", "rules"}),
    frozenset({"tracing"}),
    frozenset({"masking", "walk"}),
    frozenset({"calibrate", "endings", "rewrite", "slices"}),
    frozenset({"game", "measure", "repair", "verify"}),
    frozenset({"bases", "distill", "factors", "methods"}),
    frozenset({"plan"}),
    frozenset({"scoring"}),
    frozenset({"reference", "scores"}),
    frozenset({"evaluation"}),
    frozenset({"opening", "valuing"}),
    frozenset({"api", "comparing", "pivoting", "unification"}),
    frozenset({"sweeping"}),
    frozenset({"report"}),
    frozenset({"cli"}),
    frozenset({"__init__", "__main__"}),
)
"""A module imports from lower floors only; a package (graph, rules) is one module."""
OWNERS = {
    "onnxruntime": {"backend"},
    "onnx_graphsurgeon": {"graph"},
    "click": {"cli"},
    "rich": {"cli", "report"},
    "PIL": {"data"},
    "matplotlib": {"report"},
    "threadpoolctl": {"blas"},
    "torch": {"distill"},
    "distributed": {"scoring"},
}
"""Foreign library -> the modules that may import it, wherever in the file."""
FILES = sorted(ROOT.rglob("*.py"))
TORCH = {path for path in FILES if path.parent == ROOT / "distill" / "ops"}
TORCH |= {
    ROOT / "distill" / f"{name}.py"
    for name in ("checking", "feeds", "losses", "mixing", "objective", "schedule", "teachers", "torchgraph", "tuner")
}
"""What may import torch as soon as it is imported itself."""


def module(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def dotted(path: Path) -> str:
    """Return the name that a file is imported by."""
    return ".".join(("onnxshap", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of everything imported; `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they go"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements that run when a module is imported and not in type checking alone."""
    pending: list[ast.stmt] = list(tree.body)
    for statement in pending:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With | ast.ClassDef):
            if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
                continue
            pending.extend(child for child in ast.walk(statement) if isinstance(child, ast.Import | ast.ImportFrom))


def floor_of(name: str) -> int:
    found = [k for k, names in enumerate(FLOORS) if name in names]
    assert len(found) == 1, f"onnxshap/{name}.py is on {len(found)} floors: put it on one in tests/test_architecture.py"
    return found[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path: Path) -> None:
    own = module(path)
    modules = {module(p) for p in FILES} - {"__init__"}
    for name in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "onnxshap" and parts[1] in modules and parts[1] != own:
            assert floor_of(parts[1]) < floor_of(own), f"{path.name} imports {name}, which is not below it"


def test_every_floor_is_inhabited() -> None:
    assert {module(p) for p in FILES} == frozenset().union(*FLOORS)


def test_the_readme_tells_what_every_module_is() -> None:
    text = Path(__file__).parents[1].joinpath("README.md").read_text()
    table = text.split("| in `onnxshap/` | |")[1]
    told = re.findall(r"`(\w+/?)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    modules = {f"{name}/" if (ROOT / name).is_dir() else name for name in frozenset().union(*FLOORS)}
    assert sorted(told) == sorted(modules - {"__init__", "__main__"})


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_foreign_libraries_have_owners(path: Path) -> None:
    for name in imports(ast.parse(path.read_text())):
        library = name.split(".")[0]
        assert module(path) in OWNERS.get(library, {module(path)}), f"{library} belongs to {OWNERS[library]}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_imports_torch_before_it_is_asked_to(path: Path) -> None:
    if path in TORCH:
        return
    asked = {"torch", *(dotted(one) for one in TORCH)}
    for statement in at_import(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            assert not any(name == one or name.startswith(f"{one}.") for name in imports(statement) for one in asked)


def test_no_file_imports_itself_by_way_of_others() -> None:
    by_name = {dotted(path): path for path in FILES}
    read: dict[str, set[str]] = {}
    for name, path in by_name.items():
        found = imports(ast.parse(path.read_text()))
        read[name] = {one for f in found if (one := f if f in by_name else f.rpartition(".")[0]) in by_name}
        read[name] -= {"onnxshap"}  # for its version, and for modules that are files of their own
    list(TopologicalSorter(read).static_order())  # a CycleError names the files
