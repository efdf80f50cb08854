"""Closed forms of the schedule, and samplers that leave the background alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from imprint.core.errors import InputError
from imprint.diffusion import (
    SCHEDULERS,
    Weighting,
    add_noise,
    build_generator,
    build_generators,
    build_scheduler,
    compute_compositing_losses,
    compute_identity_losses,
    sample_composite,
    sample_noise,
    sample_object,
)
from imprint.diffusion.schedule import (
    NUM_TIMESTEPS,
    compute_alphas_cumprod,
    compute_snr,
    eps_to_x0,
    v_to_x0,
    x0_eps_to_v,
    x0_to_eps,
)
from imprint.models import PRESETS, ImprintModel, build_model

ALPHAS = compute_alphas_cumprod()


@pytest.fixture(scope="module")
def model() -> ImprintModel:
    """Random, and with an output that is not zero."""
    built = build_model(PRESETS["tiny"], seed=0)
    torch.nn.init.normal_(built.unet.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return built


@pytest.fixture(scope="module")
def scene() -> tuple[torch.Tensor, torch.Tensor]:
    hole = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    hole[:, :, 11:40, 20:45] = True
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1, hole


def test_terminal_snr_is_zero_and_noise_only_grows() -> None:
    assert ALPHAS[-1] == 0.0
    assert (ALPHAS[1:] < ALPHAS[:-1]).all()
    assert ALPHAS[0] > 0.99
    assert compute_snr(ALPHAS, torch.tensor([NUM_TIMESTEPS - 1])) == 0.0


def test_noise_alone_at_the_last_step() -> None:
    x_0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    last = torch.full((2,), NUM_TIMESTEPS - 1)
    assert torch.equal(add_noise(x_0, noise, alphas_cumprod=ALPHAS, timestep=last), noise)


def test_conversions_are_the_closed_forms() -> None:
    x_0, eps = torch.randn(4, 3, 4, 4, dtype=torch.float64), torch.randn(4, 3, 4, 4, dtype=torch.float64)
    schedule = {"alphas_cumprod": ALPHAS.double(), "timestep": torch.tensor([5, 300, 700, 950])}
    a = ALPHAS.double()[schedule["timestep"]].sqrt().view(-1, 1, 1, 1)
    s = (1 - a**2).sqrt()
    x_t = add_noise(x_0, eps, **schedule)
    torch.testing.assert_close(x_t, a * x_0 + s * eps)
    v = x0_eps_to_v(x_0, eps, **schedule)
    torch.testing.assert_close(v, a * eps - s * x_0)
    torch.testing.assert_close(v_to_x0(v, x_t, **schedule), x_0)
    torch.testing.assert_close(eps_to_x0(eps, x_t, **schedule), x_0)
    torch.testing.assert_close(x0_to_eps(x_0, x_t, **schedule), eps)


def test_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    shape = (3, 4, 4)
    pair = sample_noise(shape, build_generators(2, 7, "x"))
    four = sample_noise(shape, build_generators(4, 7, "x"))
    assert torch.equal(pair, four[:2])
    assert not torch.equal(four[0], four[1])
    assert not torch.equal(pair[0], sample_noise(shape, [build_generator(8, "x", 0)])[0])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_outside_is_the_clean_background_at_every_step(
    model: ImprintModel, scene, scheduler, guidance: float
) -> None:
    image, hole = scene
    clean, keep = model.codec.encode_background(image, hole)
    tokens = model.encode_object(torch.zeros(2, 3, 64, 64))
    seen: list[torch.Tensor] = []
    result = sample_composite(
        model,
        image,
        hole,
        tokens,
        level=torch.tensor([0, 3]),
        steps=4,
        guidance=guidance,
        generator=build_generators(2, 0),
        scheduler=scheduler,
        on_step=seen.append,
    )
    assert len(seen) == 4
    assert all(torch.equal(keep * latents, keep * clean) for latents in seen)
    outside = (~hole).expand_as(image)
    assert torch.equal(result[outside], image[outside])
    assert result.isfinite().all()
    assert not torch.equal(result, image)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_result_knows_nothing_of_the_hole(model: ImprintModel, scene, scheduler) -> None:
    image, hole = scene
    other = torch.where(hole, -image, image)
    settings = {"level": None, "steps": 3, "guidance": 2.0, "scheduler": scheduler}
    tokens = model.encode_object(torch.zeros(2, 3, 64, 64))
    first, second = (
        sample_composite(model, picture, hole, tokens, generator=build_generators(2, 0), **settings)
        for picture in (image, other)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_model_that_knows_the_answer_gives_it(scheduler) -> None:
    """A denoiser that always answers x0 is followed exactly by every solver."""
    answer = torch.rand(1, 3, 64, 64) * 1.8 - 0.9
    model = build_model(PRESETS["tiny"], seed=0)
    model.denoise = lambda *_: model.codec.encode(answer)  # type: ignore[method-assign]
    result = sample_object(
        model, model.null_tokens(1), steps=5, guidance=1.0, generator=build_generators(1, 0), scheduler=scheduler
    )
    torch.testing.assert_close(result, answer, rtol=0, atol=1e-3)


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_with_draws_a_model_that_knows_the_answer_gives_it(prediction_type: str) -> None:
    """Whatever it predicts; epsilon is not defined where there is no signal, so its schedule ends before that."""
    is_epsilon = prediction_type == "epsilon"
    preset = replace(PRESETS["tiny"], prediction_type=prediction_type, zero_terminal_snr=not is_epsilon)
    model = build_model(preset, seed=0)
    answer = model.codec.encode(torch.rand(2, 3, 64, 64) * 1.8 - 0.9)
    alphas = build_scheduler("ddim", preset).alphas_cumprod

    def denoise(x_t, timestep, *_):
        a, s = (value.sqrt().view(-1, 1, 1, 1) for value in (alphas[timestep], 1 - alphas[timestep]))
        eps = (x_t - a * answer) / s
        return {"sample": answer, "epsilon": eps, "v_prediction": a * eps - s * answer}[prediction_type]

    model.denoise = denoise  # type: ignore[method-assign]
    settings = {"steps": 4, "guidance": 1.0, "draws": 3, "generator": build_generators(2, 0)}
    result = sample_object(model, model.null_tokens(2), **settings)
    torch.testing.assert_close(model.codec.encode(result), answer, rtol=0, atol=1e-3)


def test_draws_average_what_a_model_reads_into_the_noise() -> None:
    """A model that takes a share of the noise for the object: the mean of 16 draws keeps a quarter of that share."""
    model = build_model(PRESETS["tiny"], seed=0)
    model.denoise = lambda x_t, *_: 0.2 * x_t  # type: ignore[method-assign]
    # one step, from noise alone
    settings = {"steps": 1, "guidance": 1.0, "generator": build_generators(1, 0)}
    one, many = (sample_object(model, model.null_tokens(1), draws=draws, **settings).std() for draws in (1, 16))
    assert float(many / one) == pytest.approx(0.25, rel=0.1)


def test_with_draws_the_outside_is_the_clean_background_and_the_hole_is_not_seen(model: ImprintModel, scene) -> None:
    image, hole = scene
    clean, keep = model.codec.encode_background(image, hole)
    tokens = model.encode_object(torch.zeros(2, 3, 64, 64))
    seen: list[torch.Tensor] = []
    settings = {"level": None, "steps": 3, "guidance": 2.0, "draws": 2}
    first, second = (
        sample_composite(
            model, picture, hole, tokens, generator=build_generators(2, 0), on_step=seen.append, **settings
        )
        for picture in (image, torch.where(hole, -image, image))
    )
    assert len(seen) == 6
    assert all(torch.equal(keep * latents, keep * clean) for latents in seen)
    assert torch.equal(first, second)
    alone = sample_composite(model, image[1:], hole[1:], tokens[1:], generator=build_generators(2, 0)[1:], **settings)
    torch.testing.assert_close(alone, first[1:], rtol=0, atol=1e-5)


def test_draws_are_refused_where_the_background_moves(scene) -> None:
    image, hole = scene
    model = build_model(replace(PRESETS["tiny"], blending="none"), seed=0)
    settings = {"level": None, "steps": 2, "guidance": 1.0, "draws": 2, "generator": build_generators(2, 0)}
    with pytest.raises(InputError, match="set draws to 1"):
        sample_composite(model, image, hole, model.null_tokens(2), **settings)


def test_a_scheduler_that_is_not_allowed_is_refused() -> None:
    with pytest.raises(InputError, match="ddim, dpm, euler"):
        build_scheduler("pndm")


def test_weights_are_the_clamped_snr() -> None:
    weighting = Weighting(min_snr=0.05, max_snr=5.0)
    assert weighting.compute(torch.tensor([0.0, 0.05, 1.0, 700.0])).tolist() == pytest.approx([0.05, 0.05, 1.0, 5.0])


def test_compositing_loss_is_taken_in_the_hole_alone(model: ImprintModel, scene) -> None:
    """For a model that always answers grey (0) the loss is the mean square of the scene inside the hole."""
    image, hole = scene
    grey = build_model(PRESETS["tiny"], seed=0)  # its output starts at zero
    torch.nn.init.zeros_(grey.unet.conv_out.bias)
    arguments = {
        "hole": hole,
        "level": None,
        "timestep": torch.tensor([999, 999]),
        "noise": torch.randn(2, 192, 8, 8),
    }
    tokens = grey.null_tokens(2)
    inside, whole = (
        compute_compositing_losses(
            grey, tokens, image, **arguments, weighting=Weighting(min_snr=2.0, max_snr=5.0, outside=outside)
        )
        for outside in (0.0, 1.0)
    )
    picked = hole.expand_as(image)
    expected = torch.stack([image[row][picked[row]].square().mean() for row in range(2)])
    torch.testing.assert_close(inside, 2.0 * expected)
    torch.testing.assert_close(whole, 2.0 * image.square().mean(dim=(1, 2, 3)))


def test_identity_loss_is_the_mean_square_error(model: ImprintModel) -> None:
    target, noise = torch.rand(2, 3, 64, 64), torch.randn(2, 192, 8, 8)
    timestep = torch.tensor([999, 999])
    tokens = model.null_tokens(2)
    weighting = Weighting(min_snr=1.0, max_snr=1.0)
    losses = compute_identity_losses(model, tokens, target, timestep=timestep, noise=noise, weighting=weighting)
    answer = model.denoise(noise, timestep, tokens)
    torch.testing.assert_close(losses, (answer - model.codec.encode(target)).square().mean(dim=(1, 2, 3)))
