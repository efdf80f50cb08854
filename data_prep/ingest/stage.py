"""Stage `ingest`: list, probe and hash what the source holds; what cannot be read is in the ledger with its reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.children import ReadFailure, ReadInterrupted
from data_prep.ingest.layouts import LISTINGS, find_layout
from data_prep.ingest.layouts.item import Item, Problem
from data_prep.ingest.layouts.unread import list_unread
from data_prep.ingest.licences import FILE_NAME, load_licences
from data_prep.ingest.memory import SourceMemory
from data_prep.ledger import INTERRUPTED, check_share, print_counts, save_ledger
from data_prep.positions import compute_positions
from imprint.core.files import compute_digest
from imprint.core.params import Ingest, Params
from imprint.core.progress import track
from imprint.core.records import ClipRecord, Layout, Rejection, save_records

STAGE = "ingest"
OUT = Path("data/clips.parquet")


@dataclass(frozen=True)
class Listing:
    """What a source holds. `num_dropped` of the rejections are items, the others tell of parts of items.

    `num_unnamed` of the clips have the licence of `ingest.licence`, for want of one in `licences.csv`.
    """

    layout: Layout
    reason: str
    clips: Sequence[ClipRecord]
    rejections: Sequence[Rejection]
    num_dropped: int
    num_unnamed: int


def run_ingest(params: Params, root: Path = Path(".")) -> None:
    """Write `data/clips.parquet` and the ledger. `InputError` names `ingest.source` if there is nothing to read.

    Files that have not changed since the last run are neither read nor decoded again.
    """
    with SourceMemory(root / "work" / STAGE) as memory:
        listing = list_clips(params.ingest, root, memory=memory)
    save_ledger(STAGE, listing.rejections, root)
    print_counts(STAGE, f"{len(listing.clips)} clips", listing.rejections)
    check_share(STAGE, "clips", listing.num_dropped, len(listing.clips), params.ingest.max_rejected_share)
    save_records(root / OUT, ClipRecord, listing.clips)


def list_clips(section: Ingest, root: Path, *, memory: SourceMemory) -> Listing:
    """Find the layout, then read every item of the source; clips are sorted by their id."""
    source = root / section.source
    layout, reason, others = find_layout(source, f"ingest.source: {section.source}")
    items, problems = LISTINGS[layout](source)
    problems += list_unread(source, items, problems)
    licences = load_licences(source)
    clips: dict[str, ClipRecord] = {}
    unnamed: set[str] = set()
    dropped: list[Rejection] = [_explain(problem, root) for problem in problems if problem.drops]
    given = {"section": section, "root": root, "memory": memory}
    for item in track(items, f"ingest: {layout}", len(items)):
        named = licences.find(item.name)
        result = read_clip(item, layout, licence=named or section.licence, **given)
        if isinstance(result, ClipRecord) and result.clip_id in clips:
            detail = f"same content as {clips[result.clip_id].path}"
            result = Rejection(stage=STAGE, item=_name_path(item.name, root), reason="duplicate", detail=detail)
        if isinstance(result, ClipRecord):
            clips[result.clip_id] = result
            unnamed |= set() if named else {result.clip_id}
        else:
            dropped.append(result)
    notes = [_explain(problem, root) for problem in problems if not problem.drops]
    for other, found in others:
        detail = f"{other}: {found}; read as {layout}"
        notes.append(Rejection(stage=STAGE, item=section.source, reason="other_layout", detail=detail))
    for prefix in licences.list_unused():
        detail = f"{FILE_NAME} names it, but no item lies there"
        notes.append(Rejection(stage=STAGE, item=prefix, reason="unused_licence", detail=detail))
    return Listing(
        layout, reason, [clips[key] for key in sorted(clips)], [*dropped, *notes], len(dropped), len(unnamed)
    )


def read_clip(
    item: Item, layout: Layout, *, section: Ingest, licence: str, root: Path, memory: SourceMemory
) -> ClipRecord | Rejection:
    """Hash and probe one item, in a child that may hang or die."""
    path = _name_path(item.name, root)
    try:
        clip_id = compute_clip_id(item, memory.files.compute)
        probe = memory.probe(item, clip_id)
    except OSError as error:
        detail = f"{error.filename or path} cannot be read ({error.strerror})"
        return Rejection(stage=STAGE, item=path, reason=INTERRUPTED, detail=detail)
    except ReadFailure as failure:
        reason = INTERRUPTED if isinstance(failure, ReadInterrupted) else "unreadable"
        return Rejection(stage=STAGE, item=path, reason=reason, detail=str(failure))
    if isinstance(probe, str):
        return Rejection(stage=STAGE, item=path, reason="unreadable", detail=probe)
    if item.order == "time" and probe.num_frames < section.min_frames:
        detail = f"{probe.num_frames} frames, ingest.min_frames is {section.min_frames}"
        return Rejection(stage=STAGE, item=path, reason="too_short", detail=detail)
    return ClipRecord(
        clip_id=clip_id,
        path=_name_path(item.folder, root),
        source=section.source,
        licence=licence,
        layout=layout,
        order=item.order,
        frames=item.frames,
        masks_path=_name_path(item.masks_folder, root) if item.masks_folder else "",
        masks=item.masks,
        num_frames=probe.num_frames,
        fps=probe.fps,
        height_px=probe.height_px,
        width_px=probe.width_px,
        duration_s=probe.num_frames / probe.fps if probe.fps else 0.0,
    )


def compute_clip_id(item: Item, digest_file: Callable[[Path], str]) -> str:
    """Digest of a video file, or of pictures with their meaning and places; of given masks too, where there are any."""
    if not item.frames and not item.masks:
        return digest_file(item.folder)[:16]
    lines = [f"{item.order} {item.fps:g}"]
    if not item.frames:
        lines.append(digest_file(item.folder))
    for number, name in zip(compute_positions(item.frames, item.order), item.frames, strict=True):
        lines.append(f"{number} {_digest_picture(item.folder / name, digest_file)}")
    if item.masks_folder:
        lines += [_digest_picture(item.masks_folder / name, digest_file) for name in item.masks]
    return compute_digest("\n".join(lines))[:16]


def _digest_picture(file: Path, digest_file: Callable[[Path], str]) -> str:
    """One that may not be read does not lose the others: `extract_frames` leaves it out with a row."""
    try:
        return digest_file(file)
    except OSError:
        return "unreadable"


def _explain(problem: Problem, root: Path) -> Rejection:
    return Rejection(stage=STAGE, item=_name_path(problem.item, root), reason=problem.reason, detail=problem.detail)


def _name_path(file: Path, root: Path) -> str:
    """Relative to the project where the file lies inside it."""
    relative = os.path.relpath(os.path.abspath(file), os.path.abspath(root))
    return os.path.abspath(file) if relative.startswith("..") else Path(relative).as_posix()
