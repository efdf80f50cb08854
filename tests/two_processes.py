"""What the two processes of `test_training_processes.py` do; started by the project's own launcher, never collected.

`python -m tests.two_processes <folder>`: trains without a break; again, until the second process gets a SIGTERM; and on
from there. Leaves the results of the first process in the folder, and exits with 7 where both were stopped.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from imprint.core.params import Params
from imprint.core.stage import StageRun
from imprint.data import ShardReader
from imprint.models import PRESETS, ImprintModel, build_model
from imprint.tracking import Tracker, start_run
from imprint.training.processes import is_main_process
from imprint.training.session import train_model
from imprint.training.state import TrainState
from imprint.training.tasks import CompositingTask


def train(folder: Path, model: ImprintModel, *, name: str, tracker: Tracker | None = None) -> TrainState:
    """Stage 2 from random weights, on the folder's shards, by the folder's params."""
    task = CompositingTask(Params.model_validate_json((folder / "params.json").read_text()).train_compositor)
    run = StageRun(name=name, key=name, work_dir=folder / "work" / name, params={}, inputs={})
    settings = {"params": task.params, "from_scratch": True, "train_middle_block": True, "run": run}
    return train_model(model, task, reader=ShardReader(folder / "shards"), tracker=tracker, **settings)


def main(folder: Path) -> None:
    whole = build_model(PRESETS["tiny"], seed=0)
    history = train(folder, whole, name="whole").history

    broken = build_model(PRESETS["tiny"], seed=0)
    work_dir, saved = folder / "work" / "broken", None
    opened = {"stage": "broken", "key": "broken", "work_dir": work_dir, "params": {}, "inputs": {}, "root": folder}
    if not is_main_process():
        interrupt_at_pass(broken, 2)
        saved = stop(folder, broken, None)
    else:
        with start_run(**opened) as tracker:
            saved = stop(folder, broken, tracker)
    resumed = build_model(PRESETS["tiny"], seed=0)
    train(folder, resumed, name="broken")
    if is_main_process():
        facts = {"history": history, "exit_code": saved, "checkpoints": sorted(os.listdir(work_dir / "checkpoints"))}
        save_file({**rename("whole", whole), **rename("resumed", resumed)}, folder / "weights.safetensors")
        (folder / "facts.json").write_text(json.dumps(facts))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    raise SystemExit(7 if saved == 128 + signal.SIGTERM else 1)


def interrupt_at_pass(model: ImprintModel, number: int) -> None:
    """This process sends itself a SIGTERM in the U-Net's so-manyth pass."""
    passes = []

    def count(_module: object, _inputs: object) -> None:
        passes.append(1)
        if len(passes) == number:
            os.kill(os.getpid(), signal.SIGTERM)

    model.unet.register_forward_pre_hook(count)


def stop(folder: Path, model: ImprintModel, tracker: Tracker | None) -> object:
    """Train until the stop; its exit code."""
    try:
        train(folder, model, name="broken", tracker=tracker)
    except SystemExit as end:
        return end.code
    return None


def rename(name: str, model: ImprintModel) -> dict[str, torch.Tensor]:
    """The model's weights under keys that begin with `name`."""
    return {f"{name}/{key}": value.contiguous() for key, value in model.state_dict().items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
