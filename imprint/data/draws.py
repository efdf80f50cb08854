"""What is drawn for the sample at a position of a run: a function of (seed, position) alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from imprint.core.errors import InputError
from imprint.core.masks import MASK_LEVELS, MaskLevel
from imprint.core.records import PairKind, PairRecord

Key = TypeVar("Key", bound=str)


@dataclass(frozen=True, kw_only=True)
class DrawRules:
    """Shares and ranges that a sample is drawn by; the default draws no change at all.

    mixture: kind of pair => share; levels: mask level => share; max_contact_margin: of the object's size;
    flip_rate: mirrored left to right; swap_rate: colour channels permuted (both in reference and target alike);
    max_references: so many views of the object are shown at most; detail: a zoomed crop of each as well;
    hide_rate: what lies in the hole is not shown although it is known (a plate).
    """

    mixture: Mapping[PairKind, float]
    levels: Mapping[MaskLevel, float] = field(default_factory=lambda: {"exact": 1.0})
    max_contact_margin: float = 0.0
    flip_rate: float = 0.0
    swap_rate: float = 0.0
    max_references: int = 1
    detail: bool = False
    hide_rate: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One sample: the pair and what is done to both of its views."""

    position: int  # counts the samples of a run
    pair: PairRecord
    level: MaskLevel
    margin_share: float
    mirrored: bool
    channels: tuple[int, int, int]
    others: tuple[float, ...] = ()  # one per further view of the object: its place among those that there are, 0-1
    max_references: int = 1
    detail: bool = False
    hides: bool = True


def draw_sample(rules: DrawRules, pairs: Mapping[PairKind, Sequence[PairRecord]], *, seed: int, position: int) -> Draw:
    """The sample at `position`: a kind by the mixture, a pair of it, a mask level, a margin, mirror and channels, and
    how many views of the object are shown, 1 to `max_references`."""
    rng = np.random.default_rng([seed, position])
    kind = _draw_key(rng, sorted(pairs), rules.mixture)
    pair = pairs[kind][int(rng.integers(len(pairs[kind])))]
    level = _draw_key(rng, MASK_LEVELS, rules.levels)
    margin_share = float(rng.uniform(0.0, rules.max_contact_margin))
    mirrored = bool(rng.random() < rules.flip_rate)
    red, green, blue = (int(channel) for channel in rng.permutation(3))
    channels = (red, green, blue) if rng.random() < rules.swap_rate else (0, 1, 2)
    # drawn last, so that all else is as it would be with one view
    others = rng.random(int(rng.integers(rules.max_references))) if rules.max_references > 1 else ()
    hides = bool(rng.random() < rules.hide_rate)
    return Draw(
        position=position,
        pair=pair,
        level=level,
        margin_share=margin_share,
        mirrored=mirrored,
        channels=channels,
        others=tuple(float(share) for share in others),
        max_references=rules.max_references,
        detail=rules.detail,
        hides=hides,
    )


def _draw_key(rng: np.random.Generator, keys: Sequence[Key], shares: Mapping[Key, float]) -> Key:
    """One of `keys` by its share; shares need not sum to 1."""
    bounds = np.cumsum([shares.get(key, 0.0) for key in keys])
    if bounds[-1] <= 0:
        raise InputError(f"all of {', '.join(map(str, keys))} have a share of 0; raise one in params.yaml")
    return keys[int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))]
