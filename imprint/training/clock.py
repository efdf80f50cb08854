"""Where the time of a training goes, and what it takes of its machine. Nothing of it touches the weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psutil
import torch

_BYTES_PER_MB = 1 << 20


class Clock:
    """Seconds of training, those before a restart included, and the share of them spent waiting for data."""

    def __init__(self, elapsed_s: float) -> None:
        self._started_s = time.monotonic() - elapsed_s
        self._marked_s, self._waited_s = time.monotonic(), 0.0

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def fetch(self, batches: Iterator[Any]) -> Any:
        """The next batch."""
        asked_s = time.monotonic()
        batch = next(batches)
        self._waited_s += time.monotonic() - asked_s
        return batch

    def read_wait_share(self) -> float:
        """The loader's share of the time since the last call."""
        now_s = time.monotonic()
        share = self._waited_s / max(now_s - self._marked_s, 1e-9)
        self._marked_s, self._waited_s = now_s, 0.0
        return share


def measure_machine() -> dict[str, float]:
    """Memory of this process and its children, and use and memory of every GPU, under MLflow's names.

    A GPU's use needs the package nvidia-ml-py; without it that one number is left out.
    """
    process = psutil.Process()
    metrics = {"system/process_memory_megabytes": _sum_memory([process, *process.children(recursive=True)])}
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        metrics[f"system/gpu_{index}_memory_usage_megabytes"] = (total - free) / _BYTES_PER_MB
        try:
            metrics[f"system/gpu_{index}_utilization_percentage"] = float(torch.cuda.utilization(index))
        except (ImportError, RuntimeError):
            continue
    return metrics


def _sum_memory(processes: list[psutil.Process]) -> float:
    """Resident megabytes; one that has ended meanwhile counts nothing."""
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total / _BYTES_PER_MB
