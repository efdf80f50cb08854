"""Work per clip: reruns, kills and chunks give the same bytes; and the commands' error lines."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from data_prep.fanout import Job, Product, make_products, parse_chunk
from data_prep.frames import stage as frames_stage
from data_prep.frames.stage import run_extract_frames
from data_prep.ingest.stage import run_ingest
from data_prep.masks.stage import run_segment_objects
from data_prep.pairs.stage import run_mine_pairs
from data_prep.tars import read_tar
from imprint.core.errors import InputError
from imprint.core.params import Params
from imprint.core.records import FrameRecord, Rejection, load_records

ROOT = Path(__file__).resolve().parents[1]
PRODUCT_FILES = (("records", FrameRecord), ("ledger", Rejection))


def read_tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def copy_inputs(prepared: Path, root: Path, *names: str) -> Path:
    for name in names:
        (root / "data").mkdir(exist_ok=True)
        source = prepared / "data" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, root / "data" / name)
    return root


def count_products(root: Path, stage: str) -> int:
    return len([path for path in (root / "work" / stage / "clips").iterdir() if not path.name.startswith(".")])


def test_chunks_in_a_pool_then_the_stage_equal_the_stage_alone(prepared, tmp_path, clip_params: Params):
    root = copy_inputs(prepared, tmp_path, "clips.parquet")
    section = clip_params.extract_frames.model_copy(update={"workers": 2})
    params = clip_params.model_copy(update={"extract_frames": section})
    run_extract_frames(params, root, chunk="1/3")
    assert count_products(root, "extract_frames") == 3
    assert not (root / "data/frames").exists()
    run_extract_frames(params, root, chunk="3/3")
    assert count_products(root, "extract_frames") == 5
    run_extract_frames(params, root)
    assert read_tree(root / "data/frames") == read_tree(prepared / "data/frames")
    names = ["data/ledgers/extract_frames.parquet"]
    assert [(root / name).read_bytes() for name in names] == [(prepared / name).read_bytes() for name in names]


def test_a_killed_stage_resumes_with_the_clips_that_are_missing(prepared, tmp_path, clip_params, monkeypatch):
    root = copy_inputs(prepared, tmp_path, "clips.parquet")
    seen: list[str] = []

    def extract(job):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(job.clip.clip_id)
        return real(job)

    real = frames_stage.extract_clip
    monkeypatch.setattr(frames_stage, "extract_clip", extract)
    with pytest.raises(KeyboardInterrupt):
        run_extract_frames(clip_params, root)
    assert not (root / "data/frames").exists()
    assert count_products(root, "extract_frames") == 3
    monkeypatch.setattr(frames_stage, "extract_clip", lambda job: seen.append(job.clip.clip_id) or real(job))
    run_extract_frames(clip_params, root)
    assert len(seen) == len(set(seen)) == 8
    assert read_tree(root / "data/frames") == read_tree(prepared / "data/frames")


def test_a_rerun_of_masks_and_pairs_gives_the_same_bytes(prepared, tmp_path, clip_params):
    root = copy_inputs(prepared, tmp_path, "clips.parquet", "frames")
    run_segment_objects(clip_params, root)
    run_mine_pairs(clip_params, root)
    assert read_tree(root / "data/masks") == read_tree(prepared / "data/masks")
    assert (root / "data/pairs.parquet").read_bytes() == (prepared / "data/pairs.parquet").read_bytes()


def test_a_fresh_clone_takes_its_products_from_the_pulled_outs(prepared, tmp_path, clip_params, monkeypatch):
    root = copy_inputs(prepared, tmp_path, "clips.parquet", "frames", "ledgers")
    monkeypatch.setattr(frames_stage, "extract_clip", lambda job: pytest.fail(f"{job.clip.clip_id} was made again"))
    run_extract_frames(clip_params, root, chunk="1/1")
    products = [read_tree(folder / "work/extract_frames/clips") for folder in (root, prepared)]
    assert products[0] == products[1]


def test_two_that_make_the_same_product_at_once_do_no_harm(prepared, tmp_path):
    """As a worker does that is presumed dead, and the one that has its chunk now."""
    source = next(path for path in sorted((prepared / "work/extract_frames/clips").iterdir()))
    rows, ledger = (load_records(source / f"{name}.parquet", kind) for name, kind in PRODUCT_FILES)
    product = Product(list(read_tar(source / "product.tar").items()), rows, ledger)
    both_are_at_work = threading.Barrier(2, timeout=60)

    def make(_argument: object) -> Product[FrameRecord]:
        both_are_at_work.wait()
        return product

    job = Job(clip_id="clip", folder=tmp_path / "clips" / source.name, kind=FrameRecord, make=make, argument=None)
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(make_products, [job], "clips", 1) for _ in range(2)]:
            future.result()
    assert [path.name for path in (tmp_path / "clips").iterdir()] == [source.name]
    assert read_tree(job.folder) == read_tree(source)


def test_the_limit_of_worker_processes_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPRINT_MAX_WORKERS", "1")
    makers = []

    def make(_argument: object) -> Product[FrameRecord]:
        makers.append(os.getpid())
        return Product([], [], [])

    jobs = [
        Job(clip_id=name, folder=tmp_path / name, kind=FrameRecord, make=make, argument=None) for name in ("a", "b")
    ]
    make_products(jobs, "clips", workers=4)
    assert makers == [os.getpid()] * 2


def test_settings_of_the_run_alone_keep_the_products_and_others_do_not(videos, tmp_path, clip_params):
    root, ingest = tmp_path, clip_params.ingest.model_copy(update={"source": str(videos / "cut.mp4")})
    run_ingest(clip_params.model_copy(update={"ingest": ingest}), root)
    sections = [{}, {"max_rejected_share": 0.9}, {"jpeg_quality": 80}]
    counts = []
    for changes in sections:
        section = clip_params.extract_frames.model_copy(update=changes)
        run_extract_frames(clip_params.model_copy(update={"extract_frames": section}), root)
        counts.append(count_products(root, "extract_frames"))
    assert counts == [1, 1, 2]


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"])
def test_a_wrong_chunk_is_named(text):
    with pytest.raises(InputError, match=f"--chunk {text}: give i/n"):
        parse_chunk(text)


# --- commands -------------------------------------------------------------------------------------------------------


def run_command(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_prep", *arguments]
    return subprocess.run(command, cwd=root, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "changes", "line"),
    [
        (["ingest"], {"source": "nowhere"}, "ingest: ingest.source: nowhere does not exist"),
        (["ingest"], {"sourc": "x"}, "ingest: params.yaml: ingest.sourc: unknown key"),
        (["extract-frames"], {}, "extract_frames: data/clips.parquet is missing"),
        (["segment-objects", "--chunk", "2/1"], {}, "segment_objects: --chunk 2/1: give i/n"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, changes, line, tmp_path):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["ingest"].update(changes)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    result = run_command(tmp_path, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_the_command_runs_a_stage_and_loads_neither_prefect_nor_torch(videos, tmp_path):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["ingest"]["source"] = str(videos)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    result = run_command(tmp_path, "ingest")
    assert result.returncode == 0, result.stderr
    assert "8 clips kept" in result.stderr
    assert (tmp_path / "data/clips.parquet").is_file()
    modules = ["cli", *[f"{name}.stage" for name in ("ingest", "frames", "masks", "pairs", "shards")]]
    imports = ", ".join(f"data_prep.{name}" for name in modules)
    code = f"import sys, {imports}; print({{'torch', 'prefect', 'mlflow'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
