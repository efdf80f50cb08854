"""Sources of each layout, from the files to the pairs; and what `validate` says of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from data_prep.frames.stage import run_extract_frames
from data_prep.ingest.layouts import find_layout
from data_prep.ingest.stage import run_ingest
from data_prep.masks.stage import run_segment_objects
from data_prep.pairs.stage import run_mine_pairs
from data_prep.shards.stage import run_pack_shards
from data_prep.validate import validate_source
from flows.cli import app
from imprint.core.params import Params
from imprint.core.pixels import save_image
from imprint.core.records import ClipRecord, FrameRecord, MaskRecord, PairRecord, Rejection, load_records
from tests.video_clips import SIZE_PX, draw_frame, draw_turning, write_video

STAGES = (run_ingest, run_extract_frames, run_segment_objects, run_mine_pairs, run_pack_shards)
DOC = Path(__file__).parents[1] / "docs" / "data_format.md"


def draw(seed: int, turn: float) -> tuple[np.ndarray, np.ndarray]:
    """Picture of one turning object, and where it is."""
    image = draw_frame(seed, [(48, 48, turn)], style=seed)
    return image, np.ptp(image, axis=2) > 60


def save_ids(path: Path, ids: np.ndarray) -> None:
    """Palette PNG whose pixel value is the object's id."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids.astype(np.uint8), mode="P")
    image.putpalette([value for number in range(256) for value in (number, 255 - number, 90)])
    image.save(path)


def write_davis(root: Path, videos: int = 3, frames: int = 10, step: int = 1) -> Path:
    """Videos with object 7 and an ignored strip of 255."""
    for video in range(videos):
        for number in range(frames):
            image, mask = draw(video, number / 3)
            save_image(root / f"JPEGImages/480p/v{video}/{number * step:05d}.jpg", image)
            ids = np.where(mask, 7, 0)
            ids[:, :3] = 255
            save_ids(root / f"Annotations/480p/v{video}/{number * step:05d}.png", ids)
    return root


def write_mvimgnet(root: Path, beside: bool, objects: int = 3) -> Path:
    for number in range(objects):
        for view in range(4):
            image, mask = draw(number, view / 2)
            folder = root / f"cat/obj{number}"
            save_image(folder / ("" if beside else "images") / f"{view:03d}.jpg", image)
            save_image(folder / (f"{view:03d}.jpg.png" if beside else f"masks/{view:03d}.png"), mask)
    return root


def write_photo_sets(root: Path, folders: int = 3) -> Path:
    for number in range(folders):
        for view in range(4):
            save_image(root / f"thing{number}/{view:02d}.jpg", draw(number, view / 2)[0])
    return root


def write_images(root: Path, count: int = 3) -> Path:
    for number in range(count):
        save_image(root / f"{number}.jpg", draw(number, number)[0])
    return root


def run_all(root: Path, source: Path, params: Params, **ingest: object) -> None:
    """All data stages over `source`, with limits that fit so little data."""
    mine = {"min_clips_per_split": 1, "min_pairs_per_split": 0, "min_view_change": 0.05}
    params = params.model_copy(
        update={
            "ingest": params.ingest.model_copy(update={"source": str(source), **ingest}),
            "mine_pairs": params.mine_pairs.model_copy(update=mine),
        }
    )
    for run in STAGES:
        run(params, root)


def load_pairs(root: Path) -> list[PairRecord]:
    return load_records(root / "data/pairs.parquet", PairRecord)


def list_reasons(root: Path, stage: str) -> Counter[str]:
    return Counter(row.reason for row in load_records(root / f"data/ledgers/{stage}.parquet", Rejection))


def test_davis_keeps_ids_and_gives_all_kinds(tmp_path, clip_params):
    source = write_davis(tmp_path / "source")
    params = clip_params.extract_frames.model_copy(update={"sample_fps": 24.0})
    run_all(tmp_path, source, clip_params.model_copy(update={"extract_frames": params}))
    masks = load_records(tmp_path / "data/masks/index.parquet", MaskRecord)
    assert {row.track for row in masks} == {7}
    assert len(masks) == 30
    assert {pair.kind for pair in load_pairs(tmp_path)} == {"multiview", "video", "single"}
    frames = load_records(tmp_path / "data/frames/index.parquet", FrameRecord)
    assert [frame.time_s for frame in frames[:3]] == pytest.approx([0, 1 / 24, 2 / 24])


def test_youtube_vos_counts_annotated_frames_and_leaves_the_others_out(tmp_path, clip_params):
    source = write_davis(tmp_path / "source", step=5)
    (source / "meta.json").write_text("{}")
    save_image(source / "JPEGImages/480p/v0/00001.jpg", draw(0, 0.1)[0])
    (source / "Annotations/480p/v1/00015.png").unlink()
    run_all(tmp_path, source, clip_params)
    frames = load_records(tmp_path / "data/frames/index.parquet", FrameRecord)
    names = {clip.clip_id: Path(clip.path).name for clip in load_records(tmp_path / "data/clips.parquet", ClipRecord)}
    of_v1 = [frame.sample_index for frame in frames if names[frame.clip_id] == "v1"]
    assert of_v1 == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert max(frame.time_s for frame in frames) == pytest.approx(9 / 6)
    assert list_reasons(tmp_path, "ingest") == {"no_mask": 2}


@pytest.mark.parametrize("beside", [True, False])
def test_mvimgnet_gives_views_and_no_video_pairs(beside, tmp_path, clip_params):
    run_all(tmp_path, write_mvimgnet(tmp_path / "source", beside), clip_params)
    assert {row.confidence for row in load_records(tmp_path / "data/masks/index.parquet", MaskRecord)} == {1.0}
    assert {pair.kind for pair in load_pairs(tmp_path)} == {"multiview", "single"}


def test_photo_sets_join_photos_of_one_folder_only(tmp_path, clip_params):
    source = write_photo_sets(tmp_path / "source")
    (source / "thing1/04.jpg").write_bytes((source / "thing1/00.jpg").read_bytes())
    (source / "thing2/04.jpg").write_bytes(b"no picture")
    (source / "licences.csv").write_text("path_prefix,licence\nthing0,CC-BY-4.0\nthing9,MIT\n")
    run_all(tmp_path, source, clip_params)
    pairs = load_pairs(tmp_path)
    assert {pair.kind for pair in pairs} == {"multiview", "single"}
    assert {pair.track for pair in pairs} == {1}
    clips = load_records(tmp_path / "data/clips.parquet", ClipRecord)
    assert {pair.clip_id for pair in pairs} == {clip.clip_id for clip in clips}
    assert len({(pair.clip_id, pair.split) for pair in pairs}) == len(clips)
    assert {Path(clip.path).name: clip.licence for clip in clips}["thing0"] == "CC-BY-4.0"
    assert list_reasons(tmp_path, "ingest") == {"unused_licence": 1}
    assert list_reasons(tmp_path, "extract_frames") == {"duplicate": 1, "undecodable": 1}
    licences = json.loads((tmp_path / "data/shards/licences.json").read_text())
    assert licences == [
        {"source": str(source), "licence": "CC-BY-4.0", "items": 1},
        {"source": str(source), "licence": clip_params.ingest.licence, "items": 2},
    ]


def test_single_images_give_single_pairs(tmp_path, clip_params):
    run_all(tmp_path, write_images(tmp_path / "source"), clip_params)
    assert [pair.kind for pair in load_pairs(tmp_path)] == ["single"] * 3


def test_of_two_layouts_the_stricter_one_is_read_and_the_other_named(tmp_path, clip_params):
    source = tmp_path / "source"
    write_photo_sets(source)
    write_images(source)
    assert find_layout(source, "ingest.source: here")[0] == "photo_sets"
    for number in range(3):  # a folder of videos with their previews beside them
        write_video(source / f"thing{number}/clip.mp4", draw_turning(number, 10))
    layout, _, others = find_layout(source, "ingest.source: here")
    assert (layout, [name for name, _ in others]) == ("videos", ["photo_sets", "images"])
    ingest = clip_params.ingest.model_copy(update={"source": str(source)})
    run_ingest(clip_params.model_copy(update={"ingest": ingest}), tmp_path)
    assert {clip.layout for clip in load_records(tmp_path / "data/clips.parquet", ClipRecord)} == {"videos"}
    assert list_reasons(tmp_path, "ingest") == {"other_layout": 2, "not_read": 4}
    page, _ = validate_source(str(source), clip_params)
    assert "other_layout (2)" in page
    assert "photo_sets: 3 folders with photos" in page
    assert "read as videos" in page
    write_davis(source)
    assert find_layout(source, "ingest.source: here")[0] == "davis"


def test_validate_counts_the_masks_that_later_filters_reject(tmp_path, clip_params):
    source = write_davis(tmp_path / "source")
    masks = source / "Annotations/480p"
    whole = np.asarray(Image.open(masks / "v0/00001.png"))
    bits = np.where(whole == 7, 7, 0)
    bits[10:14, 10:14] = 3  # a second object, too small
    save_ids(masks / "v0/00001.png", bits)
    torn = np.where(whole == 7, 7, 0)
    torn[:, 46:50] = 0
    save_ids(masks / "v0/00002.png", torn)
    cut = np.zeros_like(whole)
    cut[:60, :50] = 7
    save_ids(masks / "v1/00001.png", cut)
    full = np.full_like(whole, 7)
    save_ids(masks / "v2/00001.png", full)
    page, usable = validate_source(str(source), clip_params)
    assert usable
    assert "objects   4, in 27 usable masks of 31" in page
    for reason in ("too_small (1)", "in_pieces (1)", "border_contact (1)", "too_large (1)"):
        assert page.count(reason) == 1


def test_validate_says_which_licences_are_only_the_default(tmp_path, clip_params):
    source = write_photo_sets(tmp_path / "source")
    default = clip_params.ingest.licence
    page, _ = validate_source(str(source), clip_params)
    assert f"{default} (3); 3 not named in licences.csv: {default} is ingest.licence of params.yaml" in page
    (source / "licences.csv").write_text("path_prefix,licence\nthing0,CC-BY-4.0\n")
    page, _ = validate_source(str(source), clip_params)
    assert f"CC-BY-4.0 (1), {default} (2); 2 not named" in page
    (source / "licences.csv").write_text("path_prefix,licence\nthing0,CC-BY-4.0\n.,MIT\n")
    page, _ = validate_source(str(source), clip_params)
    assert "licences  CC-BY-4.0 (1), MIT (2)\n" in page


def test_validate_names_the_layout_and_each_kind_of_problem_once(tmp_path, clip_params):
    source = write_davis(tmp_path / "source")
    for name in ("v0/00003.png", "v1/00003.png"):
        (source / "Annotations/480p" / name).write_bytes(b"no mask")
    save_ids(source / "Annotations/480p/v2/00000.png", np.zeros((SIZE_PX, 30)))
    before = sorted(tmp_path.rglob("*"))
    page, usable = validate_source(str(source), clip_params)
    assert usable
    assert "layout    davis: folders JPEGImages and Annotations (DAVIS, 24" in page
    assert "items     3 usable of 3" in page
    assert "frames    27 usable" in page
    assert "objects   3, in 27 usable masks of 27" in page
    assert page.count("bad_mask (2)") == page.count("mask_size (1)") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_ends_with_0_or_2(tmp_path):
    good = CliRunner().invoke(app, ["data", "validate", str(write_images(tmp_path / "good"))])
    (tmp_path / "empty").mkdir()
    bad = CliRunner().invoke(app, ["data", "validate", str(tmp_path / "empty")])
    assert (good.exit_code, bad.exit_code) == (0, 2)
    assert "has none of the layouts" in bad.output


def test_the_documented_record_is_what_the_code_gives(tmp_path, clip_params):
    write_photo_sets(tmp_path / "photos", folders=1)
    params = clip_params.ingest.model_copy(update={"source": "photos", "licence": "CC-BY-4.0"})
    run_ingest(clip_params.model_copy(update={"ingest": params}), tmp_path)
    (clip,) = load_records(tmp_path / "data/clips.parquet", ClipRecord)
    example = json.loads(DOC.read_text().split("```json\n")[1].split("```")[0])
    assert example == json.loads(json.dumps(vars(clip)))
