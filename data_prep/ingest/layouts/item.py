"""What a layout's adapter says of one item, and the listings that all adapters use."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from imprint.core.names import PICTURE_SUFFIXES, has_plain_name, natural_key
from imprint.core.records import Order

FIRST_MASK_SUFFIX = ".mask.png"  # `x.mask.png`: object ids of the first frame of the video `x.mp4`
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".ogv", ".3gp")
)


@dataclass(frozen=True)
class Problem:
    """Something left out before any file is opened; becomes a row of the ledger. `drops`: the whole item is lost."""

    item: Path
    reason: str
    detail: str
    drops: bool = True


@dataclass(frozen=True)
class Item:
    """A video file (`frames` empty), or pictures of `folder` with their masks (`masks` empty, or one per picture).

    A video has no mask, or one, of its first frame.
    """

    folder: Path
    order: Order
    fps: float = 0.0
    frames: tuple[str, ...] = ()
    masks_folder: Path | None = None
    masks: tuple[str, ...] = ()

    @property
    def name(self) -> Path:
        """What names the item to people: the video, the one picture, or the folder."""
        return self.folder / self.frames[0] if self.order == "single" else self.folder


def list_entries(path: Path) -> list[Path]:
    """What lies in `path`, in natural order, hidden entries left out."""
    return sorted((entry for entry in path.iterdir() if not entry.name.startswith(".")), key=natural_key)


def list_folders(path: Path) -> list[Path]:
    """Folders in `path` and links to folders, in natural order, hidden ones left out."""
    return [entry for entry in list_entries(path) if entry.is_dir() and has_plain_name(entry)]


def list_pictures(path: Path) -> list[str]:
    """Names of the picture files in `path`, in natural order, hidden ones and masks (`x.jpg.png`) left out."""
    if not path.is_dir():
        return []
    found = [entry for entry in list_entries(path) if entry.suffix.lower() in PICTURE_SUFFIXES and entry.is_file()]
    return [entry.name for entry in found if has_plain_name(entry) and not is_mask_name(entry.name)]


def list_files(path: Path, above: frozenset[str] = frozenset()) -> list[Path]:
    """Files at any depth, in natural order; linked folders are followed, but not in a circle (`above`: where from)."""
    real = os.path.realpath(path)
    if real in above:
        return []
    files: list[Path] = []
    for entry in filter(has_plain_name, list_entries(path)):
        if entry.is_dir():
            files += list_files(entry, above | {real})
        elif entry.is_file():
            files.append(entry)
    return files


def leads_outside(link: Path, source: Path) -> bool:
    """Whether a link's target lies outside of the source's own tree."""
    return not Path(os.path.realpath(link)).is_relative_to(os.path.realpath(source))


def is_mask_name(name: str) -> bool:
    """Whether a file is the mask of the picture whose whole name it carries (`000.jpg.png`), or of a video."""
    stem, suffix = Path(name).stem, Path(name).suffix.lower()
    return name.endswith(FIRST_MASK_SUFFIX) or (suffix == ".png" and Path(stem).suffix.lower() in PICTURE_SUFFIXES)


def pair_masks(
    folder: Path, masks_folder: Path, names: Iterable[str], *, order: Order, fps: float = 0.0
) -> tuple[Item | None, list[Problem]]:
    """The item of those pictures that have a mask (`x.png`, `x.jpg.png`), and what is said of the others."""
    pictures = list(names)
    found = {entry.name for entry in masks_folder.iterdir()} if masks_folder.is_dir() else set()
    candidates = {name: [f"{name}.png", f"{Path(name).stem}.png"] for name in pictures}
    pairs = [(name, mask) for name, options in candidates.items() for mask in options if mask in found and mask != name]
    chosen = dict(reversed(pairs))  # the first option wins
    kept = [name for name in pictures if name in chosen]
    missing = len(pictures) - len(kept)
    detail = f"{missing} of {len(pictures)} pictures have no mask in {masks_folder.name}/"
    problems = [Problem(folder, "no_mask", detail, drops=not kept)] if missing or not pictures else []
    if not kept:
        return None, problems
    masks = tuple(chosen[name] for name in kept)
    return Item(folder, order, fps, tuple(kept), masks_folder, masks), problems
