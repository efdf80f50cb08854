"""Training on a CPU in bfloat16, which takes 0.7 of the time where the processor computes in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from imprint.core.errors import InputError
from imprint.core.params import Training


class _Float32Attention(TorchFunctionMode):
    """Attention in float32, also under autocast: bfloat16 makes the backward pass on a CPU three times slower."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value, *rest = args
        with torch.autocast("cpu", enabled=False):
            return func(query.float(), key.float(), value.float(), *rest, **(kwargs or {})).to(query.dtype)


def check_precision(params: Training, device: torch.device, *, stage: str) -> None:
    """`InputError` if `cpu_precision` cannot be had: emulated it would be many times slower."""
    if not _is_asked(params, device):
        return
    if not torch.cpu._is_avx512_bf16_supported():
        raise InputError(
            f"{stage}.cpu_precision: this processor does not compute in bfloat16 (AVX512_BF16); set it to float32"
        )
    if params.gradient_checkpointing:  # the repeated passes would not keep attention in float32
        raise InputError(
            f"{stage}.cpu_precision: bfloat16 does not go together with gradient_checkpointing; set one of them back"
        )


@contextmanager
def compute_in(params: Training, device: torch.device) -> Iterator[None]:
    """Forward passes on a CPU in the precision of `cpu_precision`; on a GPU nothing changes."""
    if _is_asked(params, device):
        with torch.autocast("cpu", torch.bfloat16), _Float32Attention():
            yield
    else:
        yield


def _is_asked(params: Training, device: torch.device) -> bool:
    return params.cpu_precision == "bfloat16" and device.type == "cpu"
