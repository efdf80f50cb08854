"""The layouts that `ingest.source` may have, each read by an adapter; which one it is follows from the files alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_prep.ingest.layouts import davis, images, mvimgnet, photo_sets, videos
from data_prep.ingest.layouts.item import Item, Problem
from data_prep.ingest.layouts.unread import list_unread
from data_prep.positions import show_path
from imprint.core.errors import InputError
from imprint.core.names import has_plain_name
from imprint.core.records import Layout

# In this order: a source is read as the first layout that fits. What names its files most strictly comes first.
RECOGNIZERS: dict[Layout, Callable[[Path], str | None]] = {
    "davis": davis.recognize,
    "mvimgnet": mvimgnet.recognize,
    "videos": videos.recognize,
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


def find_layout(source: Path, name: str) -> tuple[Layout, str, list[tuple[Layout, str]]]:
    """The layout of `source`, called `name` in errors, and why; and later ones that it fits too, which are not read.

    `InputError` where none fits.
    """
    if any(not has_plain_name(part) for part in (source, *source.parents)):
        raise InputError(f"{show_path(Path(name))} has a name that is no UTF-8; rename it")
    if not source.exists():
        raise InputError(f"{name} does not exist; set it to a folder in a layout of docs/data_format.md, or one video")
    reasons: dict[Layout, str | None] = {layout: recognize(source) for layout, recognize in RECOGNIZERS.items()}
    found: list[tuple[Layout, str]] = [(layout, reason) for layout, reason in reasons.items() if reason]
    if not found:
        raise InputError(
            f"{name} has none of the layouts {', '.join(RECOGNIZERS)}; see docs/data_format.md for their folder trees"
            f"{_name_first(source)}"
        )
    return *found[0], found[1:]


def _name_first(source: Path) -> str:
    """One entry that might have been data, and why it is not read."""
    rows = sorted(list_unread(source, [], []), key=lambda row: row.reason == "not_read")
    return f" (left out: {rows[0].item}: {rows[0].detail})" if rows else ""
