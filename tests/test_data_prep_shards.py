"""Stage `pack_shards`: what is in a shard, where, and that each view is made by the one preparation path."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_prep.shards import stage as shards_stage
from data_prep.shards.stage import run_pack_shards
from data_prep.tars import TarWriter, read_tar
from imprint.core.errors import InputError
from imprint.core.params import Params
from imprint.core.pixels import decode_image, encode_image
from imprint.core.prepare import crop_object, crop_scene
from imprint.core.records import PairRecord, ViewRecord, build_id, load_records


def read_bytes_at(root: Path, shard: str, offset: int, count: int) -> bytes:
    with (root / "data/shards" / shard).open("rb") as file:
        file.seek(offset)
        return file.read(count)


def link_inputs(prepared: Path, root: Path) -> None:
    (root / "data").mkdir()
    for name in ("clips.parquet", "pairs.parquet", "frames", "masks"):
        (root / "data" / name).symlink_to(prepared / "data" / name)


def list_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_pair_finds_its_views_in_its_own_split(prepared):
    views = {row.view_id: row for row in load_records(prepared / "data/shards/views.parquet", ViewRecord)}
    pairs = load_records(prepared / "data/shards/pairs.parquet", PairRecord)
    assert pairs == load_records(prepared / "data/pairs.parquet", PairRecord)
    needed = set()
    for pair in pairs:
        for index in (pair.reference_index, pair.target_index):
            view = views[build_id(pair.clip_id, pair.track, index)]
            assert view.split == pair.split
            needed.add(view.view_id)
    assert needed == set(views)


def test_offsets_and_member_names_agree(prepared):
    rows = load_records(prepared / "data/shards/views.parquet", ViewRecord)
    for shard in {row.shard for row in rows}:
        members = read_tar(prepared / "data/shards" / shard)
        of_shard = [row for row in rows if row.shard == shard]
        assert len(members) == 3 * len(of_shard)
        for row in of_shard:
            for part, suffix in (("object", "png"), ("scene", "jpg"), ("mask", "png")):
                place = getattr(row, f"{part}_offset"), getattr(row, f"{part}_bytes")
                assert read_bytes_at(prepared, shard, *place) == members[f"{row.view_id}.{part}.{suffix}"]


def test_a_packed_view_equals_the_preparation_of_its_frame(prepared, clip_params: Params):
    section = clip_params.pack_shards
    for row in load_records(prepared / "data/shards/views.parquet", ViewRecord)[::17]:
        frames, masks = (read_tar(prepared / f"data/{kind}/{row.clip_id}.tar") for kind in ("frames", "masks"))
        image = decode_image(frames[f"{row.sample_index:06d}.jpg"], "frame")
        mask = decode_image(masks[f"{row.sample_index:06d}.png"], "mask")[..., 0] == row.track
        scene = crop_scene(image, mask, section.size_px, section.scene_context)
        packed = [
            read_bytes_at(prepared, row.shard, *place)
            for place in (
                (row.object_offset, row.object_bytes),
                (row.scene_offset, row.scene_bytes),
                (row.mask_offset, row.mask_bytes),
            )
        ]
        np.testing.assert_array_equal(decode_image(packed[0], "object"), crop_object(image, mask, section.reference_px))
        assert packed[1] == encode_image(scene.image, ".jpg", section.jpeg_quality)
        np.testing.assert_array_equal(decode_image(packed[2], "mask")[..., 0] > 127, scene.hole)


def test_shards_keep_their_size_and_a_kill_loses_only_the_unfinished_one(prepared, tmp_path, clip_params, monkeypatch):
    section = clip_params.pack_shards.model_copy(update={"shard_mb": 0.3})
    params = clip_params.model_copy(update={"pack_shards": section})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for root in (whole, killed):
        root.mkdir()
        link_inputs(prepared, root)
    run_pack_shards(params, whole)
    sizes = [path.stat().st_size for path in (whole / "data/shards").glob("*.tar")]
    assert len(sizes) > 5
    assert max(sizes) <= 0.3e6 + tarfile.RECORDSIZE

    made = []

    def stop_at_the_third(path: Path, views):
        if len(made) == 2:
            path.write_bytes(b"half a shard")
            raise KeyboardInterrupt
        made.append(path.name)
        return write(path, views)

    write = shards_stage.write_shard
    monkeypatch.setattr(shards_stage, "write_shard", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_pack_shards(params, killed)
    assert not (killed / "data/shards").exists()
    written = []
    monkeypatch.setattr(
        shards_stage, "write_shard", lambda path, views: written.append(path.name) or write(path, views)
    )
    run_pack_shards(params, killed)
    assert set(made).isdisjoint(written)
    assert list_files(killed / "data/shards") == list_files(whole / "data/shards")


def test_a_tar_of_the_same_members_has_the_same_bytes_and_known_offsets(tmp_path):
    for name in ("a.tar", "b.tar"):
        with TarWriter(tmp_path / name) as tar:
            offsets = [tar.add("one", b"x" * 700), tar.add("two", b"y")]
    data = (tmp_path / "a.tar").read_bytes()
    assert data == (tmp_path / "b.tar").read_bytes()
    assert data[offsets[0] : offsets[0] + 700] == b"x" * 700
    assert data[offsets[1] : offsets[1] + 1] == b"y"


def test_a_damaged_tar_is_one_line(tmp_path):
    (tmp_path / "bad.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(InputError, match=r"bad\.tar cannot be read"):
        read_tar(tmp_path / "bad.tar")
