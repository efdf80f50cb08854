"""The appearance flow: where pixels come from, what stands behind them, and what is done with both at any size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from imprint.appearance import (
    AppearanceFlow,
    Fields,
    FlowWeights,
    build_grid,
    compute_flow_losses,
    compute_placement,
    fill_smoothly,
    find_boxes,
    render,
    restrain_light,
)
from imprint.appearance.rendering import change_light
from imprint.core.errors import InputError
from imprint.core.geometry import Box
from imprint.core.masks import MASK_LEVELS, fill_box
from imprint.core.params import Params, load_params
from imprint.core.pixels import save_image
from imprint.data import ShardReader, select_pairs
from imprint.data.dataset import build_fixed_batch
from imprint.inference.composer import Compositor
from imprint.inference.inputs import Request, list_views
from imprint.models import PRESETS, ImprintModel, build_model, compute_weights_digest, load_model, save_model
from imprint.models.freezing import apply_freeze_map
from imprint.models.presets import choose_flow
from imprint.training.noising import fix_noising
from imprint.training.optimizer import build_optimizer, set_rates
from imprint.training.tasks import CompositingTask
from tests.evaluation_cases import draw_case
from tests.synthetic import draw_frame

ROOT = Path(__file__).resolve().parents[1]
LEVEL = {name: torch.tensor([number]) for number, name in enumerate(MASK_LEVELS)}
PRESET = choose_flow(PRESETS["tiny"], wanted=True)
SETTINGS = {"steps": 4, "guidance": 1.5, "draws": 1}


@pytest.fixture(scope="module")
def model() -> ImprintModel:
    """Random weights in the heads too, so that the fields depend on everything."""
    torch.set_num_threads(1)
    built = build_model(PRESET, seed=0)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(built.unet.conv_out.weight, std=0.05, generator=generator)
    assert built.appearance_flow is not None
    for head in ("affine", "flow", "gain", "shadow", "fill", "error"):
        torch.nn.init.normal_(getattr(built.appearance_flow, head).weight, std=0.1, generator=generator)
    return built


@pytest.fixture(scope="module")
def compositor(model: ImprintModel) -> Compositor:
    return Compositor(model)


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "params.yaml", ROOT / "params" / "smoke.yaml")


def build_fields(placement: torch.Tensor, **changes: torch.Tensor) -> Fields:
    """Those of a plain paste without light and shadow."""
    zeros = {"flow": (2, 8, 8), "gain": (3, 8, 8), "shadow": (3, 16, 16), "fill": (3, 16, 16)}
    values = {name: torch.zeros(1, *shape) for name, shape in zeros.items()}
    start = {"placement": placement, "affine": placement, "log_error": torch.zeros(1)}
    return Fields(**{**values, **start, **changes})


def draw_reference(size_px: int = 64) -> torch.Tensor:
    """[1, 4, s, s]: a striped rectangle that fills three quarters of the canvas in x and half of it in y."""
    opacity = torch.zeros(1, 1, size_px, size_px)
    opacity[:, :, size_px // 4 : 3 * size_px // 4, size_px // 8 : 7 * size_px // 8] = 1.0
    stripes = (torch.arange(size_px) // 2 % 2).float().expand(1, 3, size_px, -1)
    return torch.cat([stripes * opacity, opacity], dim=1)


def build_hole(box: Box, size_px: int = 64) -> torch.Tensor:
    return torch.from_numpy(fill_box(box, (size_px, size_px)))[None, None]


def build_request(size_hw: tuple[int, int], place: Box, **changes: object) -> Request:
    background = np.random.default_rng(1).integers(60, 200, (*size_hw, 3)).astype(np.uint8)
    request = {"object_rgba": draw_case(1, 48)["reference"], "background": background}
    return Request(**{**request, "hole": fill_box(place, size_hw), **changes})  # pyright: ignore[reportArgumentType]


# --- placement ------------------------------------------------------------------------------------------------------


def test_the_paste_fills_the_hole_of_an_exact_mask() -> None:
    reference, hole = draw_reference(), build_hole(Box(8, 4, 40, 52))
    placed = render(
        build_fields(compute_placement(reference[:, 3:], hole, LEVEL["exact"])), reference, build_grid(64, 64)
    )
    torch.testing.assert_close(find_boxes(placed.opacity[:, 0] > 0.5), find_boxes(hole[:, 0]), rtol=0, atol=0.04)


@pytest.mark.parametrize("level", ["coarse", "box"])
def test_in_a_roomy_hole_the_paste_is_smaller_and_stands_at_the_bottom(level: str) -> None:
    reference, hole = draw_reference(), build_hole(Box(10, 10, 50, 50))
    placement = compute_placement(reference[:, 3:], hole, LEVEL[level])
    left, _, right, bottom = find_boxes(
        render(build_fields(placement), reference, build_grid(64, 64)).opacity[:, 0] > 0.5
    )[0]
    assert float(right - left) == pytest.approx(0.8 * 40 / 32, abs=0.04)
    assert float(bottom) == pytest.approx(50 / 32 - 1 - 0.1 * 40 / 32 / 2 * 1, abs=0.07)


# --- rendering ------------------------------------------------------------------------------------------------------


def test_a_flow_moves_the_object_and_an_affine_map_scales_it() -> None:
    reference, grid = draw_reference(), build_grid(64, 64)
    identity = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    moved = build_fields(identity, flow=torch.tensor([0.25, 0.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8))
    plain = render(build_fields(identity), reference, grid).opacity
    torch.testing.assert_close(render(moved, reference, grid).opacity, torch.roll(plain, -8, dims=3), rtol=0, atol=1e-4)
    half = render(build_fields(identity * 2.0), reference, grid).opacity
    assert float(half.sum() / plain.sum()) == pytest.approx(0.25, abs=0.02)


def test_a_larger_grid_shows_the_same_picture_with_more_pixels() -> None:
    reference = F.interpolate(draw_reference(), size=(256, 256), mode="nearest")
    fields = build_fields(torch.tensor([[[0.8, 0.1, 0.05], [-0.1, 0.9, 0.0]]]), gain=0.2 * torch.randn(1, 3, 8, 8))
    small, large = (render(fields, reference, build_grid(size, size)) for size in (64, 192))
    torch.testing.assert_close(F.avg_pool2d(large.opacity, 3).mean(), small.opacity.mean(), rtol=0.01, atol=0)
    edges = [values.colour.diff(dim=3).abs().max() for values in (small, large)]
    assert float(edges[1]) > 0.5  # a stripe's edge is as hard as in the reference, at either size


def test_light_neither_cuts_off_nor_greys() -> None:
    colour = torch.linspace(0, 1, 11).view(1, 1, 1, 11).expand(1, 3, 1, 11)
    for gain in (-0.6, 0.0, 0.6):
        lit = change_light(colour, torch.full_like(colour, gain))
        assert float(lit[..., 0].max()) == pytest.approx(0.0, abs=1e-3)
        assert (lit.diff(dim=3) > 0).all()
        assert lit.max() <= 1.0
    torch.testing.assert_close(change_light(colour, torch.zeros_like(colour)), colour)
    brighter = change_light(colour, torch.full_like(colour, 0.6))
    assert float(brighter[0, 0, 0, 10]) > 0.99
    assert float(brighter[0, 0, 0, 1] / 0.1) == pytest.approx(float(np.exp(0.6)), rel=0.05)


def test_a_hole_is_filled_from_its_surroundings_alone() -> None:
    hole = build_hole(Box(16, 20, 44, 60))
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    filled = fill_smoothly(picture, hole)
    changed = torch.where(hole, 1.0 - picture, picture)
    assert torch.equal(fill_smoothly(changed, hole), filled)
    assert torch.equal(filled[~hole.expand_as(filled)], picture[~hole.expand_as(filled)])
    flat = fill_smoothly(torch.where(hole, picture, torch.full_like(picture, 0.3)), hole)
    torch.testing.assert_close(flat, torch.full_like(flat, 0.3), rtol=0, atol=1e-5)


# --- training -------------------------------------------------------------------------------------------------------


def test_a_new_network_answers_with_the_plain_paste() -> None:
    network = AppearanceFlow(size_px=64, token_dim=16, widths=(16, 24, 32), num_heads=2, norm_groups=8)
    reference, hole = draw_reference(), build_hole(Box(8, 4, 40, 52))
    about = {"hidden": torch.tensor([False]), "tokens": torch.randn(1, 5, 16), "counts": None, "level": LEVEL["exact"]}
    fields = network(torch.rand(1, 3, 64, 64), hole, reference=reference, **about)
    assert torch.equal(fields.affine, compute_placement(reference[:, 3:], hole, LEVEL["exact"]))
    assert not fields.flow.any()
    assert not fields.gain.any()


@pytest.mark.parametrize("fault", ["shift", "light", "shadow"])
def test_each_fault_costs(fault: str) -> None:
    grid, reference = build_grid(64, 64), draw_reference()
    right = build_fields(
        torch.tensor([[[1.5, 0.0, 0.1], [0.0, 1.5, 0.0]]]),
        gain=torch.full((1, 3, 8, 8), -0.2),
        shadow=torch.full((1, 3, 16, 16), 0.3),
    )
    plate = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    truth = render(right, reference, grid)
    known = {
        "background": plate,
        "scene": truth.put_on(plate),
        "mask": truth.opacity > 0.5,
        "hole": build_hole(Box(4, 4, 60, 60)),
        "has_plate": torch.tensor([True]),
        "level": LEVEL["box"],
        "weights": replace(FlowWeights(), reach=0.0, gain=0.0, expected_error=0.0),
    }
    wrong = {
        "shift": replace(right, affine=right.affine + torch.tensor([0.0, 0.0, 0.1])),
        "light": replace(right, gain=right.gain + 0.3),
        "shadow": replace(right, shadow=right.shadow * 0.0),
    }[fault]
    losses = [compute_flow_losses(fields, render(fields, reference, grid), **known) for fields in (right, wrong)]
    assert float(losses[1]) > float(losses[0]) + 0.01


def test_moving_and_resizing_are_free_but_bending_is_not() -> None:
    """The restraint alone: what the loss adds for a change of form, all else being equal."""
    grid, reference = build_grid(64, 64), draw_reference()
    plain = build_fields(torch.tensor([[[1.5, 0.0, 0.0], [0.0, 1.5, 0.0]]]))
    bent = torch.zeros(1, 2, 8, 8)
    bent[:, 0] = torch.linspace(-0.1, 0.1, 8)[:, None] ** 2 * 20
    changed = {
        "moved": replace(plain, affine=plain.affine + torch.tensor([0.0, 0.0, 0.2])),
        "larger": replace(plain, affine=plain.affine * 0.8),
        "stretched": replace(plain, affine=plain.affine * torch.tensor([[[1.2], [0.9]]])),
        "turned": replace(plain, affine=plain.affine + torch.tensor([[[0.0, -0.3, 0.0], [0.3, 0.0, 0.0]]])),
        "bent": replace(plain, flow=bent),
    }
    names = ("bend", "strain", "turn")
    free = replace(FlowWeights(), reach=0.0, **dict.fromkeys(names, 0.0))
    held = replace(FlowWeights(), reach=0.0)

    def compute_cost(fields: Fields, level: str) -> float:
        rendering = render(fields, reference, grid)
        known = {
            "background": torch.zeros(1, 3, 64, 64),
            "scene": torch.zeros(1, 3, 64, 64),
            "mask": rendering.opacity > 0.5,
            "hole": build_hole(Box(4, 4, 60, 60)),
            "has_plate": torch.tensor([True]),
            "level": LEVEL[level],
        }
        losses = [compute_flow_losses(fields, rendering, weights=weights, **known) for weights in (held, free)]
        return float(losses[0] - losses[1])

    costs = {name: compute_cost(fields, "box") for name, fields in changed.items()}
    assert costs["moved"] == pytest.approx(0.0, abs=1e-6)
    assert costs["larger"] == pytest.approx(0.0, abs=1e-6)
    assert min(costs["stretched"], costs["turned"], costs["bent"]) > 1e-3
    assert compute_cost(changed["bent"], "exact") < 0.5 * costs["bent"]  # an outline is there to be filled


@pytest.mark.parametrize("has_plate", [True, False])
def test_shadows_are_learned_from_plates_alone(has_plate: bool) -> None:
    grid, reference = build_grid(64, 64), draw_reference()
    plain = build_fields(torch.tensor([[[1.5, 0.0, 0.0], [0.0, 1.5, 0.0]]]))
    fields = replace(plain, shadow=torch.full((1, 3, 16, 16), 0.2, requires_grad=True))
    rendering = render(fields, reference, grid)
    losses = compute_flow_losses(
        fields,
        rendering,
        background=torch.full((1, 3, 64, 64), 0.5),
        scene=torch.full((1, 3, 64, 64), 0.3),
        mask=rendering.opacity > 0.5,
        hole=build_hole(Box(4, 4, 60, 60)),
        has_plate=torch.tensor([has_plate]),
        level=LEVEL["box"],
        weights=FlowWeights(),
    )
    (gradient,) = torch.autograd.grad(losses.sum(), fields.shadow, allow_unused=True)
    assert (gradient is not None and bool(gradient.any())) == has_plate


def build_batch(params: Params, shards: Path) -> tuple[CompositingTask, object]:
    rates = {"backbone": 0.0, "adapter": 0.0, "unet": 0.0, "appearance_flow": 0.003}
    section = params.train_compositor.model_copy(
        update={"learning_rate": params.train_compositor.learning_rate.model_copy(update=rates)}
    )
    task, reader = CompositingTask(section), ShardReader(shards)
    pairs = select_pairs(reader, ["video"], split="train")["video"][:8]
    return task, build_fixed_batch(reader, pairs, rules=task.rules, build_sample=task.build_sample, seed=0)


def test_the_flow_learns_alone_where_nothing_else_has_a_rate(params: Params, synthetic_shards: Path) -> None:
    torch.set_num_threads(1)
    model = build_model(PRESET, seed=0).train()
    task, batch = build_batch(params, synthetic_shards)
    rates = task.params.learning_rate.model_dump()
    apply_freeze_map(model, "compositing", from_scratch=True, train_middle_block=True, rates=rates)
    before = {part: compute_weights_digest(getattr(model, part)) for part in model.parts}
    optimizer = build_optimizer(model, task.params)
    set_rates(optimizer, 1.0)
    noising = fix_noising(batch.position, shape_chw=(192, 8, 8), seed=0)  # pyright: ignore[reportAttributeAccessIssue]
    losses = []
    for _ in range(25):
        loss = task.compute_losses(model, batch, noising).mean()  # pyright: ignore[reportArgumentType]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    after = {part: compute_weights_digest(getattr(model, part)) for part in model.parts}
    assert losses[-1] < 0.8 * losses[0]
    assert {part for part in after if after[part] != before[part]} == {"appearance_flow"}


def test_what_a_hidden_hole_holds_is_in_no_batch(params: Params, synthetic_shards: Path) -> None:
    """Footage has no plates: there the answer would lie in the hole."""
    _, batch = build_batch(params, synthetic_shards)
    hole = batch.hole.expand_as(batch.background)  # pyright: ignore[reportAttributeAccessIssue]
    assert batch.hidden.all()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(batch.background[hole].unique()) == 1  # pyright: ignore[reportAttributeAccessIssue]


def test_the_other_parts_are_the_same_with_and_without_a_flow() -> None:
    with_flow, without = build_model(PRESET, seed=3), build_model(PRESETS["tiny"], seed=3)
    for part in without.parts:
        assert compute_weights_digest(getattr(with_flow, part)) == compute_weights_digest(getattr(without, part))


def test_a_model_without_a_flow_can_be_given_one(tmp_path: Path, model: ImprintModel) -> None:
    save_model(build_model(PRESETS["tiny"], seed=0), tmp_path / "old", stage="train_compositor", extra={})
    assert load_model(tmp_path / "old").appearance_flow is None
    assert load_model(tmp_path / "old", PRESET, seed=1).appearance_flow is not None
    save_model(model, tmp_path / "new", stage="train_compositor", extra={})
    loaded = load_model(tmp_path / "new")
    assert loaded.appearance_flow is not None
    assert compute_weights_digest(loaded.appearance_flow) == compute_weights_digest(model.appearance_flow)  # pyright: ignore[reportArgumentType]


# --- compositing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("size_hw", "hole"),
    [
        ((64, 64), Box(20, 20, 50, 44)),
        ((150, 230), Box(60, 180, 110, 230)),  # at the border
        ((150, 230), Box(0, 10, 150, 200)),  # wider than the largest square inside
        ((400, 90), Box(390, 3, 397, 9)),  # a few pixels
    ],
)
def test_nothing_outside_the_hole_changes(
    compositor: Compositor, strength: float, size_hw: tuple[int, int], hole: Box
) -> None:
    request = build_request(size_hw, hole)
    made = compositor.composite_batch([request], **SETTINGS, strength=strength)[0]
    assert made.picture.shape == request.background.shape
    np.testing.assert_array_equal(made.picture[~request.hole], request.background[~request.hole])
    assert (made.picture != request.background)[request.hole].any()
    assert (made.opacity is None) == (strength == 1.0)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_replace_never_sees_what_the_hole_holds(compositor: Compositor, strength: float) -> None:
    first = build_request((90, 120), Box(20, 30, 60, 80), mode="replace")
    background = np.where(first.hole[..., None], 255 - first.background, first.background)
    made = [
        compositor.composite_batch([request], **SETTINGS, strength=strength)[0].picture
        for request in (first, replace(first, background=background))
    ]
    np.testing.assert_array_equal(*made)


def test_insert_keeps_what_the_hole_holds_beside_the_object() -> None:
    plain = build_model(PRESET, seed=0)  # its flow is the plain paste; a faint even shadow is all that it adds
    request = build_request((64, 64), Box(8, 8, 56, 56), mode="insert")
    made = Compositor(plain).composite_batch([request])[0]
    assert made.opacity is not None
    beside = request.hole & (made.opacity == 0.0)
    ratio = made.picture[beside] / request.background[beside]
    assert beside.sum() > 100
    assert (ratio > 0.93).all()
    assert (ratio < 1.01).all()


def test_insert_needs_a_flow_and_a_strength_below_one(compositor: Compositor) -> None:
    request = build_request((64, 64), Box(16, 16, 48, 48), mode="insert")
    with pytest.raises(InputError, match="mode insert needs an appearance flow and a strength below 1"):
        compositor.composite_batch([request], strength=1.0)
    without = Compositor(build_model(PRESETS["tiny"], seed=0))
    with pytest.raises(InputError, match="mode insert needs an appearance flow"):
        without.composite_batch([request])
    with pytest.raises(InputError, match=r"strength 0.5 needs an appearance flow, which this model has not"):
        without.composite_batch([replace(request, mode=None)], strength=0.5)
    with pytest.raises(InputError, match=r"strength 1.5 is not between 0 and 1"):
        compositor.composite_batch([request], strength=1.5)


def test_strength_leads_from_the_flow_to_the_noise(compositor: Compositor) -> None:
    request = build_request((64, 64), Box(16, 16, 48, 48), mode="replace")
    made = [
        compositor.composite_batch([request], steps=8, guidance=1.0, draws=1, strength=strength)[0].picture.astype(
            float
        )
        for strength in (0.0, 0.1, 0.4, 0.9)
    ]
    distances = [np.abs(picture - made[0]).mean() for picture in made[1:]]
    assert distances[0] == 0.0  # a tenth of eight steps is none
    assert 0.0 < distances[1] < distances[2]


def test_a_large_picture_is_as_sharp_as_its_reference() -> None:
    plain = Compositor(build_model(PRESET, seed=0))
    stripes = np.zeros((400, 400, 4), np.uint8)
    stripes[40:360, 40:360] = (0, 0, 0, 255)
    stripes[40:360:8, 40:360, :3] = stripes[41:360:8, 40:360, :3] = 255
    request = build_request((900, 1200), Box(200, 300, 620, 720), object_rgba=stripes, level="exact")
    picture = plain.composite_batch([request])[0].picture[260:560, 400:600, 0].astype(float)
    assert np.abs(np.diff(picture, axis=0)).max() > 120  # at the model's 64 px nothing of them would be left


def test_the_shadow_leaves_the_hole_only_where_it_may(compositor: Compositor) -> None:
    request = build_request((80, 80), Box(24, 24, 56, 56), shadow_reach=0.25)
    made = compositor.composite_batch([request])[0].picture
    far = ~fill_box(Box(24 - 8, 24 - 8, 56 + 8, 56 + 8), (80, 80))
    np.testing.assert_array_equal(made[far], request.background[far])
    outside = ~request.hole
    assert (made[outside] < request.background[outside]).any()
    assert (made[outside] <= request.background[outside]).all()


def test_of_several_views_the_one_of_least_expected_error_is_taken(compositor: Compositor) -> None:
    views = [draw_case(number, 48)["reference"] for number in (1, 2, 3)]
    alone = [
        compositor.composite_batch([build_request((64, 64), Box(16, 16, 48, 48), object_rgba=view)])[0]
        for view in views
    ]
    errors = [made.expected_error for made in alone]
    best = int(np.argmin(errors))  # pyright: ignore[reportArgumentType]
    for order in ([0, 1, 2], [2, 0, 1]):
        first, *others = [views[place] for place in order]
        request = build_request((64, 64), Box(16, 16, 48, 48), object_rgba=first, more_objects=tuple(others))
        made = compositor.composite_batch([request])[0]
        assert order[made.view] == best
        np.testing.assert_array_equal(made.picture, alone[best].picture)


def test_a_folder_stands_for_the_views_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, _ = draw_frame(0, 0)
    for name in ("view10.png", "view2.JPG", "view1.tif"):
        save_image(tmp_path / "views" / "x.png", image)
        Image.open(tmp_path / "views" / "x.png").save(tmp_path / "views" / name)
    (tmp_path / "views" / "x.png").unlink()
    (tmp_path / "views" / "notes.txt").write_text("no picture")
    single = tmp_path / "c.png"
    names = [path.name for path in list_views([tmp_path / "views", single])]
    assert names == ["view1.tif", "view2.JPG", "view10.png", "c.png"]
    assert capsys.readouterr().err.endswith("not read as pictures: notes.txt (1 of 4)\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is a folder without pictures"):
        list_views([tmp_path / "empty"])


def test_restrained_light_keeps_what_differs_from_place_to_place() -> None:
    opacity = torch.zeros(1, 1, 64, 64)
    opacity[:, :, 16:48, 16:48] = 1.0
    gain = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.3
    fields = build_fields(torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]), gain=gain)
    kept = restrain_light(fields, opacity, 0.25).gain
    inner = (slice(None), slice(None), slice(2, 6), slice(2, 6))
    assert float(kept[inner].mean()) == pytest.approx(0.25 * float(gain[inner].mean()), abs=1e-5)
    torch.testing.assert_close(kept - kept.mean(), gain - gain.mean(), rtol=0, atol=1e-5)
    torch.testing.assert_close(restrain_light(fields, opacity, 1.0).gain, gain)
