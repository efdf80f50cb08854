"""Bytes of what a run keeps from step to step: weights, their average, the optimizer's moments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from imprint.core.params import Training
from imprint.estimate.counting import count_bytes
from imprint.models import ImprintModel

# bitsandbytes' AdamW8bit, by its sources: two moments of one byte each, a float32 per block of 256 for either, and
# float32 for tensors of fewer than 4096 numbers
_BLOCK, _MIN_8BIT = 256, 4096


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """trained: numbers that train; weights: on the GPU, with the frozen ones; average: the EMA; moments: AdamW's."""

    trained: int
    weights: int
    average: int
    moments: dict[str, int]  # by optimizer
    export: int  # the model as a stage writes it

    @property
    def gradients(self) -> int:
        return self.average

    def compute_checkpoint_bytes(self, optimizer: str) -> int:
        """What training needs to go on: the trained weights, their average and the moments."""
        return 2 * self.average + self.moments[optimizer]


def count_state(model: ImprintModel, params: Training) -> StateBytes:
    """Of a model whose freeze map is set, by the settings of a stage."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parts = {part: getattr(model, part) for part in model.parts}
    resident = {part: module for part, module in parts.items() if not (params.offload_frozen and is_frozen(module))}
    return StateBytes(
        trained=sum(parameter.numel() for parameter in trained),
        weights=sum(map(count_bytes, _list_tensors(resident))),
        average=sum(map(count_bytes, trained)),
        moments={
            "adamw": sum(2 * count_bytes(parameter) for parameter in trained),
            "adamw-8bit": sum(count_8bit_moments(parameter.numel()) for parameter in trained),
        },
        export=sum(count_bytes(tensor) for tensor in _list_tensors(parts, skip=".lora_")),
    )


def count_8bit_moments(numel: int) -> int:
    """Bytes of both moments of a tensor in 8-bit AdamW."""
    return 8 * numel if numel < _MIN_8BIT else 2 * (numel + 4 * -(-numel // _BLOCK))


def count_parameters(model: ImprintModel) -> dict[str, tuple[int, int]]:
    """Part => its parameters and how many of them train."""
    counts = {}
    for part in model.parts:
        parameters = list(getattr(model, part).parameters())
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        counts[part] = (sum(parameter.numel() for parameter in parameters), trained)
    return counts


def is_frozen(module: nn.Module) -> bool:
    """Nothing of it trains."""
    return not any(parameter.requires_grad for parameter in module.parameters())


def _list_tensors(parts: Mapping[str, nn.Module], skip: str | None = None) -> Iterator[Tensor]:
    named: Iterable[tuple[str, Tensor]]
    for module in parts.values():
        for named in (module.named_parameters(), module.named_buffers()):
            yield from (tensor for name, tensor in named if skip is None or skip not in name)
