"""File names as people have them: their order, and which are pictures."""

from __future__ import annotations

import re
from pathlib import PurePath

PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".gif")
)
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
