"""All that must survive a restart, in one object, with one save and one load: safetensors and JSON, no pickle."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imprint.core.errors import InputError
from imprint.core.files import compute_file_digest, replace_atomic, write_json_atomic
from imprint.training.optimizer import get_trainable

_MOMENTS = "moment/"


@dataclass
class TrainState:
    """step: finished steps; ema: averaged weights; history: the logged curve; recent_losses: not yet in it;
    elapsed_s: seconds of training so far."""

    parameters: dict[str, nn.Parameter]  # those that train
    optimizer: torch.optim.Optimizer
    ema: dict[str, Tensor]
    step: int = 0
    elapsed_s: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    recent_losses: list[float] = field(default_factory=list)


def build_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """The state of a run that has not begun."""
    parameters = get_trainable(model)
    ema = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    return TrainState(parameters=parameters, optimizer=optimizer, ema=ema)


def save_state(state: TrainState, directory: Path, *, keep: int) -> None:
    """Write `step-<n>.safetensors`, then its JSON with the checksum, which makes it count.

    Kept are the newest `keep`, and of those whose step was validated the one with the smallest held-out loss.
    `InputError` where it cannot be written (a full disk): what was there before stays as it was.
    """
    path = directory / f"step-{state.step:08d}.safetensors"
    values = {
        "step": state.step,
        "elapsed_s": state.elapsed_s,
        "history": state.history,
        "recent_losses": state.recent_losses,
        "val_loss": get_held_out_loss(state),
    }
    try:
        with replace_atomic(path) as temporary:
            save_file(_collect_tensors(state), temporary)
        write_json_atomic(path.with_suffix(".json"), values | {"sha256": compute_file_digest(path)})
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"the checkpoint of step {state.step} cannot be written to {directory} ({error}); earlier ones "
            "are whole: make room and give the same command again to go on from the newest"
        ) from None
    _remove_old(directory, keep)


def load_state(state: TrainState, directory: Path, *, quiet: bool = False) -> bool:
    """Restore the newest whole checkpoint into `state`, skip damaged ones with a warning. False if there is none."""
    for path in _list_checkpoints(directory):
        read = _read_checkpoint(path)
        if read is None:
            if not quiet:
                print(f"warning: checkpoint {path} is damaged and is skipped", file=sys.stderr, flush=True)
            continue
        values, tensors = read
        _restore_tensors(state, tensors, step=values["step"])
        state.step, state.history = values["step"], values["history"]
        state.recent_losses, state.elapsed_s = values["recent_losses"], values["elapsed_s"]
        return True
    return False


def get_held_out_loss(state: TrainState) -> float | None:
    """The held-out loss at the state's very step, if it was measured there."""
    losses = (entry.get("val_loss") for entry in state.history if entry["step"] == state.step)
    return next((loss for loss in losses if loss is not None), None)


def get_final_metrics(state: TrainState) -> dict[str, float]:
    """The last logged value of every metric."""
    final: dict[str, float] = {}
    for entry in state.history:
        final.update({name: value for name, value in entry.items() if name != "step"})
    return final


def _remove_old(directory: Path, keep: int) -> None:
    checkpoints = _list_checkpoints(directory)
    measured = [(loss, path) for path in checkpoints if (loss := _read_held_out_loss(path)) is not None]
    best = min(measured)[1] if measured else None
    for old in checkpoints[keep:]:
        if old != best:
            old.unlink()
            old.with_suffix(".safetensors").unlink(missing_ok=True)


def _read_held_out_loss(path: Path) -> float | None:
    try:
        return json.loads(path.read_text())["val_loss"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _list_checkpoints(directory: Path) -> list[Path]:
    """JSON files, newest first."""
    return sorted(directory.glob("step-*.json"), reverse=True)


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    try:
        values = json.loads(path.read_text())
        digest = compute_file_digest(path.with_suffix(".safetensors"))
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict) or values.get("sha256") != digest:
        return None
    return values, load_file(path.with_suffix(".safetensors"))


def _collect_tensors(state: TrainState) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in state.parameters.items():
        tensors[f"model/{name}"] = parameter
        tensors[f"ema/{name}"] = state.ema[name]
        # a parameter that never had a gradient has no moments; which ones there are is the optimizer's affair
        for moment, value in state.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and moment != "step":
                tensors[f"{_MOMENTS}{moment}/{name}"] = value
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def _restore_tensors(state: TrainState, tensors: dict[str, Tensor], *, step: int) -> None:
    for name, parameter in state.parameters.items():
        parameter.copy_(tensors[f"model/{name}"])
        state.ema[name].copy_(tensors[f"ema/{name}"])
        moments = _find_moments(tensors, name)
        if moments:
            restored = {key: _like(value, parameter) for key, value in moments.items()}
            count = torch.tensor(float(step)) if isinstance(state.optimizer, torch.optim.AdamW) else step
            state.optimizer.state[parameter] = {"step": count, **restored}


def _find_moments(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    parts = {key: key.removeprefix(_MOMENTS).partition("/") for key in tensors if key.startswith(_MOMENTS)}
    return {moment: tensors[key] for key, (moment, _, owner) in parts.items() if owner == name}


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A moment as the optimizer had it: on the parameter's device, in its memory format where it has its shape."""
    if value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value.to(parameter.device)
