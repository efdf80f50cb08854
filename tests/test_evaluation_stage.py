"""Stage `evaluate` from end to end on a model of random weights, and the losses on held-out pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.shards.packing import ViewKey, encode_view, write_shard
from imprint.core.errors import InputError
from imprint.core.params import Params, load_params
from imprint.core.records import PairKind, PairRecord, ViewRecord, build_id, save_records
from imprint.core.view_changes import VIEW_CHANGES
from imprint.data import ShardReader
from imprint.evaluation.held_out import choose_pairs, choose_partners, measure_held_out
from imprint.evaluation.stage import run_evaluate
from imprint.evaluation.version import evaluate_model
from imprint.models import PRESETS, ImprintModel, build_model, save_model
from imprint.models.presets import choose_flow
from tests.evaluation_cases import draw_case, write_cases

ROOT = Path(__file__).resolve().parents[1]
KINDS: Sequence[PairKind] = ("multiview", "video", "single")
NUM_CLIPS = 4


@pytest.fixture(scope="module")
def params() -> Params:
    params = load_params(ROOT / "params.yaml", ROOT / "params" / "smoke.yaml")
    settings = {"max_cases": 3, "steps": 2, "batch_size": 2, "held_out_pairs": 4, "threads": 1, "grid_rows": 2}
    settings |= {"views_per_case": 2, "from_noise_cases": 1}
    return params.model_copy(update={"evaluate": params.evaluate.model_copy(update=settings)})


@pytest.fixture(scope="module")
def model() -> ImprintModel:
    """Random weights in the last layer too, so that the losses depend on the reference."""
    torch.set_num_threads(1)
    built = build_model(choose_flow(PRESETS["tiny"], wanted=True), seed=0)
    torch.nn.init.normal_(built.unet.conv_out.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    return built


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, params: Params, model: ImprintModel) -> Path:
    root = tmp_path_factory.mktemp("project")
    write_shards(root / "data" / "shards", params)
    (root / "demo" / "assets").mkdir(parents=True)
    write_cases(root / params.evaluate.cases, 3)
    for stage, folder in {"pretrain_encoder": "pretrained", "train_compositor": "compositor"}.items():
        save_model(model, root / "models" / folder, stage=stage, extra={})
    return root


def write_shards(folder: Path, params: Params) -> None:
    """Two views of one object per test clip, and a pair of each kind."""
    folder.mkdir(parents=True)
    views, pairs = [], []
    for clip in range(NUM_CLIPS):
        clip_id = build_id("clip", clip)
        for index in range(2):
            case = draw_case(10 + clip, 64)
            parts = encode_view(
                np.roll(case["truth"], 3 * index, 1), np.roll(case["object_mask"], 3 * index, 1), params.pack_shards
            )
            views.append((ViewKey("test", clip_id, 1, index), parts))
        pairs += [build_pair(kind, clip_id) for kind in KINDS]
    save_records(folder / "views.parquet", ViewRecord, write_shard(folder / "test-00000.tar", views))
    save_records(folder / "pairs.parquet", PairRecord, pairs)


def build_pair(kind: PairKind, clip_id: str) -> PairRecord:
    reference = 1 if kind == "single" else 0
    gaps = {"gap_frames": 1 - reference, "gap_s": 0.2, "view_change": 0.5}
    pair_id = build_id(kind, clip_id)
    return PairRecord(
        pair_id=pair_id,
        kind=kind,
        split="test",
        clip_id=clip_id,
        track=1,
        reference_index=reference,
        target_index=1,
        **gaps,
    )


def test_the_stage_writes_the_same_metrics_and_report_again(
    project: Path, params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no-such-store://")  # a store that fails is a warning
    run_evaluate(params, project)
    assert "warning: MLflow" in capsys.readouterr().err
    outs = [project / "metrics" / "evaluation.json", *sorted((project / "reports").rglob("*.*"))]
    first = {path: path.read_bytes() for path in outs}
    made = {path: path.stat().st_mtime_ns for path in project.rglob("composites/*/*/*/*.png")}
    assert len(made) == (3 + 1) * 2 * 2  # cases and the one from noise, strata, levels
    for path in outs:
        path.unlink()
    run_evaluate(params, project)
    assert {path: path.read_bytes() for path in outs} == first
    assert {path: path.stat().st_mtime_ns for path in made} == made  # a rerun makes no composite twice
    metrics = json.loads(first[outs[0]])
    assert metrics["protocol"]["num_cases"] == 3
    assert metrics["held_out"]["train_compositor"]["num_pairs"] == 4
    assert set(metrics["levels"]) == {"exact", "box"}
    assert set(metrics["view_changes"]) == set(VIEW_CHANGES)
    assert metrics["view_changes"]["0-20"]["ours"]["outline_iou"] is not None
    assert metrics["view_changes"]["0-20"]["from_noise"]["outline_iou"] is None  # it has no opacity


def test_a_model_without_a_flow_is_measured_the_papers_way_alone(project: Path, params: Params, tmp_path: Path) -> None:
    save_model(build_model(PRESETS["tiny"], seed=0), tmp_path / "plain", stage="train_compositor", extra={})
    section = params.evaluate.model_copy(update={"cases": str(project / params.evaluate.cases), "max_cases": 2})
    metrics = evaluate_model(tmp_path / "plain", section, out=tmp_path / "out", root=tmp_path)
    assert set(metrics["view_changes"]["0-20"]) == {"ours", "paste", "matched", "poisson"}
    assert metrics["view_changes"]["0-20"]["ours"]["outline_iou"] is None
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == metrics


def test_what_the_stage_needs_is_named_when_it_is_missing(tmp_path: Path, params: Params) -> None:
    with pytest.raises(InputError, match=r"cases\.tar cannot be read .*evaluate\.cases"):
        run_evaluate(params, tmp_path)


def test_a_shuffled_reference_is_another_clips(project: Path) -> None:
    reader = ShardReader(project / "data" / "shards")
    pairs = choose_pairs(reader, ["video", "single"], 3)
    assert [pair.kind for pair in pairs] == ["video"] * 3
    assert all(pairs[other].clip_id != pair.clip_id for pair, other in zip(pairs, choose_partners(pairs), strict=True))
    with pytest.raises(InputError, match="one clip alone"):
        choose_partners([pairs[0], pairs[0]])


def test_losses_pair_up_and_do_not_depend_on_the_batch(project: Path, params: Params, model: ImprintModel) -> None:
    models = {"pretrain_encoder": model, "train_compositor": model}
    shards = project / "data" / "shards"
    results = [
        measure_held_out(models, shards, params.evaluate.model_copy(update={"batch_size": size})) for size in (1, 3)
    ]
    for stage in models:
        values = [result[stage] for result in results]
        assert values[0] == pytest.approx(values[1], abs=2e-6)
        assert values[0]["gain"] == pytest.approx(values[0]["shuffled_loss"] - values[0]["right_loss"], abs=2e-6)
        assert values[0]["gain"] != 0.0
        assert values[0]["gain_low"] <= values[0]["gain"] <= values[0]["gain_high"]


def test_a_model_that_ignores_the_reference_gains_nothing(project: Path, params: Params) -> None:
    """A fresh model answers mid-grey whatever it is shown."""
    fresh = build_model(PRESETS["tiny"], seed=0)
    results = measure_held_out(
        {"pretrain_encoder": fresh, "train_compositor": fresh}, project / "data/shards", params.evaluate
    )
    for stage in ("pretrain_encoder", "train_compositor"):
        assert results[stage]["gain"] == results[stage]["gain_low"] == results[stage]["gain_high"] == 0.0
        assert results[stage]["right_loss"] > 0.0
