"""Shards, draws, samples and loaders: deterministic, exact, and equal to what inference sees."""

from __future__ import annotations

import gc
import pickle
import shutil
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imprint.core.errors import InputError
from imprint.core.masks import MASK_LEVELS, add_contact_margin, compute_mask_levels, compute_object_size_px
from imprint.core.pixels import put_on_black, to_model_range
from imprint.core.prepare import crop_object, crop_scene
from imprint.core.records import PairRecord, ViewRecord, load_records, save_records
from imprint.data import (
    BatchShares,
    CompositingBatch,
    DrawRules,
    PairDataset,
    ShardReader,
    build_compositing_sample,
    build_fixed_batch,
    build_identity_sample,
    check_sizes,
    choose_strangers,
    halve_batch,
    load_batches,
    select_pairs,
    spread_pairs,
)
from imprint.data.cache import get_process_cache, limit_cache_bytes, share_budget
from imprint.data.draws import draw_sample
from tests.synthetic import CLIPS, VIEWS_PER_CLIP, draw_frame

MIXTURE = DrawRules(
    mixture={"video": 0.7, "single": 0.3},
    levels={"exact": 0.1, "soft": 0.2, "coarse": 0.3, "box": 0.4},
    max_contact_margin=0.08,
    flip_rate=0.25,
    swap_rate=0.5,
)


@pytest.fixture(scope="module")
def reader(synthetic_shards: Path) -> ShardReader:
    return ShardReader(synthetic_shards)


def build_dataset(reader: ShardReader, rules: DrawRules = MIXTURE, seed: int = 0) -> PairDataset[CompositingBatch]:
    pairs = select_pairs(reader, sorted(rules.mixture), split="train")
    return PairDataset(reader, pairs, rules, build_compositing_sample, seed)


def assert_same(a: CompositingBatch, b: CompositingBatch) -> None:
    for field in fields(a):
        assert torch.equal(getattr(a, field.name), getattr(b, field.name)), field.name


def test_views_come_back_as_they_were_packed(reader: ShardReader) -> None:
    pair = next(pair for pair in reader.pairs if pair.kind == "multiview")
    image, mask = draw_frame(int(pair.clip_id[4:]), pair.reference_index)
    view, _ = reader.read_pair(pair)
    scene = crop_scene(image, mask, 64)
    assert np.array_equal(view.object_rgba, crop_object(image, mask, 64))
    assert np.array_equal(view.mask, scene.hole)
    assert np.abs(view.scene.astype(int) - scene.image).mean() < 4  # JPEG


def test_cache_stays_within_its_bound_and_is_not_copied(synthetic_shards: Path) -> None:
    whole = ShardReader(synthetic_shards, cache_bytes=1 << 30)
    num_bytes = whole.read_pair(whole.pairs[0])[0].num_bytes
    small = ShardReader(synthetic_shards, cache_bytes=2 * num_bytes)
    for pair in small.pairs:
        for mine, other in zip(small.read_pair(pair), whole.read_pair(pair), strict=True):
            assert np.array_equal(mine.scene, other.scene)
    assert 0 < small.cache.num_bytes <= 2 * num_bytes
    assert whole.cache.num_bytes == sum(map(len, CLIPS.values())) * VIEWS_PER_CLIP * num_bytes
    assert len(pickle.dumps(whole)) < whole.cache.num_bytes / 10


def read_all(reader: ShardReader) -> int:
    for pair in reader.pairs:
        reader.read_pair(pair)
    return reader.cache.num_bytes


def test_all_readers_of_a_process_share_one_budget(synthetic_shards: Path) -> None:
    """And one that is gone keeps nothing."""
    gc.collect()
    first = ShardReader(synthetic_shards)
    before = first.cache.num_bytes
    alone = read_all(first) - before
    copies = [pickle.loads(pickle.dumps(first)) for _ in range(2)]
    assert [read_all(copy) - before for copy in copies] == [2 * alone, 3 * alone]
    try:
        share_budget(limit_cache_bytes() // alone)  # room for one of them
        assert first.cache.num_bytes <= 2 * alone
        assert all(read_all(reader) <= 2 * alone for reader in (first, *copies))
    finally:
        share_budget(1)
    kept = first.cache.num_bytes
    del copies
    gc.collect()
    assert first.cache.num_bytes < kept


@dataclass(frozen=True)
class Budget:
    """In the place of a batch: what the process may keep that built it."""

    max_bytes: torch.Tensor


def tell_budget(draw: object, *views: object) -> Any:
    return Budget(torch.tensor([get_process_cache()._max_bytes]))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_loader_and_its_workers_share_one_budget(
    num_workers: int, reader: ShardReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    pairs = select_pairs(reader, ["video", "single"], split="train")
    dataset = PairDataset(reader, pairs, MIXTURE, tell_budget, 0)
    shares = BatchShares(batch_size=4, num_processes=4)
    try:
        batches = load_batches(dataset, start_step=0, num_steps=3, shares=shares, num_workers=num_workers)
        told = [int(batch.max_bytes) for batch in batches]
        mine = get_process_cache()._max_bytes
    finally:
        share_budget(1)
    assert {mine, *told} == {limit_cache_bytes() // (2 * (num_workers + 1))}


def test_a_view_that_is_missing_or_damaged_is_named(synthetic_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for path in synthetic_shards.iterdir():
        data = path.read_bytes()
        (folder / path.name).write_bytes(data[:600] if path.suffix == ".tar" else data)
    broken = ShardReader(folder)
    with pytest.raises(InputError, match="not a readable image"):
        broken.read_pair(next(pair for pair in broken.pairs if pair.reference_index == 2))
    with pytest.raises(InputError, match=f"pair {broken.pairs[0].pair_id}: its view"):
        broken.read_view(broken.pairs[0], 77)
    (folder / "train-00000.tar").unlink()
    with pytest.raises(InputError, match=r"train-00000.tar cannot be read"):
        broken.read_pair(next(pair for pair in broken.pairs if pair.split == "train"))


def test_too_few_pairs_and_wrong_sizes_name_the_setting(reader: ShardReader) -> None:
    found = len(select_pairs(reader, ["video"], split="train")["video"])
    with pytest.raises(InputError, match=rf"{found} video pairs .* 999 .*mine_pairs.max_pairs_per_track.video"):
        select_pairs(reader, ["video"], split="train", at_least=999)
    with pytest.raises(InputError, match=r"pack_shards.size_px 64, but preset base needs 128"):
        check_sizes(reader, reader.pairs[0], preset="base", size_px=128, reference_px=64)
    check_sizes(reader, reader.pairs[0], preset="tiny", size_px=64, reference_px=64)


def test_a_draw_is_a_function_of_seed_and_position(reader: ShardReader) -> None:
    pairs = select_pairs(reader, ["video", "single"], split="train")
    draws = [draw_sample(MIXTURE, pairs, seed=0, position=position) for position in range(40)]
    again = [draw_sample(MIXTURE, pairs, seed=0, position=position) for position in reversed(range(40))]
    assert draws == again[::-1]
    assert draws != [draw_sample(MIXTURE, pairs, seed=1, position=position) for position in range(40)]


def test_shares_of_draws(reader: ShardReader) -> None:
    """Each count lies within four standard deviations of a binomial."""
    pairs = select_pairs(reader, ["video", "single"], split="train")
    total = 4000
    draws = [draw_sample(MIXTURE, pairs, seed=3, position=position) for position in range(total)]
    kinds, levels = Counter(draw.pair.kind for draw in draws), Counter(draw.level for draw in draws)
    flips = sum(draw.mirrored for draw in draws)
    swaps = sum(draw.channels != (0, 1, 2) for draw in draws)
    observed = {**kinds, **levels, "flip": flips, "swap": swaps}
    # one of the six permutations changes nothing
    expected = {**MIXTURE.mixture, **MIXTURE.levels, "flip": 0.25, "swap": 0.5 * 5 / 6}
    for key, share in expected.items():
        assert abs(observed[key] - share * total) < 4 * (share * (1 - share) * total) ** 0.5, key
    margins = np.array([draw.margin_share for draw in draws if draw.level != "exact"])
    assert margins.min() == 0.0
    assert margins.max() <= 0.08
    assert abs((margins == 0).mean() - 0.5) < 0.04
    assert abs(margins.mean() - 0.02) < 0.002
    assert not any(draw.margin_share for draw in draws if draw.level == "exact")
    assert len({draw.pair.pair_id for draw in draws}) == sum(map(len, pairs.values()))


def test_shares_of_zero_are_an_error(reader: ShardReader) -> None:
    pairs = select_pairs(reader, ["video"], split="train")
    with pytest.raises(InputError, match="share of 0"):
        draw_sample(DrawRules(mixture={"video": 1.0}, levels={}), pairs, seed=0, position=0)


def test_a_sample_without_augmentation_equals_the_inference_input(reader: ShardReader) -> None:
    """The training's reference and hole are those that inference makes of the same frame; no draw, no change."""
    rules = DrawRules(mixture={"video": 1.0}, levels={"box": 1.0})
    dataset = build_dataset(reader, rules)
    sample = dataset[5]
    pair = draw_sample(rules, dataset.pairs, seed=0, position=5).pair
    image, mask = draw_frame(int(pair.clip_id[4:]), pair.reference_index)
    reference = to_model_range(put_on_black(crop_object(image, mask, 64)))
    assert np.array_equal(sample.reference[0].numpy(), reference)
    view = reader.read_pair(pair)[1]
    inference = crop_scene(view.scene, compute_mask_levels(view.mask)["box"], 64)  # a background of the model's size
    assert np.array_equal(sample.scene[0].numpy(), to_model_range(inference.image))
    assert np.array_equal(sample.hole[0, 0].numpy(), inference.hole)
    assert MASK_LEVELS[int(sample.level)] == "box"


def test_reference_and_target_are_mirrored_and_recoloured_together(reader: ShardReader) -> None:
    changed = DrawRules(mixture={"video": 1.0}, levels={"soft": 1.0}, flip_rate=1.0, swap_rate=1.0)
    plain = DrawRules(mixture={"video": 1.0}, levels={"soft": 1.0})
    after, before = build_dataset(reader, changed)[0], build_dataset(reader, plain)[0]
    channels = list(draw_sample(changed, build_dataset(reader).pairs, seed=0, position=0).channels)
    for name in ("reference", "scene"):
        assert torch.equal(getattr(after, name), getattr(before, name)[:, channels].flip(-1)), name
    assert torch.equal(after.opacity, before.opacity.flip(-1))
    assert (after.hole == before.hole.flip(-1)).float().mean() > 0.99  # blurring need not be symmetric


def test_the_hole_is_the_drawn_level_with_its_margin(reader: ShardReader) -> None:
    dataset = build_dataset(reader)
    for position in range(8):
        draw = draw_sample(MIXTURE, dataset.pairs, seed=0, position=position)
        mask = reader.read_pair(draw.pair)[1].mask[:, :: -1 if draw.mirrored else 1]
        hole = compute_mask_levels(mask)[draw.level]
        expected = add_contact_margin(hole, compute_object_size_px(mask), draw.margin_share)
        sample = dataset[position]
        assert np.array_equal(sample.hole[0, 0].numpy(), expected)
        assert int(sample.level) == MASK_LEVELS.index(draw.level)
        assert bool(sample.is_single) == (draw.pair.kind == "single")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_same_from_any_start_and_any_number_of_workers(reader: ShardReader, num_workers: int) -> None:
    dataset = build_dataset(reader)
    plain = list(load_batches(dataset, start_step=0, num_steps=3, shares=BatchShares(batch_size=4), num_workers=0))
    later = list(
        load_batches(dataset, start_step=1, num_steps=3, shares=BatchShares(batch_size=4), num_workers=num_workers)
    )
    assert [batch.position.tolist() for batch in plain] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert len(later) == 2
    for a, b in zip(plain[1:], later, strict=True):
        assert_same(a, b)


def test_identity_samples_show_both_views_on_black(reader: ShardReader) -> None:
    pairs = select_pairs(reader, ["multiview"], split="val")["multiview"]
    rules = DrawRules(mixture={"multiview": 1.0})
    batch = build_fixed_batch(reader, pairs[:3], rules=rules, build_sample=build_identity_sample, seed=0)
    for row, pair in enumerate(pairs[:3]):
        for name, view in zip(("reference", "target"), reader.read_pair(pair), strict=True):
            expected = to_model_range(put_on_black(view.object_rgba))
            assert np.array_equal(getattr(batch, name)[row].numpy(), expected), name
    assert (batch.reference[(batch.opacity == 0).expand_as(batch.reference)] == -1).all()


def test_multiview_pairs_give_stage_2_the_task_of_stage_1(reader: ShardReader) -> None:
    """The object on black, and all of the picture is the hole, read as a box."""
    pairs = select_pairs(reader, ["multiview"], split="val")["multiview"][:3]
    rules = DrawRules(mixture={"multiview": 1.0}, levels={"exact": 1.0})
    compositing = build_fixed_batch(reader, pairs, rules=rules, build_sample=build_compositing_sample, seed=0)
    identity = build_fixed_batch(reader, pairs, rules=rules, build_sample=build_identity_sample, seed=0)
    assert torch.equal(compositing.scene, identity.target)
    assert torch.equal(compositing.reference, identity.reference)
    assert compositing.hole.all()
    assert compositing.level.tolist() == [MASK_LEVELS.index("box")] * 3


def test_a_halved_batch_keeps_its_references_and_every_hole(reader: ShardReader) -> None:
    batch = collate_first(build_dataset(reader), 4)
    half = halve_batch(batch)
    assert torch.equal(half.reference, batch.reference)
    corners = [batch.scene[..., y::2, x::2] for y in (0, 1) for x in (0, 1)]
    assert torch.allclose(half.scene, torch.stack(corners).mean(0), atol=1e-6)
    holes = [batch.hole[..., y::2, x::2] for y in (0, 1) for x in (0, 1)]
    assert torch.equal(half.hole, torch.stack(holes).any(0))


def collate_first(dataset: PairDataset[CompositingBatch], count: int) -> CompositingBatch:
    return next(load_batches(dataset, start_step=0, num_steps=1, shares=BatchShares(batch_size=count), num_workers=0))


@pytest.mark.parametrize("absent", ["scene", "object"])
def test_a_part_that_is_not_stored_follows_from_the_others(synthetic_shards: Path, tmp_path: Path, absent: str) -> None:
    """A view alone has black about it; an object stored in its scene only is cut out of it."""
    shutil.copytree(synthetic_shards, tmp_path / "shards")
    rows = load_records(tmp_path / "shards" / "views.parquet", ViewRecord)
    empty = {f"{part}_bytes": 0 for part in ({"scene": ("scene", "mask"), "object": ("object",)}[absent])}
    save_records(tmp_path / "shards" / "views.parquet", ViewRecord, [replace(row, **empty) for row in rows])
    stored, derived = ShardReader(synthetic_shards), ShardReader(tmp_path / "shards")
    pair = stored.pairs[0]
    whole, view = stored.read_pair(pair)[0], derived.read_pair(pair)[0]
    if absent == "scene":
        assert np.array_equal(view.object_rgba, whole.object_rgba)
        assert np.array_equal(view.scene, put_on_black(whole.object_rgba))
        assert np.array_equal(view.mask, whole.object_rgba[..., 3] > 127)
    else:
        assert np.array_equal(view.scene, whole.scene)
        assert np.array_equal(view.object_rgba, crop_object(whole.scene, whole.mask, whole.scene.shape[0]))


def test_strangers_show_other_objects_and_spread_pairs_cover_the_clips(reader: ShardReader) -> None:
    pairs = spread_pairs(select_pairs(reader, ["video"], split="val")["video"], 6)
    assert {pair.clip_id for pair in pairs} == {f"clip{clip:02d}" for clip in CLIPS["val"]}
    assert len({pair.pair_id for pair in pairs}) == 6
    strangers = choose_strangers(pairs)
    assert all(pairs[index].clip_id != pair.clip_id for pair, index in zip(pairs, strangers, strict=True))
    alone: list[PairRecord] = [pair for pair in pairs if pair.clip_id == pairs[0].clip_id]
    assert choose_strangers(alone) == list(range(len(alone)))
