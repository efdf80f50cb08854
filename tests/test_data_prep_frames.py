"""Stages `ingest` and `extract_frames`: what is read, what goes into the ledger, and decoders that fail or hang."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from data_prep.frames import sampling
from data_prep.frames.readers import ReadFailure, get_readers, read_frames, read_with_decord, read_with_opencv
from data_prep.frames.stage import run_extract_frames
from data_prep.ingest.stage import run_ingest
from data_prep.tars import read_tar
from imprint.core.errors import InputError
from imprint.core.params import Params
from imprint.core.pixels import decode_image
from imprint.core.records import ClipRecord, FrameRecord, Rejection, load_records
from tests.video_clips import FPS, NUM_FRAMES, SIZE_PX, draw_cut, draw_turning, write_video


def with_section(params: Params, section: str, **changes: object) -> Params:
    return params.model_copy(update={section: getattr(params, section).model_copy(update=changes)})


def load_ledger(root: Path, stage: str) -> list[tuple[str, str]]:
    rows = load_records(root / f"data/ledgers/{stage}.parquet", Rejection)
    return [(row.reason, Path(row.item).name) for row in rows]


# --- ingest ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, clip_params: Params) -> tuple[Path, Params]:
    """A project over two good videos and five bad ones."""
    root = tmp_path_factory.mktemp("mixed")
    videos = root / "videos"
    data = write_video(videos / "good.mp4", draw_turning(1)).read_bytes()
    write_video(videos / "deeper/other.mp4", draw_cut(2))
    write_video(videos / "short.mp4", draw_turning(3, num_frames=5))
    (videos / "copy.mp4").write_bytes(data)
    (videos / "truncated.mp4").write_bytes(data[: len(data) // 2])
    (videos / "text.mp4").write_text("not a video")
    (videos / "empty.mp4").touch()
    (videos / "notes.txt").write_text("no video, and none by its name")
    (videos / ".hidden.mp4").write_bytes(data)
    params = with_section(clip_params, "ingest", source="videos", max_rejected_share=0.8)
    run_ingest(params, root)
    return root, params


def test_ingest_keeps_the_readable_and_explains_the_rest(mixed):
    root, _ = mixed
    clips = load_records(root / "data/clips.parquet", ClipRecord)
    assert [clip.clip_id for clip in clips] == sorted(clip.clip_id for clip in clips)
    assert {clip.path for clip in clips} == {"videos/copy.mp4", "videos/deeper/other.mp4"}
    for clip in clips:
        assert (clip.num_frames, clip.fps, clip.height_px, clip.width_px) == (NUM_FRAMES, FPS, SIZE_PX, SIZE_PX)
    assert load_ledger(root, "ingest") == [
        ("not_read", "videos"),  # notes.txt
        ("unreadable", "empty.mp4"),
        ("duplicate", "good.mp4"),
        ("too_short", "short.mp4"),
        ("unreadable", "text.mp4"),
        ("unreadable", "truncated.mp4"),
    ]


def test_too_many_rejected_clips_end_the_stage_but_leave_the_ledger(mixed, tmp_path):
    root, params = mixed
    shutil.copytree(root / "videos", tmp_path / "videos")
    strict = with_section(params, "ingest", max_rejected_share=0.5)
    with pytest.raises(InputError, match=r"5 of 7 clips were rejected, more than ingest\.max_rejected_share = 0\.5"):
        run_ingest(strict, tmp_path)
    assert len(load_ledger(tmp_path, "ingest")) == 6
    assert not (tmp_path / "data/clips.parquet").exists()


@pytest.mark.parametrize("source", ["missing", "empty"])
def test_a_source_without_videos_is_named(source, tmp_path, clip_params):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=rf"^ingest\.source: {source} "):
        run_ingest(with_section(clip_params, "ingest", source=source), tmp_path)


def test_one_file_is_a_source(tmp_path, videos, clip_params):
    run_ingest(with_section(clip_params, "ingest", source=str(videos / "cut.mp4")), tmp_path)
    assert len(load_records(tmp_path / "data/clips.parquet", ClipRecord)) == 1


# --- readers --------------------------------------------------------------------------------------------------------


def read_nothing_for_ever(path: str, indices: Sequence[int]) -> Iterator[np.ndarray]:
    if Path(path).name == "hangs.mp4":
        time.sleep(600)
    yield from read_with_opencv(path, indices)


def die_at_once(path: str, indices: Sequence[int]) -> Iterator[np.ndarray]:
    import os

    os._exit(11)
    yield


def read_the_first_four(path: str, indices: Sequence[int]) -> Iterator[np.ndarray]:
    yield from read_with_opencv(path, indices[:4])
    raise ReadFailure("the rest is missing")


def test_both_readers_give_the_same_frames(videos):
    pytest.importorskip("decord")
    path, indices = str(videos / "turning_0.mp4"), [0, 3, 4, 11, NUM_FRAMES - 1]
    by_decord, by_opencv = (list(read_frames(reader, path, indices, 60.0)) for reader in get_readers())
    assert [read_with_decord, read_with_opencv] == list(get_readers())
    np.testing.assert_array_equal(by_decord, by_opencv)
    drawn = [np.abs(by_opencv[1].astype(int) - image).mean() for image in draw_turning(0)[:8]]
    assert int(np.argmin(drawn)) == 3


def test_a_hanging_reader_is_killed_at_the_deadline(tmp_path):
    start_s = time.monotonic()
    with pytest.raises(ReadFailure, match="not done within 1 s"):
        list(read_frames(read_nothing_for_ever, str(tmp_path / "hangs.mp4"), [0], 1.0))
    assert time.monotonic() - start_s < 20


def test_a_reader_that_dies_is_a_failure():
    with pytest.raises(ReadFailure, match="the decoder died"):
        list(read_frames(die_at_once, "any.mp4", [0], 30.0))


def test_a_clip_that_hangs_or_is_damaged_is_a_row_and_the_rest_goes_on(tmp_path, clip_params):
    folder = tmp_path / "videos"
    write_video(folder / "good.mp4", draw_turning(0))
    write_video(folder / "hangs.mp4", draw_turning(1))
    damaged = write_video(folder / "damaged.mp4", draw_turning(2))
    params = with_section(clip_params, "ingest", source="videos")
    params = with_section(params, "extract_frames", deadline_s=3.0, workers=1)
    run_ingest(params, tmp_path)
    damaged.write_bytes(damaged.read_bytes()[:-3000])  # after it was probed
    run_extract_frames(params, tmp_path, readers=(read_nothing_for_ever,))
    rows = load_records(tmp_path / "data/ledgers/extract_frames.parquet", Rejection)
    clips = {clip.clip_id: Path(clip.path).name for clip in load_records(tmp_path / "data/clips.parquet", ClipRecord)}
    assert {(clips[row.item], row.reason) for row in rows} == {
        ("hangs.mp4", "undecodable"),
        ("damaged.mp4", "undecodable"),
    }
    assert any("not done within 3 s" in row.detail for row in rows)
    frames = load_records(tmp_path / "data/frames/index.parquet", FrameRecord)
    assert {clips[frame.clip_id] for frame in frames} == {"good.mp4"}


def test_the_second_reader_takes_over(tmp_path, clip_params, videos, prepared):
    params = with_section(clip_params, "ingest", source=str(videos / "turning_2.mp4"))
    run_ingest(params, tmp_path)
    run_extract_frames(params, tmp_path, readers=(die_at_once, read_with_opencv))
    assert load_ledger(tmp_path, "extract_frames") == []
    (tar,) = (tmp_path / "data/frames").glob("*.tar")
    assert tar.read_bytes() == (prepared / "data/frames" / tar.name).read_bytes()


def test_what_one_reader_could_read_is_kept_if_none_reads_all(tmp_path, clip_params, videos):
    params = with_section(clip_params, "ingest", source=str(videos / "turning_1.mp4"))
    run_ingest(params, tmp_path)
    run_extract_frames(params, tmp_path, readers=(read_the_first_four, die_at_once))
    frames = load_records(tmp_path / "data/frames/index.parquet", FrameRecord)
    (row,) = load_records(tmp_path / "data/ledgers/extract_frames.parquet", Rejection)
    assert [frame.sample_index for frame in frames] == [0, 1, 2, 3]
    expected = "14 sampled frames: read_the_first_four: the rest is missing; die_at_once: the decoder died"
    assert (row.reason, row.detail) == ("undecodable", expected)


# --- what is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_frames", "fps", "sample_fps", "expected"),
    [
        (10, 30.0, 6.0, [0, 5]),
        (4, 5.0, 6.0, [0, 1, 2, 3]),
        (12, 12.0, 6.0, [0, 2, 4, 6, 8, 10]),
        (7, 25.0, 10.0, [0, 2, 5]),
    ],
)
def test_sample_indices(num_frames, fps, sample_fps, expected):
    assert sampling.compute_sample_indices(num_frames, fps, sample_fps) == expected


def test_frames_carry_time_shot_and_size(prepared):
    frames = load_records(prepared / "data/frames/index.parquet", FrameRecord)
    clips = {clip.clip_id: Path(clip.path).stem for clip in load_records(prepared / "data/clips.parquet", ClipRecord)}
    for frame in frames:
        assert frame.time_s == pytest.approx(frame.source_index / FPS)
        first_of_second_shot = NUM_FRAMES // 2
        assert frame.shot == int(clips[frame.clip_id] == "cut" and frame.source_index >= first_of_second_shot)
    row = frames[5]
    data = read_tar(prepared / f"data/frames/{row.clip_id}.tar")[row.member]
    assert decode_image(data, row.member).shape == (row.height_px, row.width_px, 3)


def test_blurred_repeated_and_late_frames_are_left_out_with_a_row(tmp_path, clip_params):
    sharp = draw_turning(0)[0]
    flat = np.full_like(sharp, 90)
    images = [sharp, sharp, flat, draw_turning(4)[9], *draw_turning(5)[:10]]
    write_video(tmp_path / "videos/clip.mp4", images, fps=6)
    params = with_section(clip_params, "ingest", source="videos")
    params = with_section(params, "extract_frames", max_frames_per_clip=6, min_hash_distance=2, max_side_px=48)
    run_ingest(params, tmp_path)
    run_extract_frames(params, tmp_path)
    rows = load_records(tmp_path / "data/ledgers/extract_frames.parquet", Rejection)
    frames = load_records(tmp_path / "data/frames/index.parquet", FrameRecord)
    reasons = {row.item.partition(":")[2]: row.reason for row in rows}
    assert (reasons["1"], reasons["2"], reasons[""]) == ("near_duplicate", "blurred", "over_max_frames")
    assert {frame.height_px for frame in frames} == {48}
    assert [frame.sample_index for frame in frames] == [index for index in range(6) if str(index) not in reasons]
