"""The base model's recipe at preset `tiny`, the export, and the packing of a rendered world (without a renderer)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from demo.archive import write_tar
from demo.catalogue import HELD_OUT_SEEDS, TRAINING_SEEDS
from demo.world_shards import NEAR_DEG, compute_turn, pack_world, read_objects
from imprint.base.export import check_size
from imprint.base.recipe import train_base
from imprint.core.errors import InputError
from imprint.core.params import Params, load_params
from imprint.core.pixels import decode_image, encode_image, load_image, put_on_black
from imprint.data import ShardReader
from imprint.models import load_card, load_model

ROOT = Path(__file__).resolve().parents[1]
NUM_ALONE, SIZE_PX = 6, 64
SHORT = {
    "threads": 1,
    "max_steps": 3,
    "half_size_steps": 1,
    "batch_size": 4,
    "warmup_steps": 1,
    "log_every_steps": 1,
    "checkpoint_every_steps": 3,
    "validate_every_steps": 3,
    "validation_pairs": 4,
}


def write_object(folder: Path, seed: int) -> None:
    """What `demo.training_world` writes for one object: cut-outs from all round, and one scene."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(40, 256, 3)
    members, views = {}, []
    for index in range(NUM_ALONE + 1):
        turn = 360.0 * index / NUM_ALONE
        mask = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
        mask[12 : 52 - index, 10 + index : 54] = 255
        picture = np.empty((SIZE_PX, SIZE_PX, 3), np.uint8)
        picture[:] = colour
        if index < NUM_ALONE:
            rgba = np.dstack([picture * (mask[..., None] > 0), mask])
            members[f"{index:02d}.object.webp"] = encode_image(rgba, ".webp", 85)
            views.append({"index": index, "kind": "alone", "turn_deg": turn})
        else:
            small = np.zeros_like(mask)
            small[20:44, 18:46] = 255
            scene = np.where(small[..., None] > 0, picture, np.uint8(110))
            members[f"{index:02d}.scene.jpg"] = encode_image(scene, ".jpg", 90)
            members[f"{index:02d}.plate.jpg"] = encode_image(np.full_like(scene, 110), ".jpg", 90)
            members[f"{index:02d}.mask.png"] = encode_image(small, ".png")
            views.append({"index": index, "kind": "scene", "turn_deg": 10.0, "stage": 0})
    members["views.json"] = json.dumps({"seed": seed, "views": views}).encode()
    write_tar(folder / f"{seed}.tar", members)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training objects, two of them for validation, and three held-out ones."""
    folder = tmp_path_factory.mktemp("world")
    training = [TRAINING_SEEDS.start + offset for offset in (0, 1, 2, 3, 4, 5, 50, 51)]
    for seed in [*training, *HELD_OUT_SEEDS[:3]]:
        write_object(folder, seed)
    return folder


@pytest.fixture(scope="module")
def shards(world: Path) -> Path:
    target = world.parent / "packed" / "shards"
    pack_world(world, target)
    assert [path.name for path in target.parent.iterdir()] == ["shards"], "nothing is left beside the shards"
    return target


@pytest.fixture(scope="module")
def params() -> Params:
    values = load_params(ROOT / "params.yaml", ROOT / "params" / "base-cpu.yaml").model_dump()
    values["pretrain_encoder"] |= {"preset": "tiny", **SHORT}
    values["train_compositor"] |= SHORT
    values["freeze_encoder"]["verify_pairs"] = 2
    return Params.model_validate(values)


# --- the world's shards


def test_splits_follow_the_seeds_and_views_come_back(world: Path, shards: Path) -> None:
    reader = ShardReader(shards)
    splits = {pair.clip_id: pair.split for pair in reader.pairs}
    held_out = {str(seed) for seed in HELD_OUT_SEEDS[:3]}
    assert {clip for clip, split in splits.items() if split == "test"} == held_out
    assert {clip for clip, split in splits.items() if split == "val"} == {"1000000", "1000050"}
    things = {thing.clip_id: thing for thing in read_objects(world)}
    for pair in reader.pairs:
        reference, target = reader.read_pair(pair)
        stored = decode_image(things[pair.clip_id].members[f"{pair.reference_index:02d}.object.webp"], "")
        assert np.array_equal(reference.object_rgba, stored)
        if pair.kind == "video":
            assert target.mask.sum() == 24 * 28
            assert target.plate is not None
            assert np.abs(target.plate.astype(int) - 110).max() <= 2
        else:
            assert np.array_equal(target.scene, put_on_black(target.object_rgba))
            assert target.plate is None


def test_kinds_of_pair_and_their_view_change(world: Path, shards: Path) -> None:
    turns = {thing.clip_id: {view["index"]: view for view in thing.views} for thing in read_objects(world)}
    pairs = ShardReader(shards).pairs
    assert len({pair.pair_id for pair in pairs}) == len(pairs)
    for pair in pairs:
        views = turns[pair.clip_id]
        change = compute_turn(views[pair.reference_index], views[pair.target_index])
        assert pair.view_change == pytest.approx(change / 180, abs=1e-4)
        assert (pair.reference_index == pair.target_index) == (pair.kind == "single")
        assert (views[pair.target_index]["kind"] == "scene") == (pair.kind == "video")
        assert views[pair.reference_index]["kind"] == "alone"
    near = [pair.view_change * 180 <= NEAR_DEG for pair in pairs if pair.kind == "multiview"]
    assert 0 < sum(near) < len(near)


def test_the_turn_between_two_views_goes_the_short_way_round() -> None:
    turns = [(10, 350, 20), (0, 180, 180), (90, 80, 10), (359, 1, 2)]
    for first, second, expected in turns:
        assert compute_turn({"turn_deg": first}, {"turn_deg": second}) == expected


def test_a_lower_quality_gives_smaller_shards_with_the_same_views(world: Path, shards: Path, tmp_path: Path) -> None:
    pack_world(world, tmp_path / "small", quality=10)
    small, whole = (ShardReader(folder) for folder in (tmp_path / "small", shards))
    assert small.pairs == whole.pairs
    sizes = [sum(path.stat().st_size for path in folder.glob("*.tar")) for folder in (tmp_path / "small", shards)]
    assert sizes[0] < sizes[1]
    view, exact = (reader.read_pair(whole.pairs[0])[0] for reader in (small, whole))
    assert np.array_equal(view.object_rgba[..., 3], exact.object_rgba[..., 3]), "opacity is kept without loss"


# --- the recipe


@pytest.fixture(scope="module")
def base(params: Params, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("base")
    train_base(params, shards, work=root / "work", out=root / "base", command="make it")
    assert sorted(path.name for path in root.iterdir()) == ["base", "work"], "nothing is left beside the checkpoint"
    return root


def test_the_checkpoint_is_whole_small_and_in_half_precision(base: Path) -> None:
    shipped, trained = load_model(base / "base"), load_model(base / "work" / "models" / "compositor")
    for name, value in trained.named_parameters():
        assert torch.equal(shipped.get_parameter(name), value.half().float()), name
    assert load_card(base / "base")["steps"] == SHORT["max_steps"]
    assert (base / "base" / "scheduler" / "scheduler_config.json").is_file()
    for name in ("contact_sheet", "objects_sheet"):
        whole = load_image(base / "work" / "reports" / "world" / f"{name}.png")
        assert load_image(base / "base" / f"{name}.jpg").shape == whole.shape


def test_the_card_has_the_measured_numbers_and_the_command(base: Path) -> None:
    text = (base / "base" / "README.md").read_text()
    metrics = json.loads((base / "base" / "metrics.json").read_text())
    assert metrics == json.loads((base / "work" / "reports" / "world" / "world.json").read_text())
    cell = metrics["identity"]["right_psnr_db"]
    assert f"{cell['mean']:.2f} ({cell['low']:.2f} to {cell['high']:.2f})" in text
    mean, paste = (metrics["composites"]["levels"]["box"][name]["object_psnr_db"] for name in ("ours", "paste"))
    low, high = metrics["composites"]["intervals"]["levels"]["box"]["ours"]["object_psnr_db"]
    goal = f"at least {paste + 2:.1f} | {paste:.1f} | {mean:.1f} ({low:.1f} to {high:.1f})"
    assert f"| object PSNR dB | box | {goal} |" in text
    assert "`make it`" in text
    assert "3 steps of 4 samples, the first 1 at half the size" in text
    assert "{" not in text
    assert "| demo/training_world.py | CC0-1.0 | 11 |" in text
    assert load_card(base / "base")["sources"] == [
        {"source": "demo/training_world.py", "licence": "CC0-1.0", "items": 11}
    ]


def test_run_again_it_trains_nothing_and_gives_the_same_weights(base: Path, params: Params, shards: Path) -> None:
    marks = {path: path.stat().st_mtime_ns for path in (base / "work" / "models").rglob("*") if path.is_file()}
    weights = (base / "base" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    train_base(params, shards, work=base / "work", out=base / "base", command="make it")
    assert {path: path.stat().st_mtime_ns for path in marks} == marks
    assert (base / "base" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights


def test_going_on_with_a_checkpoint_trains_all_of_it_and_each_call_is_another_round(
    base: Path, params: Params, shards: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(base / "base", checkpoint)
    values = params.model_dump()
    values["pretrain_encoder"] |= {"init": str(checkpoint), "freeze_unet_encoder": False, "max_steps": 1}
    values["train_compositor"] |= {"max_steps": 1}
    more = Params.model_validate(values)
    started = load_model(checkpoint)
    train_base(more, shards, work=tmp_path / "work", out=checkpoint, command="go on")
    pretrained = load_model(tmp_path / "work" / "models" / "pretrained")
    moved = {
        name for name, value in pretrained.named_parameters() if not torch.equal(value, started.get_parameter(name))
    }
    assert any(name.startswith("unet.down_blocks") for name in moved), "the U-Net's encoder trains too"
    card = (checkpoint / "README.md").read_text()
    assert card.index("Round 1") < card.index("`make it`") < card.index("Round 2") < card.index("`go on`")
    first = (checkpoint / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    train_base(more, shards, work=tmp_path / "work", out=checkpoint, command="go on")
    assert (checkpoint / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() != first


def test_a_start_that_is_no_model_is_named(params: Params, shards: Path, tmp_path: Path) -> None:
    values = params.model_dump()
    values["pretrain_encoder"]["init"] = "nowhere"
    with pytest.raises(InputError, match=r"pretrain_encoder.init: nowhere holds no model"):
        train_base(Params.model_validate(values), shards, work=tmp_path / "w", out=tmp_path / "o", command="")
    assert not (tmp_path / "w").exists()


def test_a_folder_without_shards_is_named(params: Params, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere holds no shards .* see demo/README.md"):
        train_base(params, tmp_path / "nowhere", work=tmp_path / "work", out=tmp_path / "out", command="")
    assert not (tmp_path / "work").exists()


def test_a_checkpoint_too_large_for_the_repository_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(bytes(9_000_000))
    check_size(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(bytes(16_000_001))
    with pytest.raises(InputError, match=r"b.safetensors has 16,000,001 bytes"):
        check_size(tmp_path)
    for name in "bcd":
        (tmp_path / f"{name}.safetensors").write_bytes(bytes(12_000_000))
    with pytest.raises(InputError, match=r"45,000,000 bytes, more than 40,000,000"):
        check_size(tmp_path)


@pytest.mark.parametrize("name", ["base.yaml", "base-cpu.yaml", "base-more.yaml", "base-flow.yaml"])
def test_the_shipped_recipes_are_valid(name: str) -> None:
    params = load_params(ROOT / "params.yaml", ROOT / "params" / name)
    assert params.pretrain_encoder.init == (
        "checkpoints/base" if name in ("base-more.yaml", "base-flow.yaml") else "checkpoints/fresh"
    )
    assert params.train_compositor.init_unet == "models/pretrained"
