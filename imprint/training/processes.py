"""One training in one process or in several, on one machine or many: what they share, and what they agree on.

Every process has the whole model and takes its share of each batch; torch's DistributedDataParallel averages the
gradients, so that all take the same step. The main process alone validates, logs, saves and publishes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from imprint.core.errors import InputError
from imprint.core.params import Training
from imprint.data import BatchShares
from imprint.training.interrupts import StopRequest
from imprint.training.noising import Noising

_PATIENCE = timedelta(hours=2)  # of the others while the main process validates, saves or publishes


class Losses(nn.Module):
    """A task's losses as a module over the parameters that train: what several processes keep in step."""

    def __init__(self, compute: Callable[[Any, Noising], Tensor], parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.compute = compute  # it holds the model, which is no part of this module: what is frozen is not exchanged
        self.trained = nn.ParameterList(parameters)

    def forward(self, batch: Any, noising: Noising) -> Tensor:
        """The losses per sample."""
        return self.compute(batch, noising)


def build_accelerator() -> Accelerator:
    """CPU in float32, or one GPU per process in bfloat16; it joins the others that a launcher has started."""
    has_gpu = torch.cuda.is_available()
    # parameters without a gradient (a mask level that is not given) stay without one, as they do in one process
    exchange = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    handlers: list[Any] = [exchange, InitProcessGroupKwargs(timeout=_PATIENCE)]
    return Accelerator(cpu=not has_gpu, mixed_precision="bf16" if has_gpu else "no", kwargs_handlers=handlers)


def is_main_process() -> bool:
    """Whether this process speaks for all; known before they have met."""
    return int(os.environ.get("RANK", 0)) == 0


def share_batches(params: Training, accelerator: Accelerator, *, stage: str) -> BatchShares:
    """This process's share of every batch; `InputError` if it cannot be divided evenly."""
    shares = BatchShares(
        batch_size=params.batch_size,
        accumulate_steps=params.accumulate_steps,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
    )
    if params.batch_size % shares.parts_per_step:
        raise InputError(
            f"{stage}.batch_size: {params.batch_size} samples cannot be divided evenly among {shares.num_processes} "
            f"processes with accumulate_steps {params.accumulate_steps}; choose a multiple of {shares.parts_per_step}"
        )
    return shares


def agree(accelerator: Accelerator, loss: Tensor, *, stop: StopRequest, elapsed_s: float) -> tuple[float, float]:
    """The mean loss of all processes and the main one's time; a stop that any of them was asked for becomes all's."""
    mine = [float(loss), stop.read(), elapsed_s]
    rows = accelerator.gather(torch.tensor([mine], dtype=torch.float64, device=accelerator.device))
    assert isinstance(rows, Tensor)
    rows = rows.cpu()
    stop.signal_number = int(rows[:, 1].max())
    return float(rows[:, 0].mean()), float(rows[0, 2])


def check_same_step(accelerator: Accelerator, step: int) -> None:
    """`InputError` if the processes go on from different checkpoints."""
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device))
    assert isinstance(steps, Tensor)
    if len(found := sorted(set(steps.tolist()))) > 1:
        raise InputError(
            f"the processes found checkpoints of different steps ({', '.join(map(str, found))}); "
            "all nodes must see one project folder, with its work/"
        )


def leave_together(accelerator: Accelerator) -> None:
    """Wait until every process has done its work: a launcher ends all others as soon as one has ended."""
    if accelerator.num_processes > 1:
        accelerator.wait_for_everyone()
        accelerator.end_training()
