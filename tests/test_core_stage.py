"""imprint.core on disk: atomic files, records, params and what every stage shares."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from imprint.core import files, records, stage
from imprint.core.errors import InputError
from imprint.core.params import load_params
from imprint.core.stage import StageRun, claim_work_dir

ROOT = Path(__file__).resolve().parents[1]


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "value.json"
    files.write_json_atomic(target, {"a": 1})

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_json_atomic(target, {"a": 2})
    assert json.loads(target.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json_atomic(tmp_path / "value.json", {"a": float("nan")})


def test_publish_dir_replaces_what_stood_there(tmp_path: Path) -> None:
    for name, folder in (("new.txt", "work"), ("old.txt", "out")):
        files.write_bytes_atomic(tmp_path / folder / name, b"x")
    files.publish_dir(tmp_path / "work", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "work"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new.txt"]


def publish_and_die(folder: Path, call: int) -> int:
    """In a child: publish `work` as `out`, and be gone just before the `call`-th change to a name. Its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    calls = itertools.count()
    for module, name in ((os, "replace"), (os, "rename"), (os, "rmdir"), (os, "unlink"), (shutil, "rmtree")):
        do = getattr(module, name)

        def count(*args: object, do=do, **options: object) -> object:
            return os._exit(9) if next(calls) == call else do(*args, **options)

        setattr(module, name, count)
    files.publish_dir(folder / "work", folder / "out")
    os._exit(0)


@pytest.mark.parametrize("platform", [sys.platform, "without an exchange"])
def test_a_kill_at_any_moment_leaves_the_old_folder_or_the_new_one(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    files._libc.cache_clear()
    for call in range(20):
        folder = tmp_path / str(call)
        for name in ("work", "out"):
            for part in ("a", "b"):
                files.write_bytes_atomic(folder / name / part, name.encode())
        ended = publish_and_die(folder, call)
        found = [
            {path.read_text() for path in place.iterdir()}
            for place in (folder / "out", folder / ".out.old")
            if place.is_dir()
        ]
        assert {"work"} in found or {"out"} in found, f"killed before change {call}"
        if sys.platform == "linux":
            assert len(list((folder / "out").iterdir())) == 2
        if ended == 0:
            break
        files.publish_dir(folder / "work", folder / "out")
        assert {path.read_text() for path in (folder / "out").iterdir()} == {"work"}
    assert ended == 0
    assert sorted(path.name for path in folder.iterdir()) == ["out", "work"]
    files._libc.cache_clear()


def test_path_digest_sees_names_and_contents_but_no_caches(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1")
    first = files.compute_path_digest(tmp_path)
    files.write_bytes_atomic(tmp_path / "__pycache__" / "a.pyc", b"x")
    assert files.compute_path_digest(tmp_path) == first
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    renamed = files.compute_path_digest(tmp_path)
    (tmp_path / "b.txt").write_text("2")
    assert len({first, renamed, files.compute_path_digest(tmp_path)}) == 3


# --- records --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        records.ClipRecord,
        records.FrameRecord,
        records.MaskRecord,
        records.PairRecord,
        records.ViewRecord,
        records.Rejection,
    ],
)
def test_records_round_trip(tmp_path: Path, kind: type) -> None:
    names = {"int": 7, "float": 0.25, "str": "text", "Split": "val", "PairKind": "video"}
    names |= {"Layout": "davis", "Order": "time", "tuple[str, ...]": ("a", "b")}
    values = {field.name: names.get(str(field.type), (1, 2, 3, 4)) for field in dataclasses.fields(kind)}
    rows = [kind(**values), kind(**values)]
    records.save_records(tmp_path / "rows.parquet", kind, rows)
    assert records.load_records(tmp_path / "rows.parquet", kind) == rows
    records.save_records(tmp_path / "none.parquet", kind, [])
    assert records.load_records(tmp_path / "none.parquet", kind) == []


def test_records_of_another_type_or_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    records.save_records(path, records.Rejection, [])
    with pytest.raises(InputError, match="holds Rejection version 1, not ClipRecord version 2"):
        records.load_records(path, records.ClipRecord)
    table = pq.read_table(path)
    metadata = {"record": "Rejection", "schema_version": "999"}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(InputError, match="version 999"):
        records.load_records(path, records.Rejection)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(InputError, match=r"holds \?"):
        records.load_records(path, records.Rejection)


def test_missing_or_broken_record_files_name_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    for name in ("absent.parquet", "broken.parquet"):
        with pytest.raises(InputError, match=f"{name}.*dvc repro"):
            records.load_records(tmp_path / name, records.Rejection)


def test_ids_depend_on_every_part_and_its_place() -> None:
    ids = {records.build_id("ab", 1), records.build_id("a", "b1"), records.build_id("ab1"), records.build_id(1, "ab")}
    assert len(ids) == 4
    assert all(len(value) == 16 for value in ids)


# --- params and stages ----------------------------------------------------------------------------------------------


def edit_params(path: Path, section: str, changes: dict, drop: str = "") -> Path:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values[section].update(changes)
    values[section].pop(drop, None)
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_projects_params_load_with_and_without_the_smoke_overlay() -> None:
    smoke = load_params(ROOT / "params.yaml", ROOT / "params" / "smoke.yaml")
    assert smoke.pretrain_encoder.preset == "tiny"
    assert load_params(ROOT / "params.yaml").pretrain_encoder.preset == "base"
    assert smoke.ingest == load_params(ROOT / "params.yaml").ingest


@pytest.mark.parametrize(
    ("changes", "drop", "message"),
    [
        ({"guidence": 2.0}, "", "evaluate.guidence: unknown key; the keys are cases, .*guidance"),
        ({}, "guidance", "evaluate.guidance: missing key"),
        ({"steps": 0}, "", "evaluate.steps: input should be greater than or equal to 1 .found 0"),
        ({"levels": ["boks"]}, "", "evaluate.levels.0: input should be 'exact'"),
    ],
)
def test_params_errors_name_file_key_and_fault(tmp_path: Path, changes: dict, drop: str, message: str) -> None:
    path = edit_params(tmp_path / "params.yaml", "evaluate", changes, drop)
    with pytest.raises(InputError, match=message) as caught:
        load_params(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overlay_typos_and_unreadable_params_are_input_errors(tmp_path: Path) -> None:
    (tmp_path / "overlay.yaml").write_text("evaluate: {stepps: 3}")
    with pytest.raises(InputError, match=r"overlay\.yaml: evaluate\.stepps: unknown key"):
        load_params(ROOT / "params.yaml", tmp_path / "overlay.yaml")
    with pytest.raises(InputError, match=r"absent\.yaml cannot be read"):
        load_params(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="no valid YAML"):
        load_params(tmp_path / "broken.yaml")


def test_run_command_turns_input_errors_into_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def refuse() -> None:
        raise InputError("x.png is missing")

    with pytest.raises(SystemExit) as caught:
        stage.run_command("evaluate", refuse, tmp_path)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "evaluate: x.png is missing\n"
    record = json.loads((tmp_path / "work" / "evaluate" / "error.json").read_text())
    assert (record["kind"], record["message"]) == ("config", "x.png is missing")
    stage.run_command("evaluate", lambda: None, tmp_path)
    assert not (tmp_path / "work" / "evaluate" / "error.json").exists()
    with pytest.raises(ZeroDivisionError):
        stage.run_command("evaluate", lambda: 1 // 0, tmp_path)
    assert json.loads((tmp_path / "work" / "evaluate" / "error.json").read_text())["kind"] == "bug"


def test_a_full_disk_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def write() -> None:
        with open("/dev/full", "w") as file:  # the system's own full disk
            file.write("x")

    with pytest.raises(SystemExit) as caught:
        stage.run_command("evaluate", write, tmp_path)
    assert caught.value.code == 2
    assert "No space left on device" in capsys.readouterr().err
    assert json.loads((tmp_path / "work" / "evaluate" / "error.json").read_text())["kind"] == "config"


def test_of_several_processes_the_first_to_fail_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")

    def refuse() -> None:
        raise InputError(f"told by {os.environ['RANK']}")

    for rank in "21":
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit):
            stage.run_command("evaluate", refuse, tmp_path)
    assert capsys.readouterr().err == "evaluate: told by 2\n"
    assert json.loads((tmp_path / "work" / "evaluate" / "error.json").read_text())["message"] == "told by 2"


def test_a_work_folder_has_one_process_at_a_time(tmp_path: Path) -> None:
    run = StageRun(name="train", key="k", work_dir=tmp_path, params={}, inputs={})
    script = (
        "import sys; from pathlib import Path; from imprint.core.stage import StageRun, claim_work_dir\n"
        "run = StageRun(name='train', key='k', work_dir=Path(sys.argv[1]), params={}, inputs={})\n"
        "with claim_work_dir(run): print('mine', flush=True)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with claim_work_dir(run):
        refused = subprocess.run(command, capture_output=True, text=True)
    assert f"process {os.getpid()} is at work" in refused.stderr
    assert subprocess.run(command, capture_output=True, text=True).stdout == "mine\n"
