"""Layout `videos`: a folder tree of video files, or one video file.

`x.mask.png` beside `x.mp4` has the object ids of its first frame.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.ingest.layouts.item import FIRST_MASK_SUFFIX, VIDEO_SUFFIXES, Item, Problem, list_files


def recognize(source: Path) -> str | None:
    """Why `source` has this layout, or None."""
    files = list_videos(source)
    return f"{len(files)} video files, the first is {files[0].name}" if files else None


def list_items(source: Path) -> tuple[list[Item], list[Problem]]:
    """One item per video file; its rate and size are probed later."""
    return [build_item(file) for file in list_videos(source)], []


def build_item(video: Path) -> Item:
    """The video, with the mask of its first frame if there is one beside it."""
    mask = video.with_name(video.stem + FIRST_MASK_SUFFIX)
    if not mask.is_file():
        return Item(video, "time")
    return Item(video, "time", masks_folder=video.parent, masks=(mask.name,))


def list_videos(source: Path) -> list[Path]:
    """Video files of a folder and of its subfolders in natural order, links followed; or the one file named."""
    files = [source] if source.is_file() else list_files(source) if source.is_dir() else []
    return [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
