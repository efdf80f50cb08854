"""`dvc.yaml` against the code: the parameters that it names, and the packages that a stage's imports reach."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from imprint.core.keys import PACKAGES, find_path, find_reachable
from imprint.core.params import Params
from tests.source_tree import ROOT, load_modules

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def test_params_sections_are_fields_are_stages() -> None:
    sections = list(yaml.safe_load((ROOT / "params.yaml").read_text()))
    assert sections == list(Params.model_fields) == list(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_its_own_section_alone(stage: str) -> None:
    assert STAGES[stage]["params"] == [stage]


@pytest.mark.parametrize("stage", STAGES)
def test_deps_name_what_the_imports_reach(stage: str) -> None:
    """No more, or an edit elsewhere retrains; no less, or an edit goes unnoticed."""
    code = list_code_deps(stage)
    reached = {name for name in find_reachable(find_stage_module(stage)) if name not in PACKAGES}
    covered = {dep: {name for name in reached if is_in(name, dep)} for dep in code}
    assert reached == set().union(*covered.values())
    assert [dep for dep, names in covered.items() if not names] == []


@pytest.mark.parametrize("stage", STAGES)
def test_the_work_folders_key_is_of_the_stages_own_module(stage: str) -> None:
    """Of no other: `find_reachable` starts there."""
    calls = [node for node in ast.walk(load_modules()[find_stage_module(stage)]) if isinstance(node, ast.Call)]
    opened = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "open_stage"]
    assert [ast.unparse(call.args[3]) for call in opened] == ["__name__"] * len(opened)


def test_outs_do_not_overlap_and_commands_exist() -> None:
    outs = [Path(name) for stage in STAGES.values() for out in list_outs(stage) for name in [out]]
    assert not {(a, b) for a in outs for b in outs if a != b and a in b.parents}
    for stage, entry in STAGES.items():
        package = find_stage_module(stage).split(".")[0]
        assert entry["cmd"] == f"python -m {package} {stage.replace('_', '-')}"


def list_code_deps(stage: str) -> list[str]:
    """Dotted names of the deps that are code of ours."""
    paths = [dep for dep in STAGES[stage]["deps"] if dep.split("/")[0] in PACKAGES and not dep.startswith("demo/")]
    return [path.removesuffix(".py").replace("/", ".") for path in paths]


def list_outs(stage: dict) -> list[str]:
    entries = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def find_stage_module(stage: str) -> str:
    """The module that defines `run_<stage>`."""
    defined = {
        module
        for module, tree in load_modules().items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == f"run_{stage}" and not module.startswith("flows")
    }
    assert len(defined) == 1, f"run_{stage} is defined in {sorted(defined) or 'no module'}"
    return defined.pop()


def is_in(module: str, package: str) -> bool:
    assert find_path(package).exists(), f"{package} does not exist"
    return module == package or module.startswith(f"{package}.")
