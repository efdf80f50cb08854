"""Stage `report_data`: counts that are true, pictures that show what they say, the same bytes again, what changed."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.decisions import Decision, save_decisions
from data_prep.pairs.stage import run_mine_pairs
from data_prep.report.changes import METRICS, compare_versions
from data_prep.report.charts import build_histogram, choose_edges
from data_prep.report.dataset import count_pairs_left_out, load_data_set
from data_prep.report.pictures import draw_lot, draw_rejection
from data_prep.report.stage import REPORT, run_report_data
from data_prep.shards.stage import run_pack_shards
from imprint.core.params import Params
from imprint.core.records import ClipRecord, FrameRecord, MaskRecord, PairRecord, Rejection, load_records, save_records


@pytest.fixture
def project(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the prepared data, to be changed."""
    shutil.copytree(prepared / "data", tmp_path / "data")
    return tmp_path


@pytest.fixture
def params(clip_params: Params) -> Params:
    """With few pictures."""
    few = {"max_tracks": 3, "max_pairs_per_kind": 2, "max_pictures_per_reason": 1, "picture_px": 64}
    return clip_params.model_copy(update={"report_data": clip_params.report_data.model_copy(update=few)})


def list_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def load_metrics(root: Path) -> dict:
    return json.loads((root / METRICS).read_text())


def read_text(root: Path) -> str:
    """The page's text with its tags taken out and its spaces joined."""
    return " ".join(re.sub(r"<[^>]+>", " ", (root / REPORT / "index.html").read_text()).split())


def remove_clip(root: Path, clip_id: str) -> str:
    """As if the clip had never been in the source; returns its name."""
    clips = load_records(root / "data/clips.parquet", ClipRecord)
    save_records(root / "data/clips.parquet", ClipRecord, [clip for clip in clips if clip.clip_id != clip_id])
    for name, kind in (("frames/index", FrameRecord), ("masks/index", MaskRecord), ("pairs", PairRecord)):
        path = root / f"data/{name}.parquet"
        save_records(path, kind, [row for row in load_records(path, kind) if row.clip_id != clip_id])
    return next(clip.path for clip in clips if clip.clip_id == clip_id)


# --- counts and pictures --------------------------------------------------------------------------------------------


def test_counts_are_those_of_the_records(project, params: Params):
    run_report_data(params, project)
    metrics = load_metrics(project)
    pairs = load_records(project / "data/pairs.parquet", PairRecord)
    masks = load_records(project / "data/masks/index.parquet", MaskRecord)
    assert {(kind, split): n for kind, of in metrics["pairs"].items() for split, n in of.items()} == dict(
        Counter((pair.kind, pair.split) for pair in pairs)
    )
    assert metrics["totals"]["masks"] == len(masks)
    assert metrics["totals"]["tracks"] == sum(clip["tracks"] for clip in metrics["clips"].values())
    assert metrics["totals"]["pairs"] == sum(clip["pairs"] for clip in metrics["clips"].values()) == len(pairs)
    assert metrics["distributions"]["area_share"]["median"] == round(float(np.median([m.area_share for m in masks])), 4)
    for stage, reasons in metrics["left_out"].items():
        assert sum(reasons.values()) == len(load_records(project / f"data/ledgers/{stage}.parquet", Rejection))
    text = read_text(project)
    for reason in metrics["left_out"]["mine_pairs"]:
        assert f"mine_pairs: {reason} {metrics['left_out']['mine_pairs'][reason]} rows" in text


def test_the_page_stands_alone_and_two_runs_write_the_same_bytes(project, params: Params):
    run_report_data(params, project)
    first = list_files(project / REPORT) | {"metrics": (project / METRICS).read_bytes()}
    page = first["index.html"].decode()
    shown = set(re.findall(r'(?:src|href)="([^"#]+)"', page))
    assert shown == {name for name in first if name.startswith("pictures/")}
    kinds = Counter(name.split("/")[1].split("-")[0] for name in shown)
    num_reasons = sum(len(reasons) for reasons in load_metrics(project)["left_out"].values())
    assert kinds == {"track": 3, "pair": 3 * 2, "left": num_reasons}
    assert str(project) not in page
    run_report_data(params, project)
    assert list_files(project / REPORT) | {"metrics": (project / METRICS).read_bytes()} == first


def test_what_was_left_out_is_outlined_where_it_was(prepared):
    data = load_data_set(prepared)
    (row, *_) = [row for row in data.ledgers["segment_objects"] if row.detail.count("box ") == 1]
    box = tuple(int(edge) for edge in row.detail.partition("box ")[2].split())
    picture = draw_rejection(data, row, 96)
    assert picture is not None
    assert picture.shape[:2] == (96, 96)  # the frame's size: a pixel is a pixel
    red = (picture == (255, 64, 92)).all(axis=2)
    rows, cols = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    assert (rows[0], cols[0], rows[-1] + 1, cols[-1] + 1) == box
    view = data.gallery.masks[0]
    border = Rejection(stage="mine_pairs", item=f"{view.clip_id}:1:{view.sample_index}", reason="border", detail="")
    drawn = draw_rejection(data, border, 96)
    assert drawn is not None
    red = (drawn == (255, 64, 92)).all(axis=2)
    y0, x0, y1, x1 = view.box
    assert red[y0:y1, x0:x1].sum() > 40
    red[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = False
    assert not red.any()
    strip = draw_rejection(data, dataclasses.replace(border, item=f"{view.clip_id}:1"), 64)
    assert strip is not None
    assert strip.shape == (64, 3 * 64 + 2 * 4, 3)
    for item in ("videos/broken.mp4", f"{view.clip_id}:77:3", f"{view.clip_id}:77"):
        assert draw_rejection(data, dataclasses.replace(border, item=item), 64) is None


def test_one_more_item_moves_few_of_those_that_are_drawn():
    names = [f"clip{number}" for number in range(200)]
    before, after = (draw_lot(of, 20, seed=0, name=str) for of in (names, [*names, "another"]))
    assert len(set(before) & set(after)) >= 19
    assert before != draw_lot(names, 20, seed=1, name=str)


def test_pairs_left_out_are_summed_over_the_rows_that_count_them():
    rows = [
        Rejection(stage="mine_pairs", item="a:1", reason=reason, detail=detail)
        for reason, detail in (("over", "12 of 40 pairs"), ("over", "3 of 9 pairs"), ("border", "share 0.29 of 1"))
    ]
    assert count_pairs_left_out(rows) == {"over": 15}


@pytest.mark.parametrize(
    "values",
    [
        np.array([3.0]),
        np.array([2.0, 2.0, 9.0]),
        np.linspace(0.013, 0.991, 500),
        np.arange(1000.0),
        np.array([0.5, 0.5]),
    ],
)
def test_a_histogram_holds_every_value_once(values):
    edges = choose_edges(values)
    assert len(edges) <= 26
    assert np.histogram(values, edges)[0].sum() == len(values)
    assert np.allclose(np.diff(edges), edges[1] - edges[0])
    bars = re.findall(r": (\d+)</title></rect>", build_histogram(values))
    assert sum(int(count) for count in bars) == len(values)


# --- changes --------------------------------------------------------------------------------------------------------


def test_a_clip_that_goes_and_comes_back_is_named_with_the_counts_that_it_changed(project, params: Params):
    run_report_data(params, project)
    assert "This is the first version that is known here" in read_text(project)
    before = load_metrics(project)
    shutil.copytree(project / "data", project / "whole")
    clip = load_records(project / "data/clips.parquet", ClipRecord)[0]
    name = remove_clip(project, clip.clip_id)
    run_report_data(params, project)
    gone = before["clips"][name]
    text = read_text(project)
    assert "Against the version reported before on this machine: 0 clips added, 1 removed, 0 changed" in text
    assert f"removed {name} {gone['frames']} {gone['tracks']} {gone['pairs']} {gone['split']}" in text
    assert f"totals.pairs {before['totals']['pairs']:,} {before['totals']['pairs'] - gone['pairs']:,}" in text
    page = list_files(project / REPORT)
    run_report_data(params, project)  # on the same data it still compares with the version before
    assert list_files(project / REPORT) == page
    shutil.rmtree(project / "data")
    (project / "whole").rename(project / "data")
    run_report_data(params, project)
    assert "1 clips added, 0 removed, 0 changed" in read_text(project)


def test_a_review_shows_as_a_changed_clip_and_in_the_next_shards(project, params: Params):
    run_report_data(params, project)
    before = load_metrics(project)
    view = next(row for row in load_records(project / "data/masks/index.parquet", MaskRecord))
    pair = next(p for p in load_records(project / "data/pairs.parquet", PairRecord) if p.clip_id == view.clip_id)
    views = {(row.track, row.sample_index): row for row in load_data_set(project).tracks[view.clip_id, pair.track]}
    box = views[pair.track, pair.reference_index].box
    save_decisions([Decision(view.clip_id, pair.kind, pair.reference_index, pair.target_index, box, "drop")], project)
    run_mine_pairs(params, project)
    run_pack_shards(params, project)
    run_report_data(params, project)
    after = load_metrics(project)
    assert after["review"] == {"keep": 0, "drop": 1}
    assert after["left_out"]["mine_pairs"]["dropped_in_review"] == 1
    changes = compare_versions(before, after)
    (fields,) = changes.changed.values()
    assert {"pairs"} == set(fields)
    assert fields["pairs"][1] == fields["pairs"][0] - 1
    assert changes.counts["review.drop"] == (0, 1)
    assert "0 clips added, 0 removed, 1 changed" in read_text(project)


def test_a_fresh_clone_compares_with_the_version_committed_to_git(project, params: Params):
    run_report_data(params, project)
    committed = load_metrics(project)
    name, clip = next(iter(committed["clips"].items()))
    committed["clips"]["videos/another.mp4"] = committed["clips"].pop(name)
    (project / METRICS).write_text(json.dumps(committed))
    shutil.rmtree(project / "work")
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "-q"], ["add", "metrics"], [*identity, "commit", "-q", "-m", "metrics"]):
        subprocess.run(["git", *words], cwd=project, check=True)
    (project / METRICS).unlink()
    run_report_data(params, project)
    text = read_text(project)
    assert "Against the version committed to Git: 1 clips added, 1 removed, 0 changed" in text
    assert f"removed videos/another.mp4 {clip['frames']}" in text
