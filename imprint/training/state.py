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

FORMAT_VERSION = 2  # 1: the optimizer's moments as this module understood them, with the steps counted by the run
_OPTIMIZER = "optimizer/"


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
        "format_version": FORMAT_VERSION,
        "step": state.step,
        "optimizer": _collect_scalars(state),
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
    """Restore the newest whole checkpoint into `state`, skip damaged ones with a warning. False if there is none.

    `InputError` for one of another format: it would be read wrong.
    """
    for path in _list_checkpoints(directory):
        read = _read_checkpoint(path)
        if read is None:
            if not quiet:
                print(f"warning: checkpoint {path} is damaged and is skipped", file=sys.stderr, flush=True)
            continue
        values, tensors = read
        _check_format(values, path)
        _restore_tensors(state, tensors, values["optimizer"])
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


def _check_format(values: dict[str, Any], path: Path) -> None:
    found = values.get("format_version", 1)
    if found != FORMAT_VERSION:
        raise InputError(
            f"checkpoint {path} has format {found}, not {FORMAT_VERSION}; finish the training with the version that "
            f"wrote it, or delete {path.parent} to train from the start"
        )


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
    for name, values in _read_optimizer(state).items():
        tensors |= {f"{_OPTIMIZER}{key}/{name}": value for key, value in values.items() if isinstance(value, Tensor)}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _collect_scalars(state: TrainState) -> dict[str, dict[str, Any]]:
    """What the optimizer keeps of a parameter beside tensors."""
    scalars = {
        name: {key: value for key, value in values.items() if not isinstance(value, Tensor)}
        for name, values in _read_optimizer(state).items()
    }
    return {name: values for name, values in scalars.items() if values}


def _read_optimizer(state: TrainState) -> dict[str, dict[str, Any]]:
    """Parameter's name => what the optimizer says it keeps of it; one that never had a gradient has nothing."""
    kept = state.optimizer.state_dict()["state"]
    return {name: kept[index] for index, name in _number_parameters(state).items() if index in kept}


def _number_parameters(state: TrainState) -> dict[int, str]:
    """The optimizer's number of a parameter => our name."""
    names = {id(parameter): name for name, parameter in state.parameters.items()}
    ordered = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    return {index: names[id(parameter)] for index, parameter in enumerate(ordered)}


@torch.no_grad()
def _restore_tensors(state: TrainState, tensors: dict[str, Tensor], scalars: dict[str, dict[str, Any]]) -> None:
    for name, parameter in state.parameters.items():
        parameter.copy_(tensors[f"model/{name}"])
        state.ema[name].copy_(tensors[f"ema/{name}"])
    kept = {}
    for index, name in _number_parameters(state).items():
        parameter = state.parameters[name]
        values = {key: _like(value, parameter) for key, value in _find_kept(tensors, name).items()}
        if values := values | scalars.get(name, {}):
            kept[index] = values
    # the optimizer itself says on which device it wants each of them; its groups' settings are this run's
    state.optimizer.load_state_dict({"state": kept, "param_groups": state.optimizer.state_dict()["param_groups"]})


def _find_kept(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    parts = {key: key.removeprefix(_OPTIMIZER).partition("/") for key in tensors if key.startswith(_OPTIMIZER)}
    return {kept: tensors[key] for key, (kept, _, owner) in parts.items() if owner == name}


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A moment in the parameter's memory format, where it has its shape."""
    if value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
    return value
