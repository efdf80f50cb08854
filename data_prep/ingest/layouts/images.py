"""Layout `images`: pictures that have nothing to do with each other, in one folder, or one picture file."""

from __future__ import annotations

from pathlib import Path

from data_prep.ingest.layouts.item import Item, Problem, list_pictures
from imprint.core.names import PICTURE_SUFFIXES


def recognize(source: Path) -> str | None:
    """Why `source` has this layout, or None."""
    names = _list_names(source)
    return f"{len(names)} pictures in the folder itself, the first is {names[0]}" if names else None


def list_items(source: Path) -> tuple[list[Item], list[Problem]]:
    """One item per picture."""
    folder = source.parent if source.is_file() else source
    return [Item(folder, "single", frames=(name,)) for name in _list_names(source)], []


def _list_names(source: Path) -> list[str]:
    if source.is_file():
        return [source.name] if source.suffix.lower() in PICTURE_SUFFIXES else []
    return list_pictures(source)
