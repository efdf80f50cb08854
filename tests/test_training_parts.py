"""The parts of a training step: what is drawn, rates, the average of the weights, checkpoints."""

from __future__ import annotations

import itertools
import json
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from imprint.core.errors import InputError
from imprint.core.params import load_params
from imprint.models import PRESETS, build_model, compute_weights_digest
from imprint.training.loop import check_finite
from imprint.training.noising import draw_noising, fix_noising
from imprint.training.optimizer import (
    averaged_weights,
    build_optimizer,
    compute_ema_decay,
    compute_expected_steps,
    compute_rate_factor,
    set_rates,
    update_ema,
)
from imprint.training.state import build_state, load_state, save_state
from imprint.training.tasks import replace_by_null

ROOT = Path(__file__).resolve().parents[1]


# --- what is drawn and how it is weighted


def test_noising_of_a_sample_does_not_depend_on_its_batch() -> None:
    shape_chw = (3, 4, 4)
    whole = draw_noising(torch.arange(8), shape_chw=shape_chw, seed=1, null_rate=0.5)
    part = draw_noising(torch.tensor([5, 2]), shape_chw=shape_chw, seed=1, null_rate=0.5)
    for name in ("timestep", "noise", "is_null"):
        assert torch.equal(getattr(whole, name)[[5, 2]], getattr(part, name)), name
    other = draw_noising(torch.arange(8), shape_chw=shape_chw, seed=2, null_rate=0.5)
    assert not torch.equal(whole.noise, other.noise)


def test_null_rate_and_timesteps() -> None:
    drawn = draw_noising(torch.arange(3000), shape_chw=(1, 1, 1), seed=0, null_rate=0.1)
    assert abs(float(drawn.is_null.float().mean()) - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 3000)
    assert abs(float(drawn.timestep.float().mean()) - 499.5) < 4 * 289 / math.sqrt(3000)
    assert (int(drawn.timestep.min()), int(drawn.timestep.max())) > (-1, 990)
    fixed = fix_noising(torch.arange(32), shape_chw=(1, 1, 1), seed=0)
    assert not fixed.is_null.any()
    assert sorted((fixed.timestep // 125).unique().tolist()) == list(range(8))


@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_shifted_timesteps_have_the_distribution_of_the_formula(shift: float) -> None:
    """P(t < T) of a shift s: the share u with s * u / (1 + (s - 1) * u) = T / 1000."""
    drawn = draw_noising(torch.arange(4000), shape_chw=(1, 1, 1), seed=0, null_rate=0.0, timestep_shift=shift)
    for bound in (250, 500, 750):
        share = bound / 1000
        expected = share / (shift - (shift - 1) * share)
        assert abs(float((drawn.timestep < bound).double().mean()) - expected) < 0.03
    assert drawn.timestep.min() >= 0
    assert drawn.timestep.max() <= 999


def test_the_null_token_replaces_the_drawn_samples_alone() -> None:
    model = build_model(PRESETS["tiny"], seed=0)
    reference = torch.rand(8, 3, 64, 64) * 2 - 1
    noising = draw_noising(torch.arange(8), shape_chw=(1, 1, 1), seed=0, null_rate=0.5)
    with torch.no_grad():
        plain = model.encode_object(reference)
        tokens = replace_by_null(model, plain, noising)
    assert 0 < int(noising.is_null.sum()) < 8
    assert torch.equal(tokens[~noising.is_null], plain[~noising.is_null])
    assert torch.equal(tokens[noising.is_null], model.null_tokens(int(noising.is_null.sum())))


def test_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    factors = [compute_rate_factor(step, warmup_steps=10, max_steps=110) for step in range(111)]
    assert factors[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert factors[60] == pytest.approx(0.5)
    assert factors[110] == pytest.approx(0.0)
    model = torch.nn.Module()
    model.backbone, model.adapter, model.unet = (torch.nn.Linear(2, 2) for _ in range(3))
    section = load_params(ROOT / "params.yaml").pretrain_encoder
    optimizer = build_optimizer(model, section)
    set_rates(optimizer, 0.5)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {name: rate / 2 for name, rate in section.learning_rate.model_dump().items()}


def test_the_rate_ends_at_zero_and_without_a_jump_where_the_time_ends_first() -> None:
    """No limit, or one that lets the steps end first, leaves the rate as it was, bit for bit."""
    plain = [compute_rate_factor(step, warmup_steps=10, max_steps=110) for step in range(111)]
    ample = [compute_rate_factor(step, warmup_steps=10, max_steps=110, time_share=step / 300) for step in range(111)]
    assert ample[20:] == plain[20:]
    short = [compute_rate_factor(step, warmup_steps=10, max_steps=1000, time_share=step / 50) for step in range(51)]
    assert short[50] == pytest.approx(0.0)
    assert short[25] == pytest.approx(0.5)
    assert max(abs(after - before) for before, after in itertools.pairwise(short)) < 0.11
    assert compute_rate_factor(3, warmup_steps=0, max_steps=10, time_share=0.9) < 0.03


def test_the_averages_half_life_follows_the_end_that_comes_first() -> None:
    assert compute_expected_steps(30, max_steps=1000, time_share=0.0) == 1000
    assert compute_expected_steps(30, max_steps=1000, time_share=0.03) == 1000
    assert compute_expected_steps(30, max_steps=1000, time_share=0.1) == pytest.approx(300)


def test_ema_is_the_recurrence_with_a_half_life_in_shares_of_the_run() -> None:
    assert compute_ema_decay(10_000, halflife_share=0.05, max_steps=1000) == pytest.approx(0.5 ** (1 / 50))
    assert compute_ema_decay(1, halflife_share=0.5, max_steps=1000) == pytest.approx(2 / 11)
    assert compute_ema_decay(1000, halflife_share=0.0, max_steps=1000) == 0.0
    model = torch.nn.Linear(2, 2)
    parameters = dict(model.named_parameters())
    ema = {name: torch.zeros_like(value) for name, value in parameters.items()}
    update_ema(ema, parameters, 0.75)
    for name, value in parameters.items():
        torch.testing.assert_close(ema[name], 0.25 * value)
    before = compute_weights_digest(model)
    with averaged_weights(model, parameters, ema):
        assert torch.equal(model.weight, ema["weight"])
        assert not model.training
    assert compute_weights_digest(model) == before


def test_a_kind_of_pair_may_have_timesteps_of_its_own() -> None:
    """And without that the draw is the same, bit for bit."""
    fixed = {"shape_chw": (1, 2, 2), "seed": 0, "null_rate": 0.1}
    plain = draw_noising(torch.arange(400), timestep_shift=2.5, **fixed)
    mixed = draw_noising(torch.arange(400), timestep_shift=[2.5, 8.0] * 200, **fixed)
    assert torch.equal(plain.noise, mixed.noise)
    assert torch.equal(plain.timestep[::2], mixed.timestep[::2])
    assert (mixed.timestep[1::2] >= plain.timestep[1::2]).all()
    assert mixed.timestep[1::2].double().mean() > plain.timestep[1::2].double().mean() + 50


# --- checkpoints


def take_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    torch.manual_seed(step)
    model(torch.randn(3, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def build_small_state(seed: int):
    torch.manual_seed(seed)
    model = torch.nn.Linear(4, 4)
    return model, build_state(model, torch.optim.AdamW(model.parameters(), lr=0.1))


def test_a_restored_state_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, state = build_small_state(0)
    for step in range(4):
        take_step(model, state.optimizer, step)
        state.step += 1
        if state.step == 2:
            state.recent_losses, state.history = [0.5], [{"step": 1, "loss": 0.25}]
            save_state(state, tmp_path, keep=2)
    other_model, other = build_small_state(1)
    assert load_state(other, tmp_path)
    assert (other.step, other.recent_losses, other.history) == (2, [0.5], [{"step": 1, "loss": 0.25}])
    for step in range(2, 4):
        take_step(other_model, other.optimizer, step)
    assert compute_weights_digest(other_model) == compute_weights_digest(model)


@pytest.mark.parametrize("fused", [True, False])
def test_what_is_restored_is_what_the_optimizer_said(fused: bool, tmp_path: Path) -> None:
    """Each tensor with its own count of steps and memory format; a parameter without a gradient has nothing."""
    model, other = (torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(2, 2)) for _ in range(2))
    states = []
    for part in (model, other):
        part.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        states.append(build_state(part, torch.optim.AdamW(part.parameters(), lr=0.1, fused=fused)))
    state, restored = states
    state.step = 7  # the run's: this optimizer has taken one step
    model[0](torch.randn(1, 3, 8, 8)).sum().backward()
    state.optimizer.step()
    save_state(state, tmp_path, keep=1)
    assert load_state(restored, tmp_path)
    before, after = (one.optimizer.state_dict() for one in states)
    assert after["param_groups"] == before["param_groups"]
    assert list(after["state"]) == list(before["state"]) == [0, 1]
    for index, kept in before["state"].items():
        assert sorted(kept) == sorted(after["state"][index])
        for key, value in kept.items():
            found = after["state"][index][key]
            assert torch.equal(found, value), key
            assert (found.dtype, found.device, found.stride()) == (value.dtype, value.device, value.stride()), key


def test_a_fused_optimizer_gets_its_count_of_steps_where_its_parameters_are(tmp_path: Path) -> None:
    """As torch's kernel demands it; `meta` stands for a GPU here."""
    model, state = build_small_state(0)
    take_step(model, state.optimizer, 0)
    state.step = 1
    save_state(state, tmp_path, keep=1)
    with torch.device("meta"):
        elsewhere = torch.nn.Linear(4, 4)
    restored = build_state(elsewhere, torch.optim.AdamW(elsewhere.parameters(), fused=True))
    assert load_state(restored, tmp_path)
    places = {value.device.type for kept in restored.optimizer.state.values() for value in kept.values()}
    assert places == {"meta"}
    unfused = build_state(elsewhere, torch.optim.AdamW(elsewhere.parameters(), fused=False))
    assert load_state(unfused, tmp_path)
    kept = unfused.optimizer.state[elsewhere.weight]
    assert (kept["step"].device.type, kept["exp_avg"].device.type) == ("cpu", "meta")


def test_numbers_beside_the_tensors_survive(tmp_path: Path) -> None:
    """An 8-bit optimizer counts its steps as a plain number and has tensors of other types and shapes."""
    model, state = build_small_state(0)
    kept = {"step": 3, "state1": torch.arange(16, dtype=torch.uint8).view(4, 4), "absmax1": torch.ones(1)}
    state.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state.optimizer.state[model.weight] = kept
    save_state(state, tmp_path, keep=1)
    other_model, other = build_small_state(1)
    other.optimizer = torch.optim.SGD(other_model.parameters(), lr=0.1)
    assert load_state(other, tmp_path)
    found = other.optimizer.state[other_model.weight]
    assert found["step"] == 3
    assert sorted(found) == sorted(kept)
    assert list(other.optimizer.state) == [other_model.weight]


def test_a_checkpoint_of_the_earlier_format_is_refused_not_passed_over(tmp_path: Path) -> None:
    _, state = build_small_state(0)
    save_state(state, tmp_path, keep=1)
    path = tmp_path / "step-00000000.json"
    values = json.loads(path.read_text())
    del values["format_version"]
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"step-00000000.json has format 1, not 2; .* delete"):
        load_state(state, tmp_path)


def test_the_last_two_checkpoints_are_kept_and_damaged_ones_skipped(tmp_path: Path, capsys) -> None:
    _, state = build_small_state(0)
    for step in (1, 2, 3):
        state.step = step
        save_state(state, tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step-0000000{step}.{suffix}" for step in (2, 3) for suffix in ("json", "safetensors")
    ]
    newest = tmp_path / "step-00000003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-9])
    assert load_state(state, tmp_path)
    assert state.step == 2
    assert "step-00000003.json is damaged" in capsys.readouterr().err
    (tmp_path / "step-00000002.json").write_text("{")
    assert not load_state(state, tmp_path)


def test_the_best_by_held_out_loss_is_kept_beside_the_newest(tmp_path: Path) -> None:
    """Only a checkpoint whose very step was validated can be the best."""
    _, state = build_small_state(0)
    for step, loss in {1: 0.5, 2: 0.2, 3: None, 4: 0.3, 5: 0.4}.items():
        state.step = step
        state.history += [] if loss is None else [{"step": step, "val_loss": loss}]
        save_state(state, tmp_path, keep=2)
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == [f"step-0000000{step}" for step in (2, 4, 5)]
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert load_state(state, tmp_path)
    assert state.step == 5


@contextmanager
def limit_file_size(num_bytes: int) -> Iterator[None]:
    """A stand-in for a full disk: the system refuses to let any file grow beyond so many bytes, pytest's own too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    _, state = build_small_state(0)
    state.step = 1
    save_state(state, tmp_path, keep=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    state.step = 2
    fault = r"checkpoint of step 2 cannot be written .*File too large.*make room"
    with limit_file_size(64), pytest.raises(InputError, match=fault):
        save_state(state, tmp_path, keep=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert load_state(state, tmp_path)
    assert state.step == 1


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (1.0, math.inf)])
def test_a_loss_that_is_not_finite_names_step_and_remedy(loss: float, norm: float) -> None:
    with pytest.raises(InputError, match=r"step 7: .* lower pretrain_encoder.learning_rate"):
        check_finite("pretrain_encoder", loss, torch.tensor(norm), step=7)
