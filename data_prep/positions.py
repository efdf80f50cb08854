"""The order of names, and the place of each picture of an item, counted as the frames of a video are."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from imprint.core.records import Order

_DIGITS = re.compile("([0-9]+)")


def natural_key(path: PurePath) -> tuple[list[str | int], str]:
    """Sorts names as people count: `2.jpg` before `10.jpg`. The one order of all listings; total, so it is stable."""
    parts = _DIGITS.split(path.name)
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], path.name


def has_plain_name(path: PurePath) -> bool:
    """Whether the last part is UTF-8. Of other bytes, records, tables and video readers can make nothing."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return False
    return True


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
