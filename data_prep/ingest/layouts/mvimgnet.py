"""Layout `mvimgnet`: `<category>/<object>/` with pictures of one object from many sides and a mask for each.

Two variants: `images/x.jpg` with `masks/x.png` (or `masks/x.jpg.png`), and `x.jpg` beside `x.jpg.png`.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.ingest.layouts.item import Item, Problem, is_mask_name, list_folders, list_pictures, pair_masks


def recognize(source: Path) -> str | None:
    """Why `source` has this layout, or None."""
    if not source.is_dir():
        return None
    objects = [folder for category in list_folders(source) for folder in list_folders(category)]
    with_masks = [folder for folder in objects if _has_masks(folder)]
    if not with_masks:
        return None
    where = with_masks[0].relative_to(source).as_posix()
    return f"{len(with_masks)} folders <category>/<object> with pictures and masks, the first is {where}"


def list_items(source: Path) -> tuple[list[Item], list[Problem]]:
    """One item per object, with the pictures that have a mask."""
    items, problems = [], []
    for folder in [folder for category in list_folders(source) for folder in list_folders(category)]:
        pictures = folder / "images" if (folder / "images").is_dir() else folder
        masks = folder / "masks" if pictures != folder else folder
        item, found = pair_masks(pictures, masks, list_pictures(pictures), order="views")
        items += [item] if item else []
        problems += found
    return items, problems


def _has_masks(folder: Path) -> bool:
    return ((folder / "images").is_dir() and (folder / "masks").is_dir()) or any(
        is_mask_name(entry.name) for entry in folder.iterdir()
    )
