"""A project under Git whose pipeline has the real stages' names and copies ready-made models: for deployments, data set
versions and retraining, which look at files, DVC, Git and the registry, and not at what a stage computes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import yaml

from flows.processes import build_environment
from imprint.core.records import ClipRecord, save_records
from tests.registered_models import PERFECT, write_evaluation, write_models
from tests.source_tree import ROOT

STAGES = """
stages:
  ingest:
    cmd: mkdir -p data && cp given/clips.parquet data/clips.parquet
    deps: [videos, given/clips.parquet]
    outs: [data/clips.parquet]
  extract_frames:
    cmd: sh extract.sh
    deps: [data/clips.parquet, videos, extract.sh]
    outs: [data/frames]
    meta: {fanout: clips}
  pack_shards: {cmd: cp -r data/frames data/shards, deps: [data/frames], outs: [data/shards]}
  pretrain_encoder:
    cmd: mkdir -p models && cp -r data/shards models/pretrained
    deps: [data/shards]
    outs: [models/pretrained]
  freeze_encoder:
    cmd: mkdir -p models && cp -r given/models/encoder models/encoder
    deps: [models/pretrained, given/models/encoder]
    outs: [models/encoder]
    meta: {gpu: true}
  train_compositor:
    cmd: mkdir -p models && cp -r given/models/compositor models/compositor
    deps: [models/encoder, given/models/compositor]
    outs: [models/compositor]
  evaluate:
    cmd: >-
      mkdir -p reports metrics && cp -r given/reports/evaluation reports/ && cp given/metrics/evaluation.json metrics/
    deps: [models/compositor, given/reports/evaluation, given/metrics/evaluation.json]
    outs: [reports/evaluation]
    metrics: [metrics/evaluation.json: {cache: false}]
"""
# Without `--chunk` it makes what is missing, as the real stages do; `chunks` counts who did the work.
EXTRACT = """
mkdir -p work/extract_frames data
for video in videos/*; do
  name=$(basename "$video")
  test -e "work/extract_frames/$name" || { cp "$video" "work/extract_frames/$name"; echo "$name" >> work/made; }
done
test "$1" = --chunk || { mkdir -p data/frames && cp work/extract_frames/* data/frames/; }
"""
MEANS = {"identity_top1": 0.5, "near_psnr_db": 20.0, **PERFECT}


def build_operations_project(folder: Path) -> Path:
    """`folder/project` with a data set of two videos, a DVC remote beside it, everything committed, nothing run."""
    root = folder / "project"
    given = root / "given"
    given.mkdir(parents=True)
    write_models(given, seed=0)
    write_evaluation(given, MEANS)
    save_records(given / "clips.parquet", ClipRecord, [])
    for name in ("params.yaml", "prefect.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, root)
    for package in ("flows", "imprint", "data_prep"):  # the worker runs the folder's own code
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__", "*.onnx"))
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["ingest"]["source"] = "videos"
    (root / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    write_rules(root)
    (root / "dvc.yaml").write_text(STAGES)
    (root / "extract.sh").write_text(EXTRACT)
    (root / "videos").mkdir()
    for name in ("one", "two"):
        (root / "videos" / f"{name}.mp4").write_text(name)
    run(root, "git", "init", "--quiet", "--initial-branch", "main")
    for key, value in (("user.name", "someone"), ("user.email", "someone@localhost")):
        run(root, "git", "config", key, value)
    run(root, "dvc", "init", "--quiet")
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, root / ".dvc")
    run(root, "dvc", "remote", "add", "--quiet", "--default", "store", "../remote")
    run(root, "dvc", "add", "--quiet", "videos")
    commit_all(root, "First data set")
    return root


def write_rules(root: Path) -> None:
    """The gate's rules for the metrics that there are."""
    rules = yaml.safe_load((ROOT / "gate.yaml").read_text())
    rules["metrics"] = {name: rules["metrics"][name] for name in ("identity_top1", "near_psnr_db")}
    (root / "gate.yaml").write_text(yaml.safe_dump(rules | {"bootstrap_samples": 500}))


def commit_all(root: Path, message: str) -> None:
    run(root, "git", "add", "--all")
    run(root, "git", "commit", "--quiet", "--message", message)


def run(root: Path, *command: str) -> str:
    """The output of a command that must succeed, in the project's environment."""
    done = subprocess.run(command, cwd=root, env=build_environment(root), capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout.strip()
