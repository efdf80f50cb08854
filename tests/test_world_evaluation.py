"""`evaluate-world`: retrieval, the choice of pairs, cases from views, sheets, and the command as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from data_prep.shards.packing import ViewKey, encode_view, write_shard
from imprint.cli import app
from imprint.core.errors import InputError
from imprint.core.masks import MASK_LEVELS
from imprint.core.params import PackShards
from imprint.core.pixels import load_image, put_on_black
from imprint.core.records import PairKind, PairRecord, ViewRecord, build_id, save_records
from imprint.data import ShardReader, View
from imprint.evaluation.summary import Groups
from imprint.evaluation.world import (
    CASE_TILES,
    OBJECT_TILES,
    WorldSettings,
    build_sheet,
    choose_object_pairs,
    find_hits,
    find_object,
    run_evaluate_world,
)
from imprint.evaluation.world_composites import build_case, build_trials, choose_scene_pairs
from imprint.evaluation.world_views import format_view_counts, measure_view_counts
from imprint.inference.composer import Compositor
from imprint.models import PRESETS, build_model, save_model
from imprint.models.presets import choose_flow
from tests.evaluation_cases import draw_case

NUM_OBJECTS, NUM_ALONE, NUM_SCENES = 5, 2, 2
SIZE_PX = 64
OUTS = ("contact_sheet.png", "objects_sheet.png", "world.json")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compositor of random weights, and a world of five objects, each seen alone twice and in two scenes."""
    root = tmp_path_factory.mktemp("world")
    torch.set_num_threads(1)
    model = build_model(PRESETS["tiny"], seed=0)
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    save_model(model, root / "compositor", stage="train_compositor", extra={})
    write_world(root / "shards", SIZE_PX)
    return root


def write_world(folder: Path, size_px: int, *, split: str = "test") -> Path:
    folder.mkdir(parents=True)
    params = PackShards(size_px=size_px, reference_px=size_px, scene_context=2.0, jpeg_quality=95, shard_mb=64.0)
    views, pairs = [], []
    for number in range(NUM_OBJECTS):
        clip_id = f"object{number}"
        for index in range(NUM_ALONE + NUM_SCENES):
            key = ViewKey(split, clip_id, 1, index)  # pyright: ignore[reportArgumentType]
            views.append((key, encode_view(*draw_view(number, index), params)))
        pairs += [build_pair("multiview", split, clip_id, 0, 1), build_pair("multiview", split, clip_id, 1, 0)]
        scenes = range(NUM_ALONE, NUM_ALONE + NUM_SCENES)
        turns_deg = {0: 10.0, 1: 100.0}
        pairs += [
            build_pair("video", split, clip_id, alone, scene, turn_deg=turns_deg[alone])
            for alone in range(NUM_ALONE)
            for scene in scenes
        ]
        pairs += [build_pair("single", split, clip_id, alone, alone) for alone in range(NUM_ALONE)]
    save_records(folder / "views.parquet", ViewRecord, write_shard(folder / "test-00000.tar", views))
    save_records(folder / "pairs.parquet", PairRecord, pairs)
    return folder


def draw_view(number: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    case = draw_case(20 + number, SIZE_PX)
    if index >= NUM_ALONE:
        return np.roll(case["truth"], index, 1), np.roll(case["object_mask"], index, 1)
    image, mask = put_on_black(case["reference"]), case["reference"][..., 3] > 127
    return np.roll(image, 2 * index, 1), np.roll(mask, 2 * index, 1)


def build_pair(
    kind: PairKind, split: str, clip_id: str, reference: int, target: int, *, turn_deg: float = 30.0
) -> PairRecord:
    return PairRecord(
        pair_id=build_id(kind, clip_id, reference, target),
        kind=kind,
        split=split,  # pyright: ignore[reportArgumentType]
        clip_id=clip_id,
        track=1,
        reference_index=reference,
        target_index=target,
        gap_frames=0,
        gap_s=0.0,
        view_change=turn_deg / 180.0,
    )


def run(project: Path, out: Path, *options: str) -> str:
    folders = ["--model", str(project / "compositor"), "--shards", str(project / "shards"), "--out", str(out)]
    done = CliRunner().invoke(app, ["evaluate-world", *folders, "--steps", "2", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_each_true_picture_is_found_and_an_exchanged_one_is_not() -> None:
    colours = [(230, 40, 40), (40, 230, 40), (40, 40, 230), (230, 230, 40)]
    mask = np.zeros((32, 32), bool)
    mask[8:24, 10:22] = True
    gallery = [(np.where(mask[..., None], np.uint8(colour), np.uint8(0)), mask) for colour in colours]
    assert find_hits(gallery, gallery).tolist() == [1, 1, 1, 1]
    swapped = [gallery[1], gallery[0], gallery[2], gallery[3]]
    assert find_hits(swapped, gallery).tolist() == [0, 0, 1, 1]


def test_the_objects_mask_is_the_largest_bright_piece_without_holes() -> None:
    sample = np.full((32, 32, 3), 8, np.uint8)  # not quite black
    sample[4:20, 6:26, 1] = 200
    sample[10:12, 10:12] = 0  # a dark print
    sample[28:30, 28:30] = 255  # a speck
    expected = np.zeros((32, 32), bool)
    expected[4:20, 6:26] = True
    assert np.array_equal(find_object(sample), expected)
    assert find_object(np.zeros((32, 32, 3), np.uint8)).all()


def test_an_objects_pair_depends_on_the_seed_and_the_object_alone(project: Path) -> None:
    pairs = ShardReader(project / "shards").pairs
    chosen = choose_object_pairs(pairs, WorldSettings())
    assert [pair.clip_id for pair in chosen] == [f"object{number}" for number in range(NUM_OBJECTS)]
    assert {pair.kind for pair in chosen} == {"multiview"}
    assert choose_object_pairs(pairs[::-1], WorldSettings()) == chosen
    few = choose_object_pairs(pairs, WorldSettings(max_objects=3))
    assert len(few) == 3
    assert set(few) < set(chosen)
    others = [choose_object_pairs(pairs, WorldSettings(seed=seed)) for seed in range(1, 5)]
    assert any(other != chosen for other in others)


def test_a_stratum_holds_one_pair_of_each_of_its_objects(project: Path) -> None:
    pairs = ShardReader(project / "shards").pairs
    objects = [f"object{number}" for number in range(NUM_OBJECTS)]
    chosen = choose_scene_pairs(pairs, objects, per_stratum=40, seed=0)
    assert list(chosen) == ["0-20", "90-180"]  # a stratum without pairs is left out
    for view_change, found in chosen.items():
        assert sorted(pair.clip_id for pair in found) == objects
        assert {pair.view_change < 0.2 for pair in found} == {view_change == "0-20"}
    assert choose_scene_pairs(pairs[::-1], objects, per_stratum=40, seed=0) == chosen
    few = choose_scene_pairs(pairs, objects, per_stratum=2, seed=0)
    assert {name: found[:2] for name, found in chosen.items()} == few
    assert any(choose_scene_pairs(pairs, objects, per_stratum=2, seed=seed) != few for seed in range(1, 6))
    assert choose_scene_pairs(pairs, objects[:1], per_stratum=40, seed=0)["0-20"][0].clip_id == "object0"


def test_without_a_plate_a_case_shows_nothing_of_the_truth_inside_its_largest_hole(project: Path) -> None:
    reader = ShardReader(project / "shards")
    pair = next(pair for pair in reader.pairs if pair.kind == "video")
    reference, target = reader.read_pair(pair)
    case = build_case(reference, target, pair=pair)
    assert list(case.references) == ["0-20"]
    box = case.holes["box"]
    assert np.array_equal(case.plate[~box], target.scene[~box])
    assert not case.shadow_mask.any()
    for level in MASK_LEVELS:
        assert case.holes[level][target.mask].all()
        assert np.array_equal(case.holes[level], target.mask) == (level == "exact")
    other = View(target.object_rgba, np.where(box[..., None], 255 - target.scene, target.scene), target.mask)
    assert np.array_equal(build_case(reference, other, pair=pair).plate, case.plate)


def test_with_a_plate_the_shadow_is_where_it_differs_from_the_scene(project: Path) -> None:
    reader = ShardReader(project / "shards")
    pair = next(pair for pair in reader.pairs if pair.kind == "video")
    reference, target = reader.read_pair(pair)
    shadow = np.roll(target.mask, 6, 0) & ~target.mask
    plate = np.where((shadow | target.mask)[..., None], np.uint8(240), target.scene)
    plate[~shadow & ~target.mask] ^= 1  # less than what counts
    case = build_case(reference, View(target.object_rgba, target.scene, target.mask, plate), pair=pair)
    assert case.plate is plate
    assert np.array_equal(case.shadow_mask, shadow & (np.abs(240.0 - target.scene).mean(-1) > 0.03 * 255))
    assert case.shadow_mask.sum() > 20


def test_every_case_is_tried_at_every_level_and_counted_within_its_stratum(project: Path) -> None:
    reader = ShardReader(project / "shards")
    objects = [f"object{number}" for number in range(3)]
    chosen = choose_scene_pairs(reader.pairs, objects, per_stratum=40, seed=0)
    cases = [build_case(*reader.read_pair(pair), pair=pair) for found in chosen.values() for pair in found]
    trials = build_trials(cases, seed=7)
    assert [trial.level for trial in trials[: len(MASK_LEVELS)]] == list(MASK_LEVELS)
    places = [(trial.view_change, trial.place) for trial in trials[:: len(MASK_LEVELS)]]
    assert places == [(name, place) for name in ("0-20", "90-180") for place in range(3)]
    assert len({trial.seed for trial in trials}) == len(cases)


def test_a_hole_never_covers_all_of_the_scene() -> None:
    mask = np.zeros((64, 64), bool)
    mask[9:55, 9:55] = True  # its box with the margin would
    view = View(np.full((64, 64, 4), 255, np.uint8), np.full((64, 64, 3), 90, np.uint8), mask)
    hole = build_case(view, view, pair=build_pair("video", "test", "a", 0, 1)).holes["box"]
    assert hole[mask].all()
    assert not hole.all()


def test_tiles_of_a_sheet_keep_their_pixels() -> None:
    tiles = [np.random.default_rng(n).integers(0, 256, (SIZE_PX, SIZE_PX, 3)).astype(np.uint8) for n in range(6)]
    rows = [(tiles[:2], ("a", "b")), (tiles[2:4], ("c", "d")), (tiles[4:], ("e", "f"))]
    sheet = build_sheet(rows, ("one", "two"))
    for number, tile in enumerate(tiles):
        row, place = divmod(number, 2)
        y0, x0 = 26 + row // 2 * 68, row % 2 * (92 + 2 * 68) + 92 + place * 68
        assert np.array_equal(sheet[y0 : y0 + SIZE_PX, x0 : x0 + SIZE_PX], tile)


def test_the_same_seed_gives_the_same_files(project: Path, tmp_path: Path) -> None:
    printed = run(project, tmp_path / "a")
    assert run(project, tmp_path / "b") == printed
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab")
    assert tuple(sorted(first)) == OUTS
    assert first == second
    results = json.loads(first["world.json"])
    identity, composites = results["identity"], results["composites"]
    assert (identity["num_objects"], identity["chance_top1"]) == (NUM_OBJECTS, 0.2)
    assert identity["ceiling_top1"]["mean"] == 1.0
    assert (composites["num_composites"], composites["num_objects"]) == (NUM_OBJECTS * 2 * 4, NUM_OBJECTS)
    assert set(composites["levels"]) == set(MASK_LEVELS)
    assert set(composites["view_changes"]) == set(composites["cells"]) == {"0-20", "90-180"}
    low, high = composites["intervals"]["levels"]["box"]["paste"]["object_psnr_db"]
    assert low <= composites["levels"]["box"]["paste"]["object_psnr_db"] <= high
    assert composites["identity"]["chance_top1"] == 0.2
    assert composites["checks"]["outside_changed"] == 0.0
    assert "| outline IoU | box | at least 0.80 |" in printed
    gain = identity["right_psnr_db"]["mean"] - identity["stranger_psnr_db"]["mean"]
    assert gain == pytest.approx(identity["gain_psnr_db"]["mean"], abs=2e-4)
    assert results["protocol"]["hash"] in printed
    side_px = SIZE_PX + 4
    for name, titles, rows in (("contact_sheet", CASE_TILES, 5), ("objects_sheet", OBJECT_TILES, 3)):
        shape = load_image(tmp_path / "a" / f"{name}.png").shape
        assert shape == (26 + rows * side_px, 2 * (92 + len(titles) * side_px), 3)


def test_more_views_are_told_only_where_the_model_chooses_among_them(project: Path) -> None:
    """A flow that expects the same error of every view keeps the first one; one that does not takes others."""
    reader = ShardReader(project / "shards")
    chosen = choose_scene_pairs(reader.pairs, [f"object{n}" for n in range(NUM_OBJECTS)], per_stratum=5, seed=0)
    settings = WorldSettings(steps=1)
    groups = Groups(view_changes=list(chosen), levels=MASK_LEVELS, bootstrap_samples=50, seed=0)
    options = {"making": settings.describe_making(), "groups": groups}
    model = build_model(choose_flow(PRESETS["tiny"], wanted=True), seed=0)
    same = measure_view_counts(Compositor(model), reader, chosen, **options)
    assert set(same) == {"0-20", "90-180"}
    assert all(counts["1"] == counts["4"] == counts["12"] for counts in same.values())
    assert model.appearance_flow is not None
    torch.nn.init.normal_(model.appearance_flow.error.weight, generator=torch.Generator().manual_seed(0))
    other = measure_view_counts(Compositor(model), reader, chosen, **options)
    assert all(counts["1"] == same[name]["1"] for name, counts in other.items())
    assert any(counts["1"] != counts["12"] for counts in other.values())
    assert "| 0-20 | object psnr db |" in format_view_counts(other)
    assert measure_view_counts(Compositor(build_model(PRESETS["tiny"], seed=0)), reader, chosen, **options) == {}


def test_other_settings_are_another_protocol(project: Path, tmp_path: Path) -> None:
    settings = [WorldSettings(steps=1, max_objects=2), WorldSettings(steps=1, max_objects=2, guidance=2.0)]
    results = [
        run_evaluate_world(project / "compositor", project / "shards", out=tmp_path, settings=each) for each in settings
    ]
    assert results[0]["identity"]["num_objects"] == 2
    assert results[0]["protocol"]["hash"] != results[1]["protocol"]["hash"]
    assert results[0]["model"] == results[1]["model"]


def test_bad_input_is_one_line_that_names_culprit_and_remedy(project: Path, tmp_path: Path) -> None:
    def fail(match: str, shards: Path = project / "shards", out: Path = tmp_path / "out", **changes: int | str) -> None:
        settings = WorldSettings(**{"steps": 1, **changes})  # pyright: ignore[reportArgumentType]
        with pytest.raises(InputError, match=match) as caught:
            run_evaluate_world(project / "compositor", shards, out=out, settings=settings)
        assert "\n" not in str(caught.value)

    fail("--objects at least 2", max_objects=1)
    fail("--objects at least 2", max_objects=-3)
    fail("--steps", steps=0)
    fail("--pairs", pairs_per_stratum=0)
    (tmp_path / "file").write_text("")
    fail(r"--out .*file is a file; name a folder", out=tmp_path / "file")
    fail(r"none.pairs\.parquet cannot be read", shards=tmp_path / "none")
    fail(r"shards has 0 objects .* in split val, 2 and 1 are needed; pack", split="val")
    train = write_world(tmp_path / "train", SIZE_PX, split="train")
    fail(r"train has 0 objects .* in split test, 2 and 1 are needed; pack", shards=train)
    large = write_world(tmp_path / "large", 96)
    fail(r"size_px 96, but preset tiny needs 64", shards=large)
    assert not (tmp_path / "out").exists()


def test_the_command_exits_with_two_and_the_line(project: Path, tmp_path: Path) -> None:
    folders = ["--model", str(tmp_path), "--shards", str(project / "shards"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["evaluate-world", *folders])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"evaluate-world: {tmp_path} holds no model")
    assert done.stderr.count("\n") == 1


def test_a_composite_leaves_the_scene_alone_outside_the_hole(project: Path, tmp_path: Path) -> None:
    """Read off the contact sheet: what is no hole in the second tile is equal in the third to the fifth."""
    run(project, tmp_path, "--objects", "2")
    sheet = load_image(tmp_path / "contact_sheet.png")
    _, marked, ours, paste, truth = (
        sheet[26 : 26 + SIZE_PX, 92 + place * 68 : 92 + place * 68 + SIZE_PX] for place in range(len(CASE_TILES))
    )
    outside = cv2.erode((marked == truth).all(axis=-1).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert outside.sum() > 100
    assert np.array_equal(ours[outside], truth[outside])
    assert np.array_equal(paste[outside], truth[outside])
    assert not np.array_equal(ours, truth)
