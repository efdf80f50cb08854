"""The shipped clips and cases unpack, are what `demo/README.md` says, and their masks fit the pictures."""

from __future__ import annotations

import io
import json
import tarfile
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from demo import catalogue
from demo.archive import write_tar
from demo.geometry import compute_angle_deg, compute_view_direction, rotation
from demo.unpack import ARCHIVE, unpack
from imprint.core.view_changes import VIEW_CHANGES, find_view_change, get_range_deg, name_reference

ASSETS = ARCHIVE.parent
LEVELS = ("exact", "soft", "coarse", "box")
REFERENCES = [name_reference(view_change) for view_change in VIEW_CHANGES]
CASE_FILES = {*REFERENCES, "plate", "truth", "object_mask", "shadow_mask", *(f"hole_{level}" for level in LEVELS)}
# Outside the object, its outline (1 px) and its shadow, truth and plate differ by bounced light and noise alone.
MEAN_TOLERANCE, PEAK_TOLERANCE = 2.0, 10.0  # of 255; the peak after a blur of 1 px


@pytest.fixture(scope="module")
def demo_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("raw") / "demo"
    unpack(ARCHIVE, target)
    return target


@pytest.fixture(scope="module")
def records(demo_dir: Path) -> list[dict]:
    return json.loads((demo_dir / "clips.json").read_text())


@pytest.fixture(scope="module")
def cases() -> dict[str, dict[str, np.ndarray]]:
    pictures: dict[str, dict[str, np.ndarray]] = {}
    with tarfile.open(ASSETS / "cases.tar") as tar:
        for member in tar.getmembers():
            if member.name.endswith(".png"):
                _, case, name = member.name.split("/")
                data = np.frombuffer(tar.extractfile(member).read(), np.uint8)  # type: ignore[union-attr]
                picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
                assert picture is not None, member.name
                pictures.setdefault(case, {})[name[:-4]] = picture
    return pictures


@pytest.fixture(scope="module")
def case_records() -> list[dict]:
    with tarfile.open(ASSETS / "cases.tar") as tar:
        return json.loads(tar.extractfile("cases.json").read())["cases"]  # type: ignore[union-attr]


def load_masks(demo_dir: Path, name: str) -> np.ndarray:
    """[48, 128, 128] uint8 instance numbers."""
    stack = cv2.imread(str(demo_dir / "masks" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
    assert stack is not None, name
    assert stack.dtype == np.uint8
    assert stack.shape == (catalogue.NUM_FRAMES * catalogue.SIZE_PX, catalogue.SIZE_PX)
    return stack.reshape(catalogue.NUM_FRAMES, catalogue.SIZE_PX, catalogue.SIZE_PX)


def load_frames(path: Path) -> np.ndarray:
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        found, frame = capture.read()
        if not found:
            return np.stack(frames)
        frames.append(frame)


def test_sizes_fit_a_repository() -> None:
    sizes = [path.stat().st_size for path in ASSETS.iterdir() if path.is_file()]
    assert max(sizes) <= 8_000_000
    assert sum(sizes) <= 16_000_000
    assert sum(path.stat().st_size for path in ASSETS.glob("clips*.tar")) <= 12_000_000
    assert "CC0 1.0" in (ASSETS / "LICENSE").read_text()


def test_clips_are_complete(demo_dir: Path, records: list[dict]) -> None:
    names = [catalogue.clip_entry(i).name for i in range(catalogue.NUM_CLIPS)]
    assert [record["name"] for record in records] == names
    assert sorted(p.stem for p in (demo_dir / "clips").iterdir()) == sorted(names)
    assert sorted(p.stem for p in (demo_dir / "masks").iterdir()) == sorted(names)
    assert sum(record["kind"] == "single" for record in records) >= 48
    assert sum(record["kind"] == "multi" for record in records) >= 24
    shown = {tag for record in records for tag in record["tags"]}
    assert set(catalogue.MULTI_KINDS) <= shown


def test_single_clips_are_covered_by_their_object(demo_dir: Path, records: list[dict]) -> None:
    for record in records:
        if record["kind"] == "single":
            covers = (load_masks(demo_dir, record["name"]) == 1).mean((1, 2))
            assert covers.min() >= 0.10, record["name"]


def test_masks_hold_the_instances_of_the_record(demo_dir: Path, records: list[dict]) -> None:
    for record in records:
        masks = load_masks(demo_dir, record["name"])
        assert set(np.unique(masks)) - {0} == set(range(1, record["num_objects"] + 1)), record["name"]
        assert len(record["object_seeds"]) == record["num_objects"]


def test_tags_are_true(demo_dir: Path, records: list[dict]) -> None:
    for record in records:
        masks = load_masks(demo_dir, record["name"])
        if "twins" in record["tags"]:
            assert len(set(record["object_seeds"])) < record["num_objects"]
        if "exit_return" in record["tags"]:
            present = (masks == record["num_objects"]).any((1, 2))
            assert present[[0, -1]].all(), record["name"]
            assert not present.all(), record["name"]
        assert (len(record["shots"]) > 1) == ("cut" in record["tags"])


@pytest.mark.parametrize("index", [0, catalogue.NUM_SINGLE])
def test_masks_align_with_frames(demo_dir: Path, records: list[dict], index: int) -> None:
    name = records[index]["name"]
    frames, masks = load_frames(demo_dir / "clips" / f"{name}.mp4"), load_masks(demo_dir, name) > 0
    assert frames.shape == (catalogue.NUM_FRAMES, catalogue.SIZE_PX, catalogue.SIZE_PX, 3)
    kernel = np.ones((3, 3), np.uint8)

    def edge_strength(shift: int) -> float:
        """Mean gradient on the masks' outlines, the masks moved by `shift` px to the right."""
        total = []
        for frame, mask in zip(frames[::8], masks[::8], strict=True):
            moved = np.roll(mask, shift, axis=1).astype(np.uint8)
            outline = (cv2.dilate(moved, kernel) - cv2.erode(moved, kernel)) > 0
            grey = frame.astype(np.float32)
            gradient = np.abs(np.gradient(grey, axis=1)).max(-1) + np.abs(np.gradient(grey, axis=0)).max(-1)
            total.append(gradient[outline].mean())
        return float(np.mean(total))

    assert edge_strength(0) > 1.15 * max(edge_strength(-5), edge_strength(5))


def test_cases_are_complete_and_of_other_objects(
    cases: dict[str, dict[str, np.ndarray]], case_records: list[dict], records: list[dict]
) -> None:
    assert len(cases) == len(case_records) == catalogue.NUM_CASES >= 48
    clip_seeds = {seed for record in records for seed in record["object_seeds"]}
    case_seeds = {record["seed"] for record in case_records}
    assert len(case_seeds) == len(cases)
    assert not clip_seeds & case_seeds
    assert case_seeds <= set(catalogue.CASE_SEEDS)
    assert clip_seeds <= set(catalogue.CLIP_SEEDS)
    for name, pictures in cases.items():
        assert set(pictures) == CASE_FILES, name
        assert all(pictures[stem].shape == (128, 128, 4) for stem in REFERENCES)
        assert pictures["plate"].shape == pictures["truth"].shape == (128, 128, 3)


def measure_direction(view: dict) -> np.ndarray:
    """From a record of `case.json`: where the camera stands, as seen from the object in its own axes."""
    camera, pose = view["camera"], view["pose"]
    assert (pose["tilt_deg"], pose["heading_deg"]) == (0, 0)
    elevation, azimuth = np.radians(camera["elevation_deg"]), np.radians(camera["azimuth_deg"])
    away = np.array([-np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation)])
    position = np.array(camera["target"]) + camera["distance"] * away
    return compute_view_direction(position, view["centre"], rotation("z", pose["yaw_deg"])[:3, :3])


def test_each_case_is_seen_from_four_directions_of_their_strata(case_records: list[dict]) -> None:
    for record in case_records:
        truth = measure_direction(record["view"])
        assert list(record["references"]) == REFERENCES
        for view_change, view in zip(VIEW_CHANGES, record["references"].values(), strict=True):
            angle_deg = compute_angle_deg(truth, measure_direction(view))
            assert angle_deg == pytest.approx(view["view_change_deg"], abs=0.01), record["name"]
            assert find_view_change(angle_deg) == view_change, record["name"]


def test_view_changes_fill_their_strata(case_records: list[dict]) -> None:
    for view_change, stem in zip(VIEW_CHANGES, REFERENCES, strict=True):
        low, high = get_range_deg(view_change)
        angles_deg = [record["references"][stem]["view_change_deg"] for record in case_records]
        middle = (low + min(high, catalogue.MAX_VIEW_CHANGE_DEG)) / 2
        assert low <= min(angles_deg) < middle < max(angles_deg) < high


def test_the_angle_counts_azimuth_and_elevation_together() -> None:
    def see(azimuth_deg: float, elevation_deg: float, yaw_deg: float = 0.0, scale: float = 1.0) -> np.ndarray:
        flat = np.cos(np.radians(elevation_deg))
        away = [flat * np.sin(np.radians(azimuth_deg)), flat * np.cos(np.radians(azimuth_deg))]
        position = np.array([*away, np.sin(np.radians(elevation_deg))]) * 5 + [1.0, 2.0, 3.0]
        return compute_view_direction(position, np.array([1.0, 2.0, 3.0]), scale * rotation("z", yaw_deg)[:3, :3])

    start = see(0, 0)
    assert compute_angle_deg(start, see(40, 0)) == pytest.approx(40)
    assert compute_angle_deg(start, see(0, 30)) == pytest.approx(30)
    assert compute_angle_deg(start, see(90, 30)) == pytest.approx(90)
    assert compute_angle_deg(see(0, 60), see(180, 60)) == pytest.approx(60)  # over the top
    assert compute_angle_deg(start, see(0, 0, yaw_deg=50)) == pytest.approx(50)  # the object turns, the camera stays
    assert compute_angle_deg(start, see(-20, 0, yaw_deg=20, scale=3)) == pytest.approx(0, abs=1e-5)  # both turn


def test_references_are_whole_and_of_one_light(
    cases: dict[str, dict[str, np.ndarray]], case_records: list[dict]
) -> None:
    for name, pictures in cases.items():
        for stem in REFERENCES:
            alpha = pictures[stem][..., 3]
            assert max(alpha[[0, -1]].max(), alpha[:, [0, -1]].max()) == 0, (name, stem)
            assert 0.8 < max(np.ptp(axis) + 1 for axis in np.nonzero(alpha > 127)) / 128 < 0.97, (name, stem)
    assert all(0.5 < record["reference_card"] < 1.05 for record in case_records)


def test_holes_nest_and_hold_the_shadow(cases: dict[str, dict[str, np.ndarray]]) -> None:
    for name, pictures in cases.items():
        holes = [pictures[f"hole_{level}"] for level in LEVELS]
        assert all(set(np.unique(hole)) <= {0, 255} for hole in holes)
        assert np.array_equal(holes[0], pictures["object_mask"]), name
        for fine, coarse in pairwise(holes):
            assert not (fine & ~coarse).any(), name
        assert not (pictures["shadow_mask"] & ~holes[3]).any(), name
        assert not (pictures["shadow_mask"] & pictures["object_mask"]).any(), name
        rows, columns = np.nonzero(holes[3])
        assert min(rows.min(), columns.min()) >= 2, name
        assert max(rows.max(), columns.max()) <= 125, name
        assert 0.06 <= (pictures["object_mask"] > 0).mean() <= 0.27, name


def test_truth_is_the_plate_outside_object_and_shadow(cases: dict[str, dict[str, np.ndarray]]) -> None:
    for name, pictures in cases.items():
        marked = cv2.bitwise_or(pictures["object_mask"], pictures["shadow_mask"])
        touched = cv2.dilate(marked, np.ones((3, 3), np.uint8)) > 0
        change = pictures["truth"].astype(np.float32) - pictures["plate"].astype(np.float32)
        assert change[pictures["shadow_mask"] > 0].mean() < -4, name
        change[touched] = 0  # before the blur: the object must not leak
        assert np.abs(change)[~touched].mean() <= MEAN_TOLERANCE, name
        assert np.abs(cv2.GaussianBlur(change, (0, 0), 1.0))[~touched].max() <= PEAK_TOLERANCE, name


def test_seed_ranges_are_disjoint() -> None:
    ranges = [catalogue.CLIP_SEEDS, catalogue.CASE_SEEDS, catalogue.SEGMENTER_SEEDS, catalogue.TRAINING_SEEDS]
    for before, after in pairwise(ranges):
        assert before.stop <= after.start


def test_tars_are_equal_byte_for_byte(tmp_path: Path) -> None:
    members = {"b.txt": b"two", "a/c.txt": b"one"}
    write_tar(tmp_path / "first.tar", members)
    write_tar(tmp_path / "second.tar", dict(reversed(members.items())))
    assert (tmp_path / "first.tar").read_bytes() == (tmp_path / "second.tar").read_bytes()


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt"])
def test_unpack_refuses_paths_outside(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "bad.tar"
    with tarfile.open(archive, "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(ValueError, match="outside"):
        unpack(archive, tmp_path / "out" / "demo")
    assert not (tmp_path / "out").exists()


def test_unpack_refuses_links_and_keeps_the_old_folder(tmp_path: Path) -> None:
    archive, target = tmp_path / "bad.tar", tmp_path / "demo"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with tarfile.open(archive, "w") as tar:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(ValueError, match="plain file"):
        unpack(archive, target)
    assert [path.name for path in target.iterdir()] == ["old.txt"]
