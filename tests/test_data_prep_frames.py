"""Stages `ingest` and `extract_frames`: what is read, what goes into the ledger, and decoders that fail or hang."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from data_prep.children import Helper, ReadFailure, ReadInterrupted
from data_prep.frames import sampling
from data_prep.frames.readers import get_readers, read_frames, read_with_decord, read_with_opencv
from data_prep.frames.stage import run_extract_frames
from data_prep.ingest.memory import SourceMemory
from data_prep.ingest.stage import list_clips, run_ingest
from data_prep.tars import read_tar
from imprint.core import files, keys
from imprint.core.errors import InputError
from imprint.core.params import Params
from imprint.core.pixels import decode_image, save_image
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


def test_ingest_decodes_in_a_child_and_reads_again_only_what_has_changed(tmp_path, clip_params, monkeypatch):
    monkeypatch.setattr("cv2.VideoCapture", lambda *_: pytest.fail("a video was opened in the stage's own process"))
    monkeypatch.setattr(keys, "_SETTLED_NS", 0)
    read, digest = [], files.compute_file_digest
    monkeypatch.setattr(keys, "compute_file_digest", lambda path: read.append(path.name) or digest(path))
    for number, name in enumerate(("one", "two")):
        write_video(tmp_path / f"videos/{name}.mp4", draw_turning(number))
    (tmp_path / "videos/text.mp4").write_text("not a video")
    section = with_section(clip_params, "ingest", source="videos").ingest
    found = []
    for _ in range(2):
        read.clear()
        with SourceMemory(tmp_path / "work/ingest") as memory:
            found.append(list_clips(section, tmp_path, memory=memory).clips)
        found.append([name for name in read if name.endswith(".mp4")])
    assert found == [found[0], ["one.mp4", "text.mp4", "two.mp4"], found[0], []]
    assert len(found[0]) == 2
    (tmp_path / "videos/text.mp4").unlink()
    with SourceMemory(tmp_path / "work/ingest") as memory:
        list_clips(section, tmp_path, memory=memory)
        assert memory._helper._child is None  # there was nothing to decode
    (tmp_path / "work/ingest/probes.json").write_text("[]")
    with SourceMemory(tmp_path / "work/ingest") as memory:
        assert list_clips(section, tmp_path, memory=memory).clips == found[0]


def misbehave(file: Path) -> str:
    """As many times as the file says, in the way that it is named after; then it is well."""
    times = int(file.read_text())
    if times == 0:
        return "well"
    file.write_text(str(times - 1))
    if file.name == "hangs":
        time.sleep(600)
    elif file.name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif file.name == "crashes":
        os._exit(11)
    raise MemoryError if file.name == "full" else ValueError("bad file")


@pytest.mark.parametrize(
    ("name", "times", "expected"),
    [
        ("hangs", 1, "well"),
        ("killed", 2, "well"),
        ("full", 2, "well"),
        ("hangs", 9, "interrupted: not done within 1 s; tried 3 times"),
        ("killed", 9, "interrupted: the decoder was killed (out of memory?); tried 3 times"),
        ("crashes", 1, "failed: the decoder died"),
        ("raises", 1, "failed: bad file"),
    ],
)
def test_a_child_that_hangs_or_dies_is_replaced_and_only_a_verdict_is_one(name, times, expected, tmp_path):
    (tmp_path / name).write_text(str(times))
    (tmp_path / "healthy").write_text("0")
    helper = Helper(deadline_s=1.0)
    try:
        told = helper.do(misbehave, tmp_path / name)
    except ReadInterrupted as error:
        told = f"interrupted: {error}"
    except ReadFailure as error:
        told = f"failed: {error}"
    assert told == expected
    assert helper.do(misbehave, tmp_path / "healthy") == "well"
    helper.end()


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
        ("hangs.mp4", "interrupted"),
        ("damaged.mp4", "undecodable"),
    }
    (told,) = [row.detail for row in rows if row.reason == "interrupted"]
    assert "not done within 3 s; tried 3 times, `dvc repro --force --single-item extract_frames` tries again" in told
    frames = load_records(tmp_path / "data/frames/index.parquet", FrameRecord)
    assert {clips[frame.clip_id] for frame in frames} == {"good.mp4"}


def meet_trouble(path: str, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """As long as `<path>.<trouble>` is there with a number of times; each takes one off it."""
    for trouble in ("hang", "kill", "full"):
        file = Path(f"{path}.{trouble}")
        times = int(file.read_text()) if file.exists() else 0
        if times == 0:
            continue
        file.write_text(str(times - 1))
        if trouble == "hang":
            time.sleep(600)
        elif trouble == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            raise MemoryError
    yield from read_with_opencv(path, indices)


def open_trouble(root: Path, clip_params: Params, **times: int) -> Params:
    """A project of one good clip, and one per trouble that meets it so many times."""
    for number, (trouble, count) in enumerate({"none": 0, **times}.items()):
        video = write_video(root / f"videos/{trouble}.mp4", draw_turning(number))
        Path(f"{video}.{trouble}").write_text(str(count))
    params = with_section(clip_params, "ingest", source="videos")
    params = with_section(params, "extract_frames", deadline_s=2.0, workers=1)
    run_ingest(params, root)
    return params


def list_whole(root: Path) -> set[str]:
    clips = {clip.clip_id: Path(clip.path).stem for clip in load_records(root / "data/clips.parquet", ClipRecord)}
    return {clips[frame.clip_id] for frame in load_records(root / "data/frames/index.parquet", FrameRecord)}


def test_what_the_machine_stood_in_the_way_of_is_tried_again(tmp_path, clip_params):
    """In the same run, so that one busy moment costs nothing."""
    params = open_trouble(tmp_path, clip_params, hang=1, kill=2, full=1)
    run_extract_frames(params, tmp_path, readers=(meet_trouble,))
    assert load_ledger(tmp_path, "extract_frames") == []
    assert list_whole(tmp_path) == {"none", "hang", "kill", "full"}


def test_what_was_interrupted_every_time_is_a_row_and_no_verdict(tmp_path, clip_params):
    """Once the machine is itself again the next run has the frames, in chunks too; nothing published says otherwise."""
    params = open_trouble(tmp_path, clip_params, kill=3, full=4)
    run_extract_frames(params, tmp_path, readers=(meet_trouble,))
    rows = load_records(tmp_path / "data/ledgers/extract_frames.parquet", Rejection)
    assert [(row.reason, "tried 3 times" in row.detail) for row in rows] == [("interrupted", True)] * 2
    assert list_whole(tmp_path) == {"none"}
    keys = json.loads((tmp_path / "data/ledgers/extract_frames.products.json").read_text())
    assert len(keys) == 1
    run_extract_frames(params, tmp_path, readers=(meet_trouble,))  # one more try each: `full` meets its last trouble
    (row,) = load_records(tmp_path / "data/ledgers/extract_frames.parquet", Rejection)
    assert "no memory was left; tried 4 times" in row.detail
    run_extract_frames(params, tmp_path, chunk="1/1", readers=(meet_trouble,))
    run_extract_frames(params, tmp_path, readers=())
    assert load_ledger(tmp_path, "extract_frames") == []
    assert list_whole(tmp_path) == {"none", "kill", "full"}


def test_a_file_that_is_away_for_a_while_is_no_verdict_either(tmp_path, clip_params):
    params = open_trouble(tmp_path, clip_params)
    pictures = [tmp_path / f"photos/chair/{number}.png" for number in range(3)]
    for number, path in enumerate(pictures):
        save_image(path, draw_turning(7)[number])
    photos = with_section(params, "ingest", source="photos")
    for chosen, away in ((params, tmp_path / "videos/none.mp4"), (photos, pictures[1])):
        run_ingest(chosen, tmp_path)
        hidden = away.rename(tmp_path / "hidden")
        if chosen is params:
            with pytest.raises(InputError, match="1 of 1 frames were rejected"):
                run_extract_frames(chosen, tmp_path)
        else:
            run_extract_frames(chosen, tmp_path)
        assert [reason for reason, _ in load_ledger(tmp_path, "extract_frames")] == ["interrupted"]
        hidden.rename(away)
        run_extract_frames(chosen, tmp_path)
        assert load_ledger(tmp_path, "extract_frames") == []


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
