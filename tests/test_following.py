"""The second backend with a SAM 2 of random weights: its masks are noise, its mechanics are not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession
from transformers.models.sam2_video.video_processing_sam2_video import Sam2VideoVideoProcessor

from data_prep.frames.stage import run_extract_frames
from data_prep.ingest.stage import run_ingest
from data_prep.masks.following import (
    Prompt,
    choose_prompts,
    cut_tracks,
    follow_prompts,
    list_shots,
    measure_objects,
    separate,
)
from data_prep.masks.stage import run_segment_objects
from data_prep.masks.tracking import Track
from data_prep.tars import read_tar
from data_prep.validate import validate_source
from imprint.core.errors import InputError
from imprint.core.geometry import Box
from imprint.core.params import Params, Sam2
from imprint.core.pixels import decode_image
from imprint.core.records import ClipRecord, MaskRecord, Rejection, load_records
from imprint.doctor import describe_source, list_sources
from imprint.segmentation import build_follower, networks
from imprint.segmentation.following import ObjectFollower, prepare_mask, prepare_picture
from tests.sam2_weights import SIDE_PX, write_sam2
from tests.test_data_prep_masks import BLUE, HW, PARAMS, RED, draw_objects, find, make_frames, square
from tests.video_clips import SIZE_PX, draw_cut, draw_turning, write_video

MASKS = {7: (slice(16, 48), slice(32, 64)), 3: (slice(16, 48), slice(64, 96))}  # two squares that touch


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sam2(tmp_path_factory.mktemp("sam2"))


@pytest.fixture(scope="module")
def follower(weights: Path) -> ObjectFollower:
    return build_follower(Sam2(weights=str(weights), revision=""))


def make_pictures(count: int, side: int = SIDE_PX) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(count)]


def make_masks() -> dict[int, np.ndarray]:
    masks = {}
    for number, place in MASKS.items():
        masks[number] = np.zeros((SIDE_PX, SIDE_PX), bool)
        masks[number][place] = True
    return masks


# --- the model ------------------------------------------------------------------------------------------------------


def test_the_constants_are_the_published_ones() -> None:
    published = Sam2VideoVideoProcessor
    assert tuple(published.image_mean) == networks.IMAGENET_MEAN
    assert tuple(published.image_std) == networks.IMAGENET_STD
    assert published.size == {"height": 1024, "width": 1024}
    assert published.resample == Image.Resampling.BILINEAR
    picture = np.random.default_rng(1).integers(0, 256, (96, 128, 3), np.uint8)
    assert prepare_picture(picture, 1024).shape == (1, 3, 1024, 1024)
    same_size = prepare_picture(picture[:, :96], 96)[0].permute(1, 2, 0).numpy()
    expected = (picture[:, :96] / 255 - published.image_mean) / published.image_std
    np.testing.assert_allclose(same_size, expected, atol=1e-5)


def test_a_square_comes_back_from_every_size_but_for_its_corners(follower: ObjectFollower) -> None:
    for side in (96, 128, 256):
        mask = np.zeros((side, side), bool)
        mask[side // 4 : side // 2, side // 4 : 3 * side // 4] = True
        assert prepare_mask(mask, SIDE_PX).sum() == SIDE_PX**2 // 8
        logits = next(follower.follow(make_pictures(1, side), {1: mask}))
        lost = np.argwhere((follower.enlarge(logits, (side, side))[0] > 0) != mask)
        corners = {(y, x) for y in (side // 4, side // 2 - 1) for x in (side // 4, 3 * side // 4 - 1)}
        cell_px = 4 * side / SIDE_PX  # of the model's logits
        assert all(min(abs(y - b) + abs(x - a) for b, a in corners) < cell_px for y, x in lost.tolist())


def test_what_is_forgotten_changes_nothing_in_either_direction(follower: ObjectFollower) -> None:
    """Against the class's own pass over a whole video, longer than it remembers, in which nothing is forgotten."""
    pictures, masks, count = make_pictures(12), make_masks(), 12
    assert follower.count_remembered() < count - 3
    video = torch.cat([prepare_picture(picture, SIDE_PX) for picture in pictures])
    for way in (list(range(count)), list(range(count - 1, -1, -1))):
        session = Sam2VideoInferenceSession(video=video, dtype=torch.float32)
        for number, mask in masks.items():
            session.add_mask_inputs(session.obj_id_to_idx(number), way[0], prepare_mask(mask, SIDE_PX))
        session.obj_with_new_inputs = list(masks)
        follower.model(session, frame_idx=way[0])
        whole = follower.model.propagate_in_video_iterator(session, start_frame_idx=way[0], reverse=way[0] > 0)
        expected = [output.pred_masks[:, 0].numpy() for output in whole]
        found = list(follower.follow((pictures[place] for place in way), masks))
        assert [logits.shape for logits in found] == [(2, 32, 32)] * count
        np.testing.assert_array_equal(np.stack(found), np.stack(expected))
    assert len({logits.tobytes() for logits in found}) == count, "every picture has an answer of its own"


def test_an_object_is_followed_the_same_alone_and_beside_another(follower: ObjectFollower) -> None:
    pictures, masks = make_pictures(4), make_masks()
    both = np.stack(list(follower.follow(pictures, masks)))
    for row, (number, mask) in enumerate(masks.items()):
        alone = np.stack(list(follower.follow(pictures, {number: mask})))
        np.testing.assert_allclose(both[:, row], alone[:, 0], rtol=1e-2, atol=1e-2)
    assert np.abs(both[1:, 0] - both[1:, 1]).max() > 1.0


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: Sam2(weights="", revision=""), r"segment_objects.sam2.weights: '' is no folder and no hub id"),
        (
            lambda folder: Sam2(weights="facebook/sam2", revision=""),
            r"segment_objects.sam2.revision: '' is no commit of facebook/sam2; `imprint doctor --download`",
        ),
        (lambda folder: rewrite(folder, model_type="sam2"), r"holds a sam2, not a sam2_video"),
        (lambda folder: rewrite(folder, num_maskmem=5), r"1 of another shape \(memory_temporal_positional_encoding"),
        (
            lambda folder: rewrite(folder, memory_attention_num_layers=2),
            r"weights do not fit Sam2VideoModel: \d+ missing \(memory_attention.layers.1",
        ),
        (lambda folder: pickle_it(folder), r"has model.pt, a pickle, which is never loaded"),
    ],
)
def test_weights_that_do_not_do_get_one_line(weights: Path, tmp_path: Path, break_it, message: str) -> None:
    folder = Path(shutil.copytree(weights, tmp_path / "weights"))
    with pytest.raises(InputError, match=message) as caught:
        build_follower(break_it(folder))
    assert "\n" not in str(caught.value)


def rewrite(folder: Path, **values: object) -> Sam2:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return Sam2(weights=str(folder), revision="")


def pickle_it(folder: Path) -> Sam2:
    (folder / "model.safetensors").rename(folder / "model.pt")
    return Sam2(weights=str(folder), revision="")


def test_the_doctor_knows_the_weights_where_they_are_in_use(clip_params: Params, weights: Path) -> None:
    assert [source.kind for source in list_sources(clip_params)] == ["base", "backbone"]
    params = choose_sam2(clip_params, weights)
    assert [source.kind for source in list_sources(params)] == ["base", "backbone", "sam2"]
    assert describe_source(list_sources(params)[-1], Path(".")) == ("weights: sam2", f"folder {weights}", "")


# --- from logits to tracks ------------------------------------------------------------------------------------------


def test_objects_in_contact_stay_apart() -> None:
    logits = np.full((2, *HW), -5.0, np.float32)
    logits[0, 20:40, 20:52], logits[1, 20:40, 48:80] = 3.0, 4.0
    masks = separate(logits)
    assert not (masks[0] & masks[1]).any()
    assert (masks.any(axis=0) == (logits > 0).any(axis=0)).all()
    image, _ = draw_objects((Box(20, 20, 40, 48), RED), (Box(20, 48, 40, 80), BLUE))
    instances, rejected = measure_objects(image, logits, PARAMS)
    assert rejected == []
    assert [instances[number].box for number in (0, 1)] == [Box(20, 20, 40, 48), Box(20, 48, 40, 80)]
    assert instances[0].confidence == pytest.approx(1 / (1 + np.exp(-3.0)))


def test_two_ids_on_each_other_are_in_doubt_and_an_object_out_of_sight_is_no_loss() -> None:
    logits = np.full((3, *HW), -1024.0, np.float32)
    logits[0, 20:40, 20:50], logits[1, 22:40, 25:55] = 3.0, 4.0
    instances, rejected = measure_objects(draw_objects()[0], logits, PARAMS)
    assert (instances, [reason for reason, _ in rejected]) == ({}, ["in_doubt", "in_doubt"])


def test_a_hole_that_another_object_fills_stays_its_own() -> None:
    logits = np.full((2, *HW), -5.0, np.float32)
    logits[0, 10:60, 10:70] = 3.0
    logits[0, 30:40, 30:42], logits[1, 30:40, 30:42] = -3.0, 3.0
    params = PARAMS.model_copy(update={"min_area_share": 0.01})
    instances, _ = measure_objects(draw_objects()[0], logits, params)
    drawn = np.zeros(HW, bool)
    drawn[instances[0].box.slices] = instances[0].mask
    assert not drawn[30:40, 30:42].any()
    assert (instances[0].area_px, instances[1].area_px) == (3000 - 120, 120)


def test_an_id_goes_on_as_another_track_after_an_absence_a_cut_or_another_look() -> None:
    red, blue = find((square(20, 30), RED))[0], find((square(20, 30), BLUE))[0]
    found = [{1: red}, {1: red}, {}, {1: red}, {}, {}, {1: red}, {1: red}, {1: blue}, {1: blue}]
    tracks = cut_tracks(found, make_frames(10, shots=[0] * 7 + [1] * 3))
    assert [track.frames for track in tracks] == [[0, 1, 3], [6], [7], [8, 9]]


def test_the_first_mask_that_touches_the_border_least_is_shown() -> None:
    entering = [find((Box(20, 0, 40, 10), RED))[0], find((square(20, 10), RED))[0], find((square(20, 20), RED))[0]]
    prompts = choose_prompts([Track([2, 3, 4], entering)], make_frames(6))
    assert [prompt.position for prompt in prompts] == [3]
    assert prompts[0].mask.sum() == 400
    assert prompts[0].mask[20:40, 10:30].all()


def test_every_prompt_is_followed_through_its_own_shot_once(weights: Path) -> None:
    """The prompt's frame gives back what it was shown, objects that touch included."""
    side = 64
    frames = [replace(frame, height_px=side, width_px=side) for frame in make_frames(7, shots=[0, 0, 0, 0, 1, 1, 1])]
    pictures, read = make_pictures(7, side), []
    mask, other = np.zeros((side, side), bool), np.zeros((side, side), bool)
    mask[16:32, 16:32], other[16:32, 32:48] = True, True

    def look(position: int) -> np.ndarray:
        read.append(position)
        return pictures[position]

    params = PARAMS.model_copy(update={"sam2": Sam2(weights=str(weights), revision="")})
    prompts = [Prompt(2, mask), Prompt(2, other)]
    assert [shot.positions for shot in list_shots(frames)] == [range(4), range(4, 7)]
    tracks, _ = follow_prompts(prompts, frames, look, params)
    assert read[:7] == [2, 3, 2, 1, 0, 0, 1], "onward, back to the shot's first frame, and then to measure them"
    assert set(read) == {0, 1, 2, 3}, "the second shot has no prompt"
    shown = [track.instances[track.frames.index(2)] for track in tracks if 2 in track.frames]
    assert [instance.box for instance in shown] == [Box(16, 16, 32, 32), Box(16, 32, 32, 48)]


def test_a_prompt_on_an_object_that_is_followed_shows_nothing_new(weights: Path) -> None:
    frames, everything = make_frames(3), np.ones(HW, bool)
    params = PARAMS.model_copy(update={"sam2": Sam2(weights=str(weights), revision="")})
    prompts = [Prompt(0, everything), Prompt(2, everything)]
    _, rejections = follow_prompts(prompts, frames, lambda position: draw_objects()[0], params)
    told = [(row.item, row.reason, row.detail) for row in rejections if row.reason == "followed_already"]
    assert told == [("c:2", "followed_already", "an object that is followed, box 0 0 80 100")]


# --- the stage ------------------------------------------------------------------------------------------------------


def choose_sam2(params: Params, weights: Path) -> Params:
    changes = {"backend": "sam2", "sam2": Sam2(weights=str(weights), revision=""), "min_track_frames": 1}
    return params.model_copy(update={"segment_objects": params.segment_objects.model_copy(update=changes)})


def test_a_video_with_a_given_first_mask_and_one_without(clip_params: Params, weights: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    write_video(videos / "cut.mp4", draw_cut(0, 12))
    write_video(videos / "given.mp4", draw_turning(1, 12))
    ids = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    ids[24:72, 24:48], ids[24:72, 48:72] = 1, 2
    Image.fromarray(ids).save(videos / "given.mask.png")
    params = choose_sam2(clip_params, weights)
    params = params.model_copy(update={"ingest": params.ingest.model_copy(update={"source": str(videos)})})
    page, usable = validate_source(str(videos), params, tmp_path)
    assert usable
    assert "nothing is wrong" in page
    for run in (run_ingest, run_extract_frames, run_segment_objects):
        run(params, tmp_path)
    clips = {Path(clip.path).stem: clip for clip in load_records(tmp_path / "data/clips.parquet", ClipRecord)}
    assert clips["given"].masks == ("given.mask.png",)
    rows = load_records(tmp_path / "data/masks/index.parquet", MaskRecord)
    of_first = [row for row in rows if row.clip_id == clips["given"].clip_id and row.sample_index == 0]
    canvas = decode_image(read_tar(tmp_path / f"data/masks/{clips['given'].clip_id}.tar")["000000.png"], "")[..., 0]
    assert [row.box for row in of_first] == [(24, 24, 72, 48), (24, 48, 72, 72)]
    assert (canvas != ids).sum() <= 8, "the corners alone are lost"
    reasons = {row.reason for row in load_records(tmp_path / "data/ledgers/segment_objects.parquet", Rejection)}
    assert "no_first_mask" not in reasons
    first = {path.name: path.read_bytes() for path in (tmp_path / "data/masks").iterdir()}
    shutil.rmtree(tmp_path / "work")
    run_segment_objects(params, tmp_path)
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "data/masks").iterdir()}
