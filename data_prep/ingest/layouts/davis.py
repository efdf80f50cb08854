"""Layout `davis`: DAVIS and YouTube-VOS, frames in `JPEGImages/`, masks of numbered objects in `Annotations/`.

A resolution's folder (`480p`, `Full-Resolution`) may lie between; of several the first with annotations is read.
Frames without an annotation are left out. DAVIS plays at 24 frames per second and annotates all; YouTube-VOS, known by
its `meta.json`, annotates every fifth of 30, which makes 6 annotated frames per second.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.ingest.layouts.item import Item, Problem, list_folders, list_pictures, pair_masks

DAVIS_FPS = 24.0
YOUTUBE_VOS_FPS = 6.0
RESOLUTIONS = ("480p", "1080p", "Full-Resolution")


def recognize(source: Path) -> str | None:
    """Why `source` has this layout, or None."""
    if not ((source / "JPEGImages").is_dir() and (source / "Annotations").is_dir()):
        return None
    kind = "YouTube-VOS, 6" if (source / "meta.json").is_file() else "DAVIS, 24"
    return f"folders JPEGImages and Annotations ({kind} annotated frames per second)"


def list_items(source: Path) -> tuple[list[Item], list[Problem]]:
    """One item per video folder, with its annotated frames."""
    fps = YOUTUBE_VOS_FPS if (source / "meta.json").is_file() else DAVIS_FPS
    images, annotations = source / "JPEGImages", source / "Annotations"
    shared = [name for name in RESOLUTIONS if (images / name).is_dir() and (annotations / name).is_dir()]
    if shared:
        images, annotations = images / shared[0], annotations / shared[0]
    items, problems = [], []
    for folder in list_folders(images):
        item, found = pair_masks(folder, annotations / folder.name, list_pictures(folder), order="time", fps=fps)
        items += [item] if item else []
        problems += found
    without = {folder.name for folder in list_folders(annotations)} - {folder.name for folder in list_folders(images)}
    problems += [Problem(annotations / name, "no_pictures", "masks without pictures") for name in sorted(without)]
    return items, problems
