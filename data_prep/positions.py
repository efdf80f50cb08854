"""The place of each picture of an item, counted as the frames of a video are."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from imprint.core.records import Order


def show_path(path: Path) -> Path:
    """The path with escapes for what is no UTF-8, for messages and ledgers."""
    return Path(os.fsencode(path).decode("utf-8", "backslashreplace"))


def compute_positions(names: Sequence[str], order: Order) -> list[int]:
    """Ascending, from 0. In a sequence numbered by its file names a missing number leaves a gap.

    Numbers may go in steps (YouTube-VOS: 00000, 00005, ...); their greatest common step counts as one.
    """
    stems = [PurePath(name).stem for name in names]
    if order != "time" or not all(stem.isdecimal() for stem in stems):
        return list(range(len(names)))
    numbers = [int(stem) - int(stems[0]) for stem in stems]
    if any(later <= earlier for earlier, later in itertools.pairwise(numbers)):
        return list(range(len(names)))
    return [number // max(math.gcd(*numbers), 1) for number in numbers]
