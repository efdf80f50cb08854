"""The three blendings and the three predictions: training shows and asks for what sampling meets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from imprint.diffusion import (
    SCHEDULERS,
    Weighting,
    add_noise,
    build_generators,
    compute_compositing_losses,
    sample_composite,
    sample_noise,
)
from imprint.diffusion.schedule import (
    compute_alphas_cumprod,
    compute_snr,
    v_to_eps,
    v_to_x0,
    x0_eps_to_v,
    x0_to_eps,
)
from imprint.models import PRESETS, ImprintModel, build_model

TINY = PRESETS["tiny"]
BLENDINGS = ("clean", "noised", "none")
PREDICTIONS = ("sample", "epsilon", "v_prediction")
# dpm: its floor of the terminal SNR is not quite zero; euler: its first step starts at sigma, not sqrt(sigma^2 + 1)
TOLERANCE = {"ddim": 1e-4, "dpm": 1e-3, "euler": 2e-2}
EVEN = Weighting(min_snr=1.0, max_snr=1.0)
GENERATOR = torch.Generator().manual_seed(5)
SCENE = torch.rand(2, 3, 64, 64, generator=GENERATOR) * 1.8 - 0.9
HOLE = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
HOLE[:, :, 16:40, 24:48] = True


def build(blending: str, prediction: str = "sample") -> ImprintModel:
    return build_model(
        replace(TINY, blending=blending, prediction_type=prediction, zero_terminal_snr=prediction != "epsilon"), seed=0
    )


def know(model: ImprintModel, x_0: Tensor) -> list[tuple[int, Tensor]]:
    """Make the model answer with the truth `x_0`, in its own terms; return what it is shown, by timestep."""
    shown: list[tuple[int, Tensor]] = []
    alphas = compute_alphas_cumprod(model.preset)

    def answer(x_t: Tensor, timestep: Tensor, *_: object) -> Tensor:
        shown.append((int(timestep[0]), x_t.clone()))
        schedule = {"alphas_cumprod": alphas, "timestep": timestep}
        if model.preset.prediction_type == "sample":
            return x_0
        eps = x0_to_eps(x_0, x_t, **schedule)
        return eps if model.preset.prediction_type == "epsilon" else x0_eps_to_v(x_0, eps, **schedule)

    model.denoise = answer  # type: ignore[method-assign]
    return shown


def show_in_training(model: ImprintModel, timestep: int, noise: Tensor) -> Tensor:
    """What the model is shown in training at a timestep."""
    shown: list[Tensor] = []
    known = model.denoise
    model.denoise = lambda x_t, *_: shown.append(x_t) or x_t  # type: ignore[method-assign]
    compute_compositing_losses(
        model,
        model.null_tokens(2),
        SCENE,
        hole=HOLE,
        level=None,
        timestep=torch.tensor([timestep] * 2),
        noise=noise,
        weighting=EVEN,
    )
    model.denoise = known  # type: ignore[method-assign]
    return shown[0]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("blending", BLENDINGS)
def test_training_shows_what_sampling_meets(blending: str, prediction: str, scheduler) -> None:
    """A model that knows the truth is led along the path that training shows, and ends at the truth."""
    model = build(blending, prediction)
    clean, keep = model.codec.encode_background(SCENE, HOLE)
    x_0 = keep * clean + (1 - keep) * model.codec.encode(SCENE)
    shown = know(model, x_0)
    generators = {"generator": build_generators(2, 3)}
    tokens = model.null_tokens(2)
    settings = {"level": None, "steps": 5, "guidance": 1.0, "scheduler": scheduler}
    result = sample_composite(model, SCENE, HOLE, tokens, **settings, **generators)
    noise = sample_noise((192, 8, 8), build_generators(2, 3))
    assert len(shown) == 5
    # sampling starts from pure noise even where the schedule ends before it: the path is that of a slightly other noise
    last = compute_alphas_cumprod(model.preset)[-1]
    a, s = last.sqrt(), (1 - last).sqrt()
    noise = keep * noise + (1 - keep) * (noise - a * x_0) / s
    for timestep, x_t in shown:
        torch.testing.assert_close(x_t, show_in_training(model, timestep, noise), rtol=0, atol=TOLERANCE[scheduler])
    torch.testing.assert_close(result, SCENE, rtol=0, atol=TOLERANCE[scheduler])


@pytest.mark.parametrize("blending", BLENDINGS)
def test_what_each_blending_shows_beside_the_hole(blending: str) -> None:
    model = build(blending)
    clean, keep = model.codec.encode_background(SCENE, HOLE)
    noise = torch.randn(clean.shape, generator=GENERATOR)
    alphas = compute_alphas_cumprod()
    for timestep in (999, 500, 3):
        schedule = {"alphas_cumprod": alphas, "timestep": torch.tensor([timestep] * 2)}
        noised = add_noise(clean, noise, **schedule)
        carried = add_noise(clean, clean, **schedule)
        expected = {"clean": clean, "noised": noised, "none": carried}[blending]
        shown = show_in_training(model, timestep, noise)
        torch.testing.assert_close(keep * shown, keep * expected)
        inside = add_noise(model.codec.encode(SCENE), noise, **schedule)
        assert torch.equal((1 - keep) * shown, (1 - keep) * inside)
        if timestep == 999 and blending != "noised":
            torch.testing.assert_close(keep * shown, keep * clean)


@pytest.mark.parametrize(("blending", "asked"), [("clean", False), ("noised", False), ("none", True)])
def test_the_background_is_asked_for_where_it_is_never_put_back(blending: str, asked: bool) -> None:
    model = build(blending)
    clean, keep = model.codec.encode_background(SCENE, HOLE)
    x_0 = keep * clean + (1 - keep) * model.codec.encode(SCENE)
    noise = torch.randn(clean.shape, generator=GENERATOR)
    fixed = {"hole": HOLE, "level": None, "timestep": torch.tensor([400, 700]), "noise": noise, "weighting": EVEN}
    know(model, x_0)
    right = compute_compositing_losses(model, model.null_tokens(2), SCENE, **fixed)
    know(model, x_0 + keep)
    wrong_outside = compute_compositing_losses(model, model.null_tokens(2), SCENE, **fixed)
    assert torch.equal(right, torch.zeros(2))
    assert (wrong_outside > 0).all() == asked


def test_without_blending_the_sampled_background_is_the_models_own() -> None:
    """`none` never puts the background back, the other two end on it."""
    for blending in BLENDINGS:
        model = build(blending)
        clean, _ = model.codec.encode_background(SCENE, HOLE)
        know(model, 0.5 * clean)
        settings = {"level": None, "steps": 4, "guidance": 1.0, "generator": build_generators(2, 3)}
        result = sample_composite(model, SCENE, HOLE, model.null_tokens(2), **settings)
        wanted = model.codec.decode((0.5 if blending == "none" else 1.0) * clean)
        outside = (~HOLE).expand_as(result)
        torch.testing.assert_close(result[outside], wanted[outside], rtol=0, atol=1e-4)


# --- predictions

CONVERT: dict[str, Callable[..., Tensor]] = {
    "sample": lambda x_0, x_t, **_: x_0,
    "epsilon": x0_to_eps,
    "v_prediction": lambda x_0, x_t, **schedule: x0_eps_to_v(x_0, x0_to_eps(x_0, x_t, **schedule), **schedule),
}


def test_v_gives_both_of_its_ends_back() -> None:
    x_0, eps = torch.randn(4, 3, 4, 4).double(), torch.randn(4, 3, 4, 4).double()
    schedule = {"alphas_cumprod": compute_alphas_cumprod().double(), "timestep": torch.tensor([0, 300, 700, 999])}
    x_t, v = add_noise(x_0, eps, **schedule), x0_eps_to_v(x_0, eps, **schedule)
    torch.testing.assert_close(v_to_x0(v, x_t, **schedule), x_0)
    torch.testing.assert_close(v_to_eps(v, x_t, **schedule), eps)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_error_weighs_the_same_in_whatever_terms_it_is_predicted(prediction: str) -> None:
    """min-SNR: the weight is clamp(SNR) on x0; in eps it is that over SNR, in v over SNR + 1."""
    model = build("clean", "epsilon")
    alphas = compute_alphas_cumprod(model.preset).double()
    timestep = torch.tensor([1, 200, 600, 999])
    x_0, x_t, error = (torch.randn(4, 3, 4, 4).double() for _ in range(3))
    schedule = {"alphas_cumprod": alphas, "timestep": timestep}
    true, off = (CONVERT[prediction](value, x_t, **schedule) for value in (x_0, x_0 + error))
    weighting, snr = Weighting(min_snr=0.01, max_snr=5.0), compute_snr(alphas, timestep)
    weighted = weighting.compute(snr, prediction).view(-1, 1, 1, 1) * (off - true).square()
    torch.testing.assert_close(weighted, snr.clamp(0.01, 5.0).view(-1, 1, 1, 1) * error.square())
