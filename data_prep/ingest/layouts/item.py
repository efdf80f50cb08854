"""What a layout's adapter says of one item, and the listings that all adapters use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from imprint.core.records import Order

FIRST_MASK_SUFFIX = ".mask.png"  # `x.mask.png`: object ids of the first frame of the video `x.mp4`
PICTURE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp"))
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


def list_folders(path: Path) -> list[Path]:
    """Sorted folders in `path`, hidden ones left out."""
    return [entry for entry in sorted(path.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]


def list_pictures(path: Path) -> list[str]:
    """Sorted names of the pictures in `path`, hidden ones and masks (`x.jpg.png`) left out."""
    if not path.is_dir():
        return []
    names = [entry.name for entry in sorted(path.iterdir()) if entry.suffix.lower() in PICTURE_SUFFIXES]
    return [name for name in names if not name.startswith(".") and not is_mask_name(name)]


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
