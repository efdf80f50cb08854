"""Stage `ingest`: list, probe and hash the videos; what cannot be read goes into the ledger with its reason."""

from __future__ import annotations

import os
from pathlib import Path

from data_prep.ingest.probe import probe_video
from data_prep.ledger import check_share, print_counts, save_ledger
from imprint.core.errors import InputError
from imprint.core.files import compute_file_digest
from imprint.core.params import Ingest, Params
from imprint.core.progress import track
from imprint.core.records import ClipRecord, Rejection, save_records

STAGE = "ingest"
OUT = Path("data/clips.parquet")
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".ogv", ".3gp")
)


def run_ingest(params: Params, root: Path = Path(".")) -> None:
    """Write `data/clips.parquet` and the ledger. `InputError` names `ingest.source` if there is nothing to read.

    Every video is hashed and probed here on each run: the stage keeps nothing to resume from.
    """
    section = params.ingest
    files = list_videos(section.source, root)
    clips: dict[str, ClipRecord] = {}
    rejections: list[Rejection] = []
    for file in track(files, "ingest: videos", len(files)):
        result = read_clip(file, section, root)
        if isinstance(result, ClipRecord) and result.clip_id in clips:
            detail = f"same content as {clips[result.clip_id].path}"
            result = Rejection(stage=STAGE, item=result.path, reason="duplicate", detail=detail)
        if isinstance(result, ClipRecord):
            clips[result.clip_id] = result
        else:
            rejections.append(result)
    save_ledger(STAGE, rejections, root)
    print_counts(STAGE, f"{len(clips)} clips", rejections)
    check_share(STAGE, "clips", len(rejections), len(clips), section.max_rejected_share)
    save_records(root / OUT, ClipRecord, [clips[key] for key in sorted(clips)])


def list_videos(source: str, root: Path) -> list[Path]:
    """Sorted video files of a folder (recursively, hidden ones left out), or the one file named."""
    path = root / source
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"ingest.source: {source} does not exist; set it to a folder of videos or one video file")
    inside = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file()]
    files = [file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not files:
        raise InputError(f"ingest.source: {source} holds no video ({' '.join(sorted(VIDEO_SUFFIXES))}); put some there")
    return files


def read_clip(file: Path, section: Ingest, root: Path) -> ClipRecord | Rejection:
    """Hash and probe one video."""
    path = _name_path(file, root)
    probe = probe_video(file)
    if isinstance(probe, str):
        return Rejection(stage=STAGE, item=path, reason="unreadable", detail=probe)
    if probe.num_frames < section.min_frames:
        detail = f"{probe.num_frames} frames, ingest.min_frames is {section.min_frames}"
        return Rejection(stage=STAGE, item=path, reason="too_short", detail=detail)
    return ClipRecord(
        clip_id=compute_file_digest(file)[:16],
        path=path,
        source=section.source,
        licence=section.licence,
        num_frames=probe.num_frames,
        fps=probe.fps,
        height_px=probe.height_px,
        width_px=probe.width_px,
        duration_s=probe.num_frames / probe.fps,
    )


def _name_path(file: Path, root: Path) -> str:
    """Relative to the project where the file lies inside it."""
    relative = os.path.relpath(os.path.abspath(file), os.path.abspath(root))
    return os.path.abspath(file) if relative.startswith("..") else Path(relative).as_posix()
