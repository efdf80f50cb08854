"""What a source holds beside the items that were found in it: nothing is passed over without a row."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.ingest.layouts.item import VIDEO_SUFFIXES, Item, Problem, leads_outside, list_entries
from data_prep.positions import show_path
from imprint.core.names import PICTURE_SUFFIXES, has_plain_name

KNOWN = frozenset(("licences.csv", "meta.json"))  # read, but as no item's files
_NUM_NAMED = 3
_PHOTOS = "convert them to JPEG or PNG (`heif-convert`, `magick`, or the camera's export)"
_VIDEOS = "convert them with `ffmpeg -i FILE -c:v libx264 -crf 18 FILE.mp4`"
_REMEDIES = {
    **dict.fromkeys(
        (".heic", ".heif", ".hif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".jp2"), _PHOTOS
    ),
    **dict.fromkeys((".psd", ".exr", ".svg", ".pdf", ".tga"), _PHOTOS),
    **dict.fromkeys((".m2ts", ".vob", ".3g2", ".mxf", ".asf", ".divx", ".m2v", ".y4m", ".h264", ".h265"), _VIDEOS),
    **dict.fromkeys(
        (".hevc", ".insv", ".360", ".mjpeg", ".mjpg", ".dv", ".rm", ".rmvb", ".f4v", ".mod", ".tod"), _VIDEOS
    ),
    **dict.fromkeys((".part", ".crdownload", ".tmp"), "finish the download"),
    **dict.fromkeys((".zip", ".tar", ".gz", ".7z", ".rar"), "unpack them"),
}


def list_unread(source: Path, items: Iterable[Item], problems: Sequence[Problem]) -> list[Problem]:
    """A row per folder and kind of file that no item has and no other row tells of, and per link that leads nowhere or
    out of the source. Hidden entries are left out."""
    if not source.is_dir():
        return []
    read = {item.folder if not item.frames else item.folder / name for item in items for name in item.frames or ("",)}
    read |= {item.masks_folder / name for item in items if item.masks_folder for name in item.masks}
    told = {problem.item for problem in problems}
    return _search(source, source, read=read, told=told, above=frozenset((os.path.realpath(source),)))


def _search(folder: Path, source: Path, *, read: set[Path], told: set[Path], above: frozenset[str]) -> list[Problem]:
    found: list[Problem] = []
    unread: dict[str, list[str]] = defaultdict(list)
    try:
        entries = list_entries(folder)
    except OSError as error:
        return [Problem(show_path(folder), "unreadable", f"the folder cannot be read ({error.strerror})", drops=False)]
    for entry in entries:
        if problem := _explain_entry(entry, source, above):
            found.append(problem)
        if not has_plain_name(entry) or not entry.exists() or os.path.realpath(entry) in above:
            continue
        if entry.is_dir() and entry.suffix.lower() not in PICTURE_SUFFIXES:
            found += _search(entry, source, read=read, told=told, above=above | {os.path.realpath(entry)})
        elif entry.is_dir() or not entry.is_file():
            found.append(Problem(entry, "not_read", "no file, though its name is a picture's or video's", drops=False))
        elif entry not in read and entry.name not in KNOWN and not _is_told(entry, told):
            unread[entry.suffix.lower()].append(entry.name)
    return found + [_count(folder, suffix, names) for suffix, names in sorted(unread.items())]


def _explain_entry(entry: Path, source: Path, above: frozenset[str]) -> Problem | None:
    """What is to be said of one entry whatever it holds."""
    media = entry.suffix.lower() in VIDEO_SUFFIXES | PICTURE_SUFFIXES
    if not has_plain_name(entry):
        detail = "the name is no UTF-8; rename it (`convmv -f cp850 -t utf8 -r --notest .` does many)"
        return Problem(show_path(entry), "bad_name", detail, drops=media or entry.is_dir())
    if not entry.is_symlink():
        return None
    target = os.readlink(entry)
    if not entry.exists():
        return Problem(entry, "dangling_link", f"a link to {show_path(Path(target))}, which is not there", drops=media)
    if os.path.realpath(entry) in above:
        return Problem(entry, "link_loop", "a link to a folder that it lies in; not followed", drops=False)
    if leads_outside(entry, source):
        return Problem(entry, "outside_link", f"a link out of the source, to {target}; followed", drops=False)
    return None


def _is_told(entry: Path, told: set[Path]) -> bool:
    """A row on a folder tells of its pictures, one on a folder of masks of all that it holds."""
    return entry in told or (entry.parent in told and entry.suffix.lower() in PICTURE_SUFFIXES)


def _count(folder: Path, suffix: str, names: Sequence[str]) -> Problem:
    shown = ", ".join(names[:_NUM_NAMED]) + (", ..." if len(names) > _NUM_NAMED else "")
    remedy = _REMEDIES.get(suffix, "")
    detail = f"{len(names)} {suffix or 'other'} file{'s' * (len(names) > 1)} ({shown})"
    return Problem(folder, "not_read", f"{detail}: {remedy}" if remedy else detail, drops=False)
