"""Training in two processes, in parts, with recomputation: the same steps as in one; and how a training ends."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from imprint.core.errors import InputError
from imprint.core.params import Params, load_params
from imprint.data import BatchShares
from imprint.models import PRESETS, build_model, load_model
from imprint.tracking import start_run
from imprint.tracking.store import open_store
from imprint.training.augment import augment_reference
from imprint.training.launch import launch, run_in_processes
from imprint.training.loop import find_ema_decay, find_rate_factor
from imprint.training.processes import build_accelerator, share_batches
from imprint.training.state import build_state
from tests.two_processes import train

ROOT = Path(__file__).resolve().parents[1]
SHORT = {
    "threads": 1,
    "max_steps": 4,
    "batch_size": 4,
    "warmup_steps": 2,
    "colour_jitter": 0.3,
    "log_every_steps": 1,
    "checkpoint_every_steps": 50,
    "validate_every_steps": 50,
    "validation_pairs": 2,
}


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """The launcher leaves its own signal handlers behind."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    previous = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.fixture
def folder(synthetic_shards: Path, tmp_path: Path) -> Path:
    shutil.copytree(synthetic_shards, tmp_path / "shards")
    return tmp_path


def write_params(folder: Path, **changes: Any) -> Params:
    values = load_params(ROOT / "params.yaml", ROOT / "params" / "smoke.yaml").model_dump()
    values["train_compositor"] |= {**SHORT, **changes}
    params = Params.model_validate(values)
    (folder / "params.json").write_text(params.model_dump_json())
    return params


def train_here(folder: Path, **changes: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of the steps and the trained weights, in this process."""
    write_params(folder, **changes)
    model = build_model(PRESETS["tiny"], seed=0)
    state = train(folder, model, name="here")
    return [entry["loss"] for entry in state.history], model.state_dict()


def test_two_processes_take_the_steps_of_one_stop_together_and_resume_bit_for_bit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    losses, _ = train_here(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SystemExit) as ended:
        launch(2, ["-m", "tests.two_processes", str(folder)])
    assert ended.value.code == 7, capfd.readouterr().err
    facts = json.loads((folder / "facts.json").read_text())
    assert [entry["loss"] for entry in facts["history"]] == pytest.approx(losses, rel=0, abs=1e-5)
    assert facts["exit_code"] == 128 + signal.SIGTERM  # of the process that got no signal
    assert facts["checkpoints"] == ["step-00000002.json", "step-00000002.safetensors"]
    weights = load_file(folder / "weights.safetensors")
    whole = {name.removeprefix("whole/"): value for name, value in weights.items() if name.startswith("whole/")}
    assert all(torch.equal(value, weights[f"resumed/{name}"]) for name, value in whole.items())
    assert "stopped and saved at step 2" in capfd.readouterr().err


def test_parts_and_recomputation_change_nothing_but_the_rounding(folder: Path) -> None:
    losses, weights = train_here(folder)
    for changes in ({"accumulate_steps": 2}, {"accumulate_steps": 4}, {"gradient_checkpointing": True}):
        others, found = train_here(folder, **changes)
        assert others == pytest.approx(losses, rel=0, abs=1e-5)
        distance = max(float((weights[name] - found[name]).abs().max()) for name in weights)
        assert distance < 1e-3, changes  # AdamW makes whole steps of what is nothing but rounding


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="this processor has no AVX512_BF16")
def test_bfloat16_on_a_cpu_trains_like_float32_but_for_the_rounding(folder: Path) -> None:
    losses, weights = train_here(folder)
    others, found = train_here(folder, cpu_precision="bfloat16")
    assert others == pytest.approx(losses, rel=0.02)
    assert others != losses
    assert all(value.dtype == weights[name].dtype for name, value in found.items())
    with pytest.raises(InputError, match=r"here.cpu_precision: .* gradient_checkpointing"):
        train_here(folder, cpu_precision="bfloat16", gradient_checkpointing=True)


def test_a_cpu_that_would_have_to_emulate_bfloat16_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with pytest.raises(InputError, match=r"here.cpu_precision: .* set it to float32"):
        train_here(folder, cpu_precision="bfloat16")


def test_the_shares_of_all_processes_are_the_batch_in_its_order() -> None:
    for num_processes, accumulate_steps in ((1, 1), (1, 3), (2, 1), (2, 3), (4, 3)):
        shares = [
            BatchShares(
                batch_size=24, accumulate_steps=accumulate_steps, num_processes=num_processes, process_index=rank
            )
            for rank in range(num_processes)
        ]
        parts = [list(share.list_parts(2, 4)) for share in shares]
        assert {len(of_one) for of_one in parts} == {2 * accumulate_steps}
        for step in (0, 1):
            of_step = [
                part for of_one in parts for part in of_one[step * accumulate_steps : (step + 1) * accumulate_steps]
            ]
            positions = sorted(position for part in of_step for position in part)
            assert positions == list(range((2 + step) * 24, (3 + step) * 24))


def test_a_part_of_a_batch_is_augmented_as_within_the_whole() -> None:
    reference = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    opacity = torch.ones(6, 1, 32, 32)
    changes = {"affine": True, "colour_jitter": 0.4, "seed": 3}
    whole, _ = augment_reference(reference, opacity, **changes)
    parts = [
        augment_reference(reference[row : row + 2], opacity[row : row + 2], first_row=row, batch_size=6, **changes)[0]
        for row in (0, 2, 4)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_a_batch_that_cannot_be_divided_is_refused(folder: Path) -> None:
    params = write_params(folder, accumulate_steps=3).train_compositor
    with pytest.raises(InputError, match=r"train_compositor.batch_size: 4 samples .* choose a multiple of 3"):
        share_batches(params, build_accelerator(), stage="train_compositor")


def test_one_process_is_this_one() -> None:
    called = []
    for count in (0, 1):  # 0: one per GPU; tests run where there is at most one
        run_in_processes(lambda: called.append(1), command="pretrain-encoder", count=count)
    assert called == [1, 1]


def test_max_hours_end_a_training_at_a_step(folder: Path) -> None:
    model = build_model(PRESETS["tiny"], seed=0)
    write_params(folder, max_hours=1e-9)
    state = train(folder, model, name="short")
    assert state.step == 1
    assert state.history[-1]["step"] == 1
    assert state.elapsed_s > 1e-9 * 3600


def test_the_schedule_follows_the_clock_of_max_hours(folder: Path) -> None:
    """From the state alone, so that a resumed run takes its first step at the rate that it was stopped at."""
    params = write_params(folder, max_hours=2.0, max_steps=1000, ema_halflife_share=0.01).train_compositor
    model = torch.nn.Linear(2, 2)
    state = build_state(model, torch.optim.AdamW(model.parameters()))
    rates, decays = [], []
    for state.step, state.elapsed_s in ((2, 0.0), (200, 3600.0), (600, 3600.0), (300, 7200.0)):
        rates.append(find_rate_factor(state, params))
        decays.append(find_ema_decay(state, params))
    assert rates[:2] == pytest.approx([1.0, 0.5], abs=1e-4)
    assert rates[2] < 0.36  # here the steps are ahead
    assert rates[3] == pytest.approx(0.0)
    assert decays[1] == pytest.approx(0.5 ** (1 / (400 * params.ema_halflife_share)))


@pytest.mark.drill
def test_every_checkpoints_averaged_weights_are_a_logged_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its step and its held-out loss, to be loaded from MLflow; the last one has the weights of the run's end."""
    from mlflow import artifacts

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    write_params(folder, log_checkpoints_as_models=True, checkpoint_every_steps=2, validate_every_steps=2)
    model = build_model(PRESETS["tiny"], seed=0)
    work_dir = folder / "work" / "logged"
    opened = {"stage": "logged", "key": "logged", "work_dir": work_dir, "params": {}, "inputs": {}, "root": folder}
    with start_run(**opened) as tracker:
        history = train(folder, model, name="logged", tracker=tracker).history
    client, experiment = open_store(folder)
    found = {logged.name: logged for logged in client.search_logged_models([experiment])}
    assert sorted(found) == ["compositor-step-2", "compositor-step-4"]
    for step in (2, 4):
        logged = found[f"compositor-step-{step}"]
        losses = [entry["val_loss"] for entry in history if entry["step"] == step and "val_loss" in entry]
        assert logged.params == {"step": str(step)}
        assert [metric.value for metric in logged.metrics if metric.key == "val_loss"] == losses
    place = artifacts.download_artifacts(
        f"models:/{found['compositor-step-4'].model_id}", tracking_uri=f"sqlite:///{folder}/mlflow.db"
    )
    loaded = load_model(Path(place)).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
    assert list((work_dir / "exports").iterdir()) == []
