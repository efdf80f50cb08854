"""Layout `videos`: a folder tree of video files, or one video file."""

from __future__ import annotations

from pathlib import Path

from data_prep.ingest.layouts.item import VIDEO_SUFFIXES, Item, Problem


def recognize(source: Path) -> str | None:
    """Why `source` has this layout, or None."""
    files = list_videos(source)
    return f"{len(files)} video files, the first is {files[0].name}" if files else None


def list_items(source: Path) -> tuple[list[Item], list[Problem]]:
    """One item per video file; its rate and size are probed later."""
    return [Item(file, "time") for file in list_videos(source)], []


def list_videos(source: Path) -> list[Path]:
    """Sorted video files of a folder (recursively, hidden ones left out), or the one file named."""
    if source.is_file():
        return [source] if source.suffix.lower() in VIDEO_SUFFIXES else []
    inside = [file for file in sorted(source.rglob("*")) if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file()]
    return [file for file in inside if not any(part.startswith(".") for part in file.relative_to(source).parts)]
