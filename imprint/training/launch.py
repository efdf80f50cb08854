"""A stage's command in several processes on this machine, by torch's own launcher (what `torchrun` runs).

`processes` in the stage's params does it, so that `dvc repro` can use several GPUs. Started by a launcher already, the
command is one of those processes, and `processes` is not looked at:

    torchrun --nproc-per-node 4 -m imprint pretrain-encoder
    accelerate launch --multi_gpu --num_processes 4 -m imprint pretrain-encoder

Several nodes: the same command on each, in one project folder that all see (or one with the same data/, models/ and
work/ mounted in it), for example on two nodes of eight GPUs, `host0` being the first:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint host0:29500 -m imprint pretrain-encoder
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable

from imprint.core.errors import InputError

_SHUTDOWN_S = 18  # for the processes to save and end, before they are killed; a flow's run grants 20


def run_in_processes(body: Callable[[], None], *, command: str, count: int) -> None:
    """Call `body` here, or run `python -m imprint <command>` in `count` processes and wait (0: one per GPU).

    Raises SystemExit with the exit code of the first one that failed, or 128 + the signal that ended this process; the
    others are stopped then.
    """
    if "LOCAL_RANK" in os.environ or (count := _count_processes(command, count)) == 1:
        body()
        return
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        shutdown_timeout=_SHUTDOWN_S,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "imprint", command)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        raise SystemExit(code if code > 0 else 128 - code) from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None


def _count_processes(command: str, count: int) -> int:
    if count == 1:
        return 1
    import torch

    available = torch.cuda.device_count()
    if available and count > available:
        section = command.replace("-", "_")
        raise InputError(f"{section}.processes: {count}, but there are {available} GPUs; set it to 0 for one per GPU")
    return count or max(available, 1)
