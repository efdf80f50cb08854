"""Dependencies: what is imported is declared, and what is declared is pinned."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib

from imprint.core.keys import PACKAGES
from tests.source_tree import ROOT, load_modules

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
IN_EXTRAS = {"av", "onnx", "mitsuba", "drjit", "bitsandbytes", "prefect_dask", "distributed"}


def normalise(requirement: str) -> str:
    """`PyYAML>=6` => `pyyaml`."""
    return re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower().replace("_", "-")


def list_foreign_imports() -> set[str]:
    """Top-level names that our packages import and that are neither ours nor Python's."""
    nodes = [node for tree in load_modules().values() for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names} - set(PACKAGES) - set(sys.stdlib_module_names)


def test_what_is_imported_is_declared() -> None:
    providers = importlib.metadata.packages_distributions()
    declared = {normalise(requirement) for requirement in PROJECT["dependencies"]}
    undeclared = {
        name
        for name in list_foreign_imports() - IN_EXTRAS
        if declared.isdisjoint(normalise(provider) for provider in providers[name])
    }
    assert undeclared == set()


def test_what_is_declared_is_pinned_without_local_suffixes() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", line)] == []
    pinned = {normalise(line) for line in lines}
    declared = [*PROJECT["dependencies"], *(entry for extra in EXTRAS.values() for entry in extra)]
    assert {normalise(requirement) for requirement in declared} - pinned == set()
    assert "torch==2.13.0" in PROJECT["dependencies"]
    assert "opencv-python-headless" not in pinned


def test_what_is_installed_for_tests_is_what_is_pinned() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for name in ("torch", "prefect", "dvc", "mlflow", "diffusers", "transformers", "rembg"):
        assert importlib.metadata.version(name).split("+")[0] == pins[name]
