"""Imports point down only (see docs/architecture.md), and the cheap layers stay cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest

from imprint.core.keys import find_imports
from tests.source_tree import ROOT, load_modules

# Layer => what it may import. Rows of `imprint` from the bottom up; packages in one row may meet, in one direction.
ROWS = (
    {"core"},
    {"segmentation", "tracking"},
    {"appearance"},
    {"models", "diffusion", "data"},
    {"training", "inference"},
    {"evaluation"},
    {"base", "estimate"},
    {"serving", "doctor", "verify", "cli", "__main__"},
)
LEAVES = {"imprint.core", "imprint.segmentation"}
HEAVY = ("torch", "mlflow", "prefect", "dask", "dvc", "diffusers", "transformers", "rembg", "onnxruntime", "decord")


def find_package(module: str) -> str:
    """`imprint.core.files` => `imprint.core`; `flows.cli` => `flows`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "imprint" else parts[0]


def list_edges() -> set[tuple[str, str]]:
    """(package, package that it imports) for all pairs of different ones; the empty `imprint` package left out."""
    edges = {(find_package(module), find_package(name)) for module in load_modules() for name in find_imports(module)}
    return {(source, target) for source, target in edges if source != target and target != "imprint"}


def find_row(package: str) -> int:
    name = package.removeprefix("imprint.")
    return next(number for number, row in enumerate(ROWS) if name in row)


def is_allowed(source: str, target: str) -> bool:
    if source in ("data_prep", "demo"):
        return target in LEAVES
    if source == "flows":
        return True
    return target.startswith("imprint.") and find_row(target) <= find_row(source)


def test_every_package_of_imprint_has_a_row() -> None:
    packages = {find_package(module) for module in load_modules() if module.startswith("imprint.")}
    assert {package.removeprefix("imprint.") for package in packages} <= set().union(*ROWS)


def test_imports_point_down() -> None:
    assert {(source, target) for source, target in list_edges() if not is_allowed(source, target)} == set()


def test_packages_of_one_row_do_not_import_each_other_in_a_circle() -> None:
    edges = list_edges()
    assert not {(a, b) for a, b in edges if (b, a) in edges}


def test_nobody_imports_flows() -> None:
    assert not {source for source, target in list_edges() if target == "flows"}


@pytest.mark.parametrize("module", ["data_prep.cli", "imprint.cli", "flows.cli", "flows.demo", "imprint.tracking"])
def test_commands_start_without_heavy_imports(module: str) -> None:
    assert find_heavy(module) == set()


def test_core_and_data_prep_need_no_torch() -> None:
    modules = [
        name for name in load_modules() if name.startswith(("imprint.core", "data_prep")) and "__main__" not in name
    ]
    assert "torch" not in find_heavy(*modules, "imprint.segmentation")


def find_heavy(*modules: str) -> set[str]:
    """The heavy packages that a fresh interpreter loads with `modules`."""
    code = f"import sys, {', '.join(modules)}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())
