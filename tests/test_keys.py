"""What a result depends on: settings, code and inputs, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from imprint.core import files, keys
from imprint.core.errors import InputError
from imprint.core.params import Evaluate, Params, Section, load_params
from imprint.core.stage import open_stage

ROOT = Path(__file__).resolve().parents[1]
RUN_ONLY = {
    "extract_frames": {"workers": 7, "max_rejected_share": 0.123},
    "segment_objects": {"workers": 7, "max_rejected_share": 0.123},
    "mine_pairs": {"max_rejected_share": 0.123},
    "pretrain_encoder": {
        "loader_workers": 7,
        "checkpoint_every_steps": 7,
        "keep_checkpoints": 7,
        "log_checkpoints_as_models": True,
        "log_every_steps": 7,
        "validate_every_steps": 7,
    },
}
RUN_ONLY["train_compositor"] = RUN_ONLY["pretrain_encoder"]
DECISIVE = {
    "extract_frames": {"jpeg_quality": 60},
    "segment_objects": {"touching": {"judged_frames": 0, "max_foreign_share": 0.18}},
    "mine_pairs": {"seed": 99},
    "pretrain_encoder": {"threads": 7},
    "train_compositor": {"max_hours": 7.0},
}


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "params.yaml")


def open_key(section: Section, root: Path, *, module: str = "imprint.evaluation.stage") -> str:
    return open_stage("evaluate", section, [Path("in.txt")], module, root).key


def change(section: Section, changes: dict) -> Section:
    changed = type(section).model_validate(section.model_dump() | changes)
    assert changed != section
    return changed


def test_a_key_follows_settings_inputs_and_code(tmp_path: Path, params: Params) -> None:
    (tmp_path / "in.txt").write_text("1")
    first = open_key(params.evaluate, tmp_path)
    assert open_key(params.evaluate, tmp_path) == first
    found = {first, open_key(change(params.evaluate, {"seed": 5}), tmp_path)}
    found.add(open_key(params.evaluate, tmp_path, module="imprint.core.pixels"))
    (tmp_path / "in.txt").write_text("2")
    assert len(found | {open_key(params.evaluate, tmp_path)}) == 4
    with pytest.raises(InputError, match="absent is missing"):
        open_stage("evaluate", params.evaluate, [Path("absent")], "imprint.core.pixels", tmp_path)


@pytest.mark.parametrize("stage", RUN_ONLY)
def test_how_a_stage_works_is_no_part_of_its_key(stage: str, params: Params, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("1")
    section = getattr(params, stage)
    same = open_key(change(section, RUN_ONLY[stage]), tmp_path)
    assert same == open_key(section, tmp_path) != open_key(change(section, DECISIVE[stage]), tmp_path)


def test_no_other_fields_are_run_only(params: Params) -> None:
    """A new one is judged here: if it moves one byte of what a stage publishes, apart from its log, it is not."""
    for stage in Params.model_fields:
        section = getattr(params, stage)
        left_out = set(section.model_dump()) - set(keys.list_settings(section))
        assert left_out == set(RUN_ONLY.get(stage, {"max_rejected_share"} if stage == "ingest" else ()))


# --- code


def digest_code(tree: Path, *modules: str) -> list[str]:
    """The code digests of `modules` in a copy of the project's sources."""
    code = f"from imprint.core.keys import *; print(*map(compute_code_digest, {modules}))"
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_an_edit_moves_the_keys_of_what_it_reaches_alone(tmp_path: Path) -> None:
    """Evaluation's code and settings are none of segmentation's; a network beside the code is."""
    for package in ("imprint", "data_prep"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    stages = "data_prep.masks.stage", "imprint.training.pretrain_stage", "imprint.evaluation.stage"
    first = digest_code(tmp_path, *stages)
    declared = tmp_path / "imprint" / "core" / "params.py"
    declared.write_text(declared.read_text().replace("    grid_rows: Count", "    grid_rows: Count\n    new: Natural"))
    assert digest_code(tmp_path, *stages) == first
    for edited, moved in (
        ("imprint/evaluation/measures.py", [False, False, True]),
        ("imprint/training/loop.py", [False, True, False]),
        ("imprint/core/errors.py", [True, True, True]),
        ("imprint/segmentation/imprint_small.onnx", [True, False, True]),
        ("imprint/evaluation/report.html.j2", [False, False, True]),
    ):
        with (tmp_path / edited).open("a") as file:
            file.write("\n")
        now = digest_code(tmp_path, *stages)
        assert [a != b for a, b in zip(first, now, strict=True)] == moved, edited
        first = now


# --- inputs


def test_changed_content_gives_another_key_whatever_a_lock_says(tmp_path: Path, params: Params) -> None:
    (tmp_path / "in.txt").write_text("1")
    lock = {"stages": {"make": {"outs": [{"path": "in.txt", "md5": "abc"}]}}}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    section: Evaluate = params.evaluate
    first = open_key(section, tmp_path)
    (tmp_path / "in.txt").write_text("2")
    assert open_key(section, tmp_path) != first


def test_an_input_is_read_again_only_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    for name in ("a", "b/c"):
        files.write_bytes_atomic(folder / name, name.encode())
    monkeypatch.setattr(keys, "_SETTLED_NS", 0)
    read = []
    monkeypatch.setattr(keys, "compute_file_digest", lambda path: read.append(path.name) or digest(path))
    digest = files.compute_file_digest
    inputs = [Path("data")]
    assert keys.compute_input_digests(inputs, tmp_path) == {"data": files.compute_path_digest(folder)}
    assert read == ["a", "c"]
    assert keys.compute_input_digests(inputs, tmp_path) == {"data": files.compute_path_digest(folder)}
    assert read == ["a", "c"]
    times = (folder / "a").stat()
    (folder / "a").write_bytes(b"x")  # as long, and made to look as old
    os.utime(folder / "a", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert keys.compute_input_digests(inputs, tmp_path) == {"data": files.compute_path_digest(folder)}
    assert read == ["a", "c", "a"]


def test_a_file_of_this_moment_is_read_again(tmp_path: Path) -> None:
    """It could change once more without a mark that tells."""
    (tmp_path / "in.txt").write_text("1")
    keys.compute_input_digests([Path("in.txt")], tmp_path)
    assert not (tmp_path / keys.DIGESTS).exists()


@pytest.mark.parametrize(
    "damage", ["", "[1]", "{", '{"%s": 3}', '{"%s": [[], "zz"]}', '{"%s": [null, null]}', "\udc80"]
)
def test_a_damaged_file_of_digests_costs_a_reading(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("1")
    text = damage % path if "%s" in damage else damage
    files.write_bytes_atomic(tmp_path / keys.DIGESTS, text.encode(errors="surrogateescape"))
    assert keys.compute_input_digests([Path("in.txt")], tmp_path) == {"in.txt": files.compute_file_digest(path)}
