"""Beyond the paper: several views of the object, and a zoomed crop of each. Off, it is the paper's model exactly."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from imprint.core.errors import InputError
from imprint.core.geometry import Box
from imprint.core.params import load_params
from imprint.core.prepare import crop_detail, list_object_crops
from imprint.data import (
    DrawRules,
    PairDataset,
    ShardReader,
    build_compositing_sample,
    build_fixed_batch,
    build_identity_sample,
    select_pairs,
    swap_objects,
)
from imprint.data.draws import draw_sample
from imprint.diffusion import build_generators, sample_object
from imprint.inference.composer import Compositor
from imprint.models import PRESETS, ImprintModel, build_model, load_model
from imprint.training.compositor_stage import run_train_compositor
from imprint.training.freeze_stage import run_freeze_encoder
from imprint.training.pretrain_stage import run_pretrain_encoder
from imprint.training.tasks import CompositingTask
from tests.evaluation_cases import draw_case
from tests.synthetic import VIEWS_PER_CLIP, write_shards
from tests.test_inference import build_request
from tests.test_training import SHORT, change

ROOT = Path(__file__).resolve().parents[1]
RULES = DrawRules(mixture={"video": 1.0}, flip_rate=0.5)
SEVERAL = replace(RULES, max_references=3)


@pytest.fixture(scope="module")
def model() -> ImprintModel:
    built = build_model(replace(PRESETS["tiny"], max_references=3), seed=0)
    torch.nn.init.normal_(built.unet.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return built


@pytest.fixture(scope="module")
def reader(synthetic_shards: Path) -> ShardReader:
    return ShardReader(synthetic_shards)


def draw_pictures(count: int) -> Tensor:
    return torch.rand(2, count, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def denoise(model: ImprintModel, pictures: Tensor, present: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x_t = torch.randn(2, 192, 8, 8, generator=generator)
    with torch.no_grad():
        tokens, counts = model.encode_pictures(pictures[:, 0], pictures[:, 1:], present)
        return model.denoise(x_t, torch.tensor([300, 900]), tokens, None, counts)


# --- the model


def test_the_order_of_the_views_does_not_matter(model: ImprintModel) -> None:
    pictures, present = draw_pictures(3), torch.ones(2, 2, dtype=torch.bool)
    first, turned = denoise(model, pictures, present), denoise(model, pictures[:, [2, 0, 1]], present)
    torch.testing.assert_close(first, turned, rtol=1e-4, atol=1e-5)
    assert (first - denoise(model, pictures.flip(0), present)).abs().max() > 1e-2, "the views do matter"


def test_a_view_that_is_not_present_is_never_looked_at(model: ImprintModel) -> None:
    """Whatever stands in its place; and a single view is the paper's model within float tolerance."""
    pictures, none = draw_pictures(3), torch.zeros(2, 2, dtype=torch.bool)
    other = pictures.clone()
    other[:, 1:] = 0.3
    assert torch.equal(denoise(model, pictures, none), denoise(model, other, none))
    alone = denoise(model, pictures[:, :1], none[:, :0])
    torch.testing.assert_close(denoise(model, pictures, none), alone, rtol=1e-4, atol=1e-5)
    mixed = torch.tensor([[True, False], [False, False]])
    assert (denoise(model, pictures, mixed)[0] - alone[0]).abs().max() > 1e-3
    torch.testing.assert_close(denoise(model, pictures, mixed)[1], alone[1], rtol=1e-4, atol=1e-5)


def test_with_one_view_it_is_the_papers_model_bit_for_bit(model: ImprintModel) -> None:
    reference = draw_pictures(1)[:, 0]
    with torch.no_grad():
        tokens, counts = model.encode_pictures(
            reference, reference[:, None][:, :0], torch.zeros(2, 0, dtype=torch.bool)
        )
        assert counts is None
        assert torch.equal(tokens, model.encode_object(reference))


def test_guidance_takes_several_views(model: ImprintModel) -> None:
    pictures = draw_pictures(3)
    with torch.no_grad():
        tokens, counts = model.encode_pictures(
            pictures[:, 0], pictures[:, 1:], torch.tensor([[True, True], [False, True]])
        )
    settings = {"steps": 2, "guidance": 2.0, "generator": build_generators(2, 0)}
    assert sample_object(model, tokens, counts=counts, **settings).isfinite().all()


# --- the data


def test_one_to_k_views_are_drawn_and_all_else_stays(reader: ShardReader) -> None:
    pairs = select_pairs(reader, ["video"], split="train")
    drawn = [[draw_sample(rules, pairs, seed=0, position=n) for n in range(900)] for rules in (RULES, SEVERAL)]
    counts = np.bincount([len(draw.others) for draw in drawn[1]])
    assert counts.sum() == 900
    assert (np.abs(counts - 300) < 60).all(), counts
    assert [replace(draw, others=(), max_references=1) for draw in drawn[1]] == drawn[0]


def test_further_views_show_the_same_object_and_never_the_target(reader: ShardReader) -> None:
    for pair in reader.pairs[:40]:
        reference, target = reader.read_pair(pair)
        others = reader.read_others(pair, (0.0, 0.99, 0.5, 0.2))
        taken = {pair.reference_index, pair.target_index}
        assert len(others) == VIEWS_PER_CLIP - len(taken), "as many as there are"
        seen = [reference, target] if len(taken) == 2 else [target]
        own = [reader.read_view(pair, index) for index in range(VIEWS_PER_CLIP)]
        assert {id(view) for view in [*seen, *others]} == {id(view) for view in own}


@pytest.mark.parametrize("detail", [False, True])
def test_a_batch_holds_the_views_and_says_which_are_there(reader: ShardReader, detail: bool) -> None:
    pairs = select_pairs(reader, ["video"], split="train")
    rules = replace(SEVERAL, detail=detail)
    dataset = PairDataset(reader, pairs, rules, build_compositing_sample, 0)
    plain = PairDataset(reader, pairs, RULES, build_compositing_sample, 0)
    side, per_view = (32, 2) if detail else (64, 1)
    for position in range(8):
        sample, draw = dataset[position], draw_sample(rules, pairs, seed=0, position=position)
        assert sample.more.shape == (1, 3 * per_view - 1, 3, side, side)
        assert int(sample.present.sum()) == (1 + len(draw.others)) * per_view - 1
        assert (sample.more[~sample.present] == -1).all(), "black where there is no view"
        assert torch.equal(sample.scene, plain[position].scene)
        assert detail or torch.equal(sample.reference, plain[position].reference)
        assert plain[position].more.shape == (1, 0, 3, 64, 64)


def test_another_objects_pictures_are_swapped_together(reader: ShardReader) -> None:
    pairs = select_pairs(reader, ["multiview"], split="val")["multiview"][:4]
    rules = replace(SEVERAL, mixture={"multiview": 1.0})
    batch = build_fixed_batch(reader, pairs, rules=rules, build_sample=build_identity_sample, seed=0)
    swapped = swap_objects(batch, [1, 0, 3, 2])
    for name in ("reference", "opacity", "more", "more_opacity", "present"):
        assert torch.equal(getattr(swapped, name), getattr(batch, name)[[1, 0, 3, 2]])
    assert torch.equal(swapped.target, batch.target)


# --- the detail crop


def test_the_detail_crop_is_the_most_detailed_square_and_unscaled() -> None:
    canvas = np.zeros((64, 64, 4), np.uint8)
    canvas[4:60, 4:60] = (90, 120, 90, 255)
    print_rows = np.random.default_rng(0).integers(0, 256, (12, 12, 3))
    canvas[40:52, 12:24, :3] = print_rows
    crop = crop_detail(canvas, 32)
    assert crop.shape == (32, 32, 4)
    found = [
        (y, x) for y in range(21) for x in range(21) if np.array_equal(crop[y : y + 12, x : x + 12, :3], print_rows)
    ]
    assert found, "the print is in it, pixel for pixel"
    plain = canvas.copy()
    plain[4:60, 4:60, :3] = 90
    assert np.array_equal(crop_detail(plain, 32), plain[:32, :32]), "of equals the first: the outline does not count"


def test_with_detail_the_whole_comes_first_at_the_encoders_side() -> None:
    canvas = draw_case(0, 64)["reference"]
    whole, detail = list_object_crops(canvas, detail=True)
    assert whole.shape == detail.shape == (32, 32, 4)
    assert list_object_crops(canvas, detail=False) == [canvas]


# --- training and the compositor


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages of preset tiny with three views and their detail crops; and the plain stage 1 to start from."""
    root = tmp_path_factory.mktemp("views")
    write_shards(root / "data" / "shards", size_px=64, reference_px=128)
    few = {**SHORT, "max_steps": 2, "batch_size": 2, "validate_every_steps": 2, "validation_pairs": 2}
    options = {
        "encoder": "dinov2",
        "blending": "noised",
        "max_references": 3,
        "detail_crop": True,
        "appearance_flow": False,
    }
    loaded = load_params(ROOT / "params.yaml", ROOT / "params" / "smoke.yaml")
    stage1 = {"preset": "tiny", "options": options, "colour_jitter": 0.2, **few}
    params = change(loaded, pretrain_encoder=stage1, train_compositor=few)
    run_pretrain_encoder(params, root)
    run_freeze_encoder(params, root)
    run_train_compositor(params, root)
    return root


def test_both_stages_train_with_the_options_and_record_them(project: Path) -> None:
    for name in ("pretrained", "compositor"):
        preset = load_model(project / "models" / name).preset
        assert (preset.max_references, preset.detail_crop, preset.blending) == (3, True, "noised")
        assert (preset.reference_px, preset.canvas_px) == (64, 128)


def test_shards_of_the_wrong_canvas_are_refused(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(project / "models", root / "models")
    write_shards(root / "data" / "shards", size_px=64)
    params = load_params(ROOT / "params.yaml", ROOT / "params" / "smoke.yaml")
    with pytest.raises(InputError, match=r"pack_shards.reference_px 64, but preset tiny needs 128"):
        run_train_compositor(change(params, train_compositor={**SHORT, "init_unet": "checkpoints/fresh"}), root)


def test_the_compositor_takes_several_views_in_any_order(project: Path) -> None:
    compositor = Compositor(load_model(project / "models" / "compositor"))
    torch.nn.init.normal_(compositor.model.unet.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    views = tuple(draw_case(number, 48)["reference"] for number in (1, 2, 3))
    requests = [
        build_request(64, 64, Box(16, 16, 48, 48), object_rgba=first, more_objects=others)
        for first, *others in [(views[0],), views, views[::-1]]
    ]
    made = compositor.composite_batch(requests, steps=2, guidance=2.0)
    alone, several, turned = (one.picture for one in made)
    assert (alone != several).any()
    np.testing.assert_allclose(several.astype(int), turned, atol=1)
    by_itself = compositor.composite_batch([requests[0]], steps=2, guidance=2.0)[0].picture
    np.testing.assert_allclose(by_itself.astype(int), alone, atol=1)
    too_many = build_request(64, 64, Box(16, 16, 48, 48), more_objects=views)
    with pytest.raises(InputError, match=r"4 views of the object are given, but this model takes 3; give fewer"):
        compositor.composite_batch([too_many], steps=2, guidance=2.0)


def test_the_further_views_of_single_pairs_are_augmented_too(reader: ShardReader) -> None:
    """Or the detail crop of the target itself could be copied."""
    params = load_params(ROOT / "params.yaml").train_compositor
    task = CompositingTask(params)
    pairs = select_pairs(reader, ["single", "video"], split="val")
    chosen = [pairs["single"][0], pairs["video"][0]]
    rules = replace(task.rules, max_references=3, flip_rate=0.0, swap_rate=0.0, detail=True)
    batch = build_fixed_batch(reader, chosen, rules=rules, build_sample=build_compositing_sample, seed=0)
    after = task.augment(batch, seed=1)
    assert (after.more[0, 0] != batch.more[0, 0]).any()
    assert torch.equal(after.more[1], batch.more[1])
