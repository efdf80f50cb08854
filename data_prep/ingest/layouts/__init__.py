"""The layouts that `ingest.source` may have, each read by an adapter; which one it is follows from the files alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_prep.ingest.layouts import davis, images, mvimgnet, photo_sets, videos
from data_prep.ingest.layouts.item import Item, Problem
from imprint.core.errors import InputError
from imprint.core.records import Layout

RECOGNIZERS: dict[Layout, Callable[[Path], str | None]] = {
    "videos": videos.recognize,
    "davis": davis.recognize,
    "mvimgnet": mvimgnet.recognize,
    "photo_sets": photo_sets.recognize,
    "images": images.recognize,
}
LISTINGS: dict[Layout, Callable[[Path], tuple[list[Item], list[Problem]]]] = {
    "videos": videos.list_items,
    "davis": davis.list_items,
    "mvimgnet": mvimgnet.list_items,
    "photo_sets": photo_sets.list_items,
    "images": images.list_items,
}


def find_layout(source: Path, name: str) -> tuple[Layout, str]:
    """The layout of `source`, called `name` in errors, and why. `InputError` where none or more than one fits."""
    if not source.exists():
        raise InputError(f"{name} does not exist; set it to a folder in a layout of docs/data_format.md, or one video")
    reasons: dict[Layout, str | None] = {layout: recognize(source) for layout, recognize in RECOGNIZERS.items()}
    found: list[tuple[Layout, str]] = [(layout, reason) for layout, reason in reasons.items() if reason]
    if not found:
        raise InputError(
            f"{name} has none of the layouts {', '.join(RECOGNIZERS)}; see docs/data_format.md for their folder trees"
        )
    if len(found) > 1:
        both = " and ".join(f"{layout} ({reason})" for layout, reason in found)
        raise InputError(f"{name} fits more than one layout: {both}; move one of them elsewhere, or name a part of it")
    return found[0]
