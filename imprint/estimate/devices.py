"""Cards by name: memory and peak throughput as their maker states them, without sparsity. Nothing here was measured."""

from __future__ import annotations

from dataclasses import dataclass

from imprint.core.errors import InputError

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Card:
    """memory_gb: 2^30 bytes each; bf16: TFLOPS of bfloat16 products with float32 sums; tf32: of float32 convolutions as
    cuDNN does them by default."""

    name: str
    memory_gb: float
    bf16: float
    tf32: float


CARDS = {
    card.name: card
    for card in (
        Card(name="rtx-3090", memory_gb=24, bf16=71.2, tf32=35.6),
        Card(name="rtx-4090", memory_gb=24, bf16=165.2, tf32=82.6),
        Card(name="a100-40", memory_gb=40, bf16=312, tf32=156),
        Card(name="a100-80", memory_gb=80, bf16=312, tf32=156),
        Card(name="h100", memory_gb=80, bf16=989, tf32=494),
    )
}


def choose_card(name: str | None, memory_gb: float | None, tflops: float | None) -> Card:
    """The named card, or one of the given memory and bfloat16 throughput (in TF32 half of it, as above)."""
    if memory_gb is not None and tflops is not None:
        return Card(name="given", memory_gb=memory_gb, bf16=tflops, tf32=tflops / 2)
    if memory_gb is not None or tflops is not None:
        raise InputError("--memory-gb and --tflops go together; give both, or --card")
    if name not in CARDS:
        raise InputError(
            f"--card {name} is not known; use one of {', '.join(CARDS)}, or give --memory-gb and --tflops (bfloat16)"
        )
    return CARDS[name]
