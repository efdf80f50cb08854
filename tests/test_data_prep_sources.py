"""Every entry of a source is read or is a row that says why."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.ingest.layouts import davis, mvimgnet, photo_sets
from data_prep.ingest.memory import SourceMemory
from data_prep.ingest.probe import describe_codec
from data_prep.ingest.stage import Listing, list_clips
from imprint.core.errors import InputError
from imprint.core.names import natural_key
from imprint.core.params import Ingest
from tests.test_readers import MASKS
from tests.video_clips import draw_turning, write_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, draw_turning(0, 10))
    return path


def draw_photo(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 64, 3), np.uint8)).save(path, "JPEG")


def read(root: Path, source: str = "source") -> Listing:
    section = Ingest(source=source, licence="CC0-1.0", min_frames=2, max_rejected_share=1.0)
    with SourceMemory() as memory:
        return list_clips(section, root, memory=memory)


def tell(listing: Listing) -> list[tuple[str, str]]:
    return sorted((row.reason, Path(row.item).name) for row in listing.rejections)


def test_linked_folders_are_read_and_dangling_links_told(tmp_path: Path, clip: Path) -> None:
    for folder in ("source/day1", "away/day2"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(clip, tmp_path / "source/day1/a.mp4")
    write_video(tmp_path / "away/day2/b.mp4", draw_turning(1, 10))
    (tmp_path / "source/day2").symlink_to("../away/day2")
    (tmp_path / "source/same").symlink_to("day1")
    (tmp_path / "source/gone.mp4").symlink_to("/nowhere/gone.mp4")
    (tmp_path / "source/day1/round").symlink_to("..")
    listing = read(tmp_path)
    assert {Path(one.path).name for one in listing.clips} == {"a.mp4", "b.mp4"}
    assert tell(listing) == [
        ("dangling_link", "gone.mp4"),
        ("duplicate", "a.mp4"),
        ("link_loop", "round"),
        ("link_loop", "round"),
        ("outside_link", "day2"),
    ]
    assert listing.num_dropped == 2


def test_what_is_not_read_is_counted_by_kind(tmp_path: Path, clip: Path) -> None:
    for number in range(3):
        draw_photo(tmp_path / f"source/mug/{number}.jpg", number)
    for name in ("IMG_1.HEIC", "IMG_2.HEIC", "IMG_3.jxl", "notes.txt"):
        (tmp_path / "source/mug" / name).write_bytes(b"x")
    for suffix in ("tif", "avif", "gif"):
        Image.open(tmp_path / "source/mug/0.jpg").resize((32, 32)).save(tmp_path / f"source/mug/more.{suffix}")
    shutil.copy(clip, tmp_path / "source/mug.m2ts")
    listing = read(tmp_path)
    assert len(listing.clips[0].frames) == 6
    details = sorted(row.detail for row in listing.rejections)
    assert [detail.split(" (")[0] for detail in details] == [
        "1 .jxl file",
        "1 .m2ts file",
        "1 .txt file",
        "2 .heic files",
    ]
    assert "convert" in details[-1]
    assert "libx264" in details[1]


def test_folders_links_and_locked_files_do_not_lose_a_set(tmp_path: Path) -> None:
    for number in range(3):
        draw_photo(tmp_path / f"source/mug/{number}.jpg", number)
    (tmp_path / "source/mug/old.jpg").mkdir()
    (tmp_path / "source/mug/link.jpg").symlink_to("/nowhere/link.jpg")
    os.mkfifo(tmp_path / "source/mug/pipe.jpg")
    listing = read(tmp_path)
    assert [one.frames for one in listing.clips] == [("0.jpg", "1.jpg", "2.jpg")]
    assert tell(listing) == [("dangling_link", "link.jpg"), ("not_read", "old.jpg"), ("not_read", "pipe.jpg")]


def test_names_that_are_no_utf8_are_one_row_each(tmp_path: Path, clip: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(clip, source / "plain.mp4")
    shutil.copy(clip, os.fsencode(source) + b"/caf\xe9.mp4")
    os.mkdir(os.fsencode(source) + b"/b\x81cher")
    listing = read(tmp_path)
    assert [Path(one.path).name for one in listing.clips] == ["plain.mp4"]
    assert tell(listing) == [("bad_name", r"b\x81cher"), ("bad_name", r"caf\xe9.mp4")]
    (source / "plain.mp4").unlink()
    with pytest.raises(InputError, match=r"left out: .*x81cher: the name is no UTF-8"):
        read(tmp_path)
    with pytest.raises(InputError, match=r"x\\xe9.*UTF-8"):
        read(tmp_path, os.fsdecode(b"x\xe9"))


def test_odd_names_are_read(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ffmpeg takes what stands before a colon for a protocol, and OpenCV `%03d` for a sequence."""
    monkeypatch.chdir(tmp_path)
    names = ("rec:12.mp4", "50%.mp4", "%03d.mp4", "what?.mp4", "take #2.mp4", "-i.mp4")
    for name in names:
        shutil.copy(clip, name)
        assert [one.num_frames for one in read(Path("."), name).clips] == [10]


def test_frame_numbers_sort_as_people_count(tmp_path: Path) -> None:
    for prefix in ("", "frame_"):
        names = [f"{prefix}{number}.jpg" for number in range(1, 31)]
        for name in names:
            draw_photo(tmp_path / f"{prefix}davis/JPEGImages/cup/{name}")
            mask = tmp_path / f"{prefix}davis/Annotations/cup/{Path(name).stem}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            mask.write_bytes(MASKS["zeros and ones"])
            draw_photo(tmp_path / f"{prefix}views/cat/cup/images/{name}")
            view_mask = tmp_path / f"{prefix}views/cat/cup/masks/{Path(name).stem}.png"
            view_mask.parent.mkdir(parents=True, exist_ok=True)
            view_mask.write_bytes(MASKS["zeros and ones"])
            draw_photo(tmp_path / f"{prefix}photos/cup/{name}")
        for listing, kind in ((davis, "davis"), (mvimgnet, "views"), (photo_sets, "photos")):
            assert list(listing.list_items(tmp_path / f"{prefix}{kind}")[0][0].frames) == names
    mixed = ["10", "frame_10", "2", "frame_2", "01", "1"]
    assert sorted(mixed, key=lambda name: natural_key(Path(name))) == ["01", "1", "2", "10", "frame_2", "frame_10"]


def test_a_codec_without_a_decoder_is_named_with_the_way_out() -> None:
    told = describe_codec(float(int.from_bytes(b"av01", "little")))
    assert "AV1" in told
    assert "ffmpeg -i FILE -c:v libx264" in told
    assert describe_codec(0.0) == ""
