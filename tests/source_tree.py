"""The project's own modules, read as syntax trees: what the structural tests look at."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("imprint", "data_prep", "flows", "demo")


@cache
def load_modules() -> dict[str, ast.Module]:
    """Dotted name => syntax tree of every module; a package goes by its own name."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {name_module(path): ast.parse(path.read_text(), str(path)) for path in paths}


def name_module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def find_path(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def find_imports(module: str) -> frozenset[str]:
    """Our own modules that a module imports, lazily or not. `from a import b` counts as `a.b` if that is a module."""
    return frozenset(name for name in _list_imported(load_modules()[module]) if name in load_modules())


def find_reachable(module: str) -> set[str]:
    """All modules that importing and running `module` may load, itself and the packages above them included."""
    reached, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in reached or name not in load_modules():
            continue
        reached.add(name)
        waiting += [*find_imports(name), name.rpartition(".")[0]]
    return reached


def _list_imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "relative imports are not used here"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
