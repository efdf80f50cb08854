"""The decisions of a review: the file, what a line is about, and what mining makes of it."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from pathlib import Path

import pytest

from data_prep.decisions import DECISIONS, Decision, drop_reviewed, find_keys, load_decisions, save_decisions
from data_prep.pairs.stage import run_mine_pairs
from imprint.core.errors import InputError
from imprint.core.params import Params
from imprint.core.records import MaskRecord, PairRecord, Rejection, load_records
from tests.source_tree import ROOT

TRACK = Decision("clip", "track", 3, 3, (10, 20, 40, 60), "drop", "joins two, or three")
PAIR = Decision("clip", "video", 3, 5, (10, 20, 40, 60), "keep")


def write_lines(root: Path, *lines: str) -> None:
    (root / "review").mkdir(exist_ok=True)
    (root / DECISIONS).write_text(
        "".join(f"{line}\n" for line in ("clip_id,kind,frame,target_frame,box,decision,note", *lines))
    )


def decide(view: MaskRecord, target: int | None = None, *, kind: str = "track", decision: str = "drop") -> Decision:
    target = view.sample_index if target is None else target
    return Decision(view.clip_id, kind, view.sample_index, target, view.box, decision)  # pyright: ignore


# --- the file -------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded_in_one_order_whatever_the_order_of_saving(tmp_path):
    save_decisions([PAIR, TRACK], tmp_path)
    first = (tmp_path / DECISIONS).read_bytes()
    assert load_decisions(tmp_path) == [TRACK, PAIR]
    save_decisions([TRACK, PAIR], tmp_path)
    assert (tmp_path / DECISIONS).read_bytes() == first
    assert first.count(b"\n") == 3


def test_the_repositorys_file_holds_no_decision_and_is_what_mining_depends_on():
    assert load_decisions(ROOT) == []
    assert load_decisions(ROOT / "tests") == []  # no file is no decision
    assert f"- {DECISIONS}" in (ROOT / "dvc.yaml").read_text().split("mine_pairs:")[1].split("outs:")[0]


@pytest.mark.parametrize(
    "line",
    [
        "<<<<<<< ours",
        "clip,track,3,3,1 2 3,drop,",
        "clip,trunk,3,3,1 2 3 4,drop,",
        "clip,track,3,3,1 2 3 4,maybe,",
        "clip",
    ],
)
def test_a_line_that_is_no_decision_is_named(tmp_path, line):
    write_lines(tmp_path, "clip,track,3,3,1 2 3 4,drop,", line)
    with pytest.raises(InputError, match=r"decisions\.csv: line 3 is no decision"):
        load_decisions(tmp_path)


def test_lines_of_a_merge_may_agree_but_not_contradict(tmp_path):
    line = "clip,track,3,3,1 2 3 4,{},"
    write_lines(tmp_path, line.format("drop"), line.format("drop"))
    assert len(load_decisions(tmp_path)) == 1
    write_lines(tmp_path, line.format("drop"), line.format("keep"))
    with pytest.raises(InputError, match="lines 2 and 3 contradict each other"):
        load_decisions(tmp_path)


# --- what they are about --------------------------------------------------------------------------------------------


def test_an_object_is_found_by_its_place_under_another_number(prepared):
    masks = load_records(prepared / "data/masks/index.parquet", MaskRecord)
    view = masks[0]
    moved = dataclasses.replace(view, track=7, box=tuple(edge + 1 for edge in view.box))
    elsewhere = dataclasses.replace(view, box=tuple(edge + 60 for edge in view.box))
    decisions = [decide(view), decide(view, masks[2].sample_index, kind="video")]
    assert find_keys(decisions, masks)[0] == ("track", view.clip_id, view.track, -1, -1)
    assert find_keys(decisions, [moved]) == [
        ("track", view.clip_id, 7, -1, -1),
        ("video", view.clip_id, 7, view.sample_index, masks[2].sample_index),
    ]
    assert find_keys(decisions, [elsewhere]) == [None, None]


# --- what mining makes of them --------------------------------------------------------------------------------------


def test_mining_leaves_out_what_was_dropped_and_nothing_else(prepared, tmp_path, clip_params: Params, capsys):
    (tmp_path / "data").mkdir()
    for name in ("clips.parquet", "frames", "masks"):
        (tmp_path / "data" / name).symlink_to(prepared / "data" / name)
    masks = load_records(prepared / "data/masks/index.parquet", MaskRecord)
    before = load_records(prepared / "data/pairs.parquet", PairRecord)
    views = {(row.clip_id, row.track, row.sample_index): row for row in masks}
    of_track = [pair for pair in before if (pair.clip_id, pair.track) == (before[0].clip_id, before[0].track)]
    others = [pair for pair in before if pair.kind == "video" and pair.clip_id != before[0].clip_id]
    dropped, kept = others[0], others[1]
    end = views[dropped.clip_id, dropped.track, dropped.target_index]  # named from its other end: the same pair
    lines = [
        decide(views[before[0].clip_id, before[0].track, before[0].reference_index]),
        decide(end, dropped.reference_index, kind="video"),
        decide(views[kept.clip_id, kept.track, kept.reference_index], kept.target_index, kind="video", decision="keep"),
        dataclasses.replace(TRACK, clip_id="gone"),
    ]
    save_decisions(lines, tmp_path)
    section = clip_params.mine_pairs.model_copy(update={"min_pairs_per_split": 0})
    run_mine_pairs(clip_params.model_copy(update={"mine_pairs": section}), tmp_path)
    told = capsys.readouterr().err
    after = load_records(tmp_path / "data/pairs.parquet", PairRecord)
    left_out = {pair.pair_id for pair in [*of_track, dropped]}
    assert [pair.pair_id for pair in after] == [pair.pair_id for pair in before if pair.pair_id not in left_out]
    rows = load_records(tmp_path / "data/ledgers/mine_pairs.parquet", Rejection)
    details = [row.detail for row in rows if row.reason == "dropped_in_review"]
    low, high = sorted((dropped.reference_index, dropped.target_index))
    assert sorted(details) == sorted([f"the track, {len(of_track)} pairs", f"video pair of frames {low} and {high}"])
    assert "1 drops in review/decisions.csv fit nothing that is there now (the first: track of clip gone" in told


def test_a_dropped_pair_that_is_not_mined_any_more_is_told_not_an_error(prepared, tmp_path, capsys):
    masks = load_records(prepared / "data/masks/index.parquet", MaskRecord)
    pairs = load_records(prepared / "data/pairs.parquet", PairRecord)
    save_decisions([decide(masks[0], masks[1].sample_index, kind="multiview")], tmp_path)
    pairs = [pair for pair in pairs if pair.clip_id != masks[0].clip_id]
    assert drop_reviewed(pairs, masks, tmp_path) == (pairs, [])
    assert "multiview of clip" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "review")
    assert drop_reviewed(pairs, masks, tmp_path) == (pairs, [])
    assert Counter(capsys.readouterr().err) == {}
