"""Layout `photo_sets` (DreamBooth's): one folder per object with photos of it; no masks."""

from __future__ import annotations

from pathlib import Path

from data_prep.ingest.layouts.item import Item, Problem, is_mask_name, list_folders, list_pictures


def recognize(source: Path) -> str | None:
    """Why `source` has this layout, or None. Folders with masks beside the photos are not taken for it."""
    if not source.is_dir():
        return None
    folders = [folder for folder in list_folders(source) if list_pictures(folder)]
    masked = any(is_mask_name(entry.name) for folder in folders for entry in folder.iterdir())
    if not folders or masked:
        return None
    return f"{len(folders)} folders with photos, each taken for one object, the first is {folders[0].name}"


def list_items(source: Path) -> tuple[list[Item], list[Problem]]:
    """One item per folder."""
    items, problems = [], []
    for folder in list_folders(source):
        pictures = list_pictures(folder)
        if pictures:
            items.append(Item(folder, "views", frames=tuple(pictures)))
        else:
            problems.append(Problem(folder, "no_pictures", "the folder holds no pictures"))
    return items, problems
