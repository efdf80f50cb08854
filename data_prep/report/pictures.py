"""The pictures of the report page: tracks as film strips, pairs side by side, and what was left out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.gallery import KEPT, REJECTED, Colour, draw_whole, join_tiles, spread
from data_prep.report.dataset import KINDS, DataSet
from imprint.core.files import compute_digest, write_bytes_atomic
from imprint.core.geometry import Box
from imprint.core.params import ReportData
from imprint.core.pixels import encode_image
from imprint.core.records import MaskRecord, PairRecord, Rejection

STRIP_VIEWS = 7
ITEM_VIEWS = 3  # of a track of which pairs were left out
_BOX = re.compile(r"(?:, )?box (\d+) (\d+) (\d+) (\d+)")


@dataclass(frozen=True)
class Picture:
    """`file` is relative to the page; none where nothing can be shown."""

    file: str
    title: str
    note: str


@dataclass(frozen=True)
class LeftOut:
    """One reason of one stage's ledger, with examples."""

    stage: str
    reason: str
    count: int
    pictures: Sequence[Picture]


def draw_lot(items: Iterable, limit: int, *, seed: int, name) -> list:
    """At most `limit` of the items, drawn by the digest of their names, so that one more item moves few others."""
    return sorted(items, key=lambda item: compute_digest(f"{seed} {name(item)}"))[:limit]


def save_tracks(data: DataSet, params: ReportData, folder: Path) -> list[Picture]:
    """A film strip each of `max_tracks` tracks, drawn over all clips."""
    paths = {clip.clip_id: clip.path for clip in data.clips}
    chosen = draw_lot(data.tracks, params.max_tracks, seed=params.seed, name=lambda key: f"{key[0]}:{key[1]}")
    pictures = []
    for clip_id, track in sorted(chosen, key=lambda key: (paths[key[0]], key)):
        rows = data.tracks[clip_id, track]
        strip = _draw_views(data, [rows[place] for place in spread(len(rows), STRIP_VIEWS)], params.picture_px)
        file = _save(folder, f"track-{clip_id}-{track}", strip)
        pictures.append(Picture(file, f"{Path(paths[clip_id]).name} : {track}", f"{len(rows)} frames"))
    return pictures


def save_pairs(data: DataSet, params: ReportData, folder: Path) -> dict[str, list[Picture]]:
    """Kind => the two views of `max_pairs_per_kind` pairs, drawn over all clips and splits."""
    paths = {clip.clip_id: clip.path for clip in data.clips}
    result = {}
    for kind in KINDS:
        of_kind = [pair for pair in data.pairs if pair.kind == kind]
        chosen = draw_lot(of_kind, params.max_pairs_per_kind, seed=params.seed, name=lambda pair: pair.pair_id)
        result[kind] = [_save_pair(data, pair, params.picture_px, folder, Path(paths[pair.clip_id])) for pair in chosen]
    return result


def save_left_out(data: DataSet, params: ReportData, folder: Path) -> list[LeftOut]:
    """Every stage's reasons, with at most `max_pictures_per_reason` examples each."""
    result = []
    for stage, rows in data.ledgers.items():
        for reason in sorted({row.reason for row in rows}):
            of_reason = [row for row in rows if row.reason == reason]
            limit = params.max_pictures_per_reason
            chosen = draw_lot(of_reason, limit, seed=params.seed, name=lambda row: f"{row.item} {row.detail}")
            pictures = []
            for number, row in enumerate(chosen):
                image = draw_rejection(data, row, params.picture_px)
                file = "" if image is None else _save(folder, f"left-out-{stage}-{reason}-{number}", image)
                pictures.append(Picture(file, row.item, _BOX.sub("", row.detail)))
            result.append(LeftOut(stage, reason, len(of_reason), pictures))
    return result


def draw_rejection(data: DataSet, row: Rejection, height_px: int) -> np.ndarray | None:
    """What was left out, outlined in its frame, or a few views of its track; None where there is no picture of it.

    A frame that was left out is not kept, nor is an object that was never part of a track: of that the frame can be
    shown, with what was kept, and with its box where the ledger's detail names it.
    """
    clip_id, *places = row.item.split(":")
    numbers = [int(place) for place in places if place.isdecimal()]
    if row.stage == "mine_pairs" and len(numbers) == 2:
        view = data.gallery.views.get((clip_id, numbers[0], numbers[1]))
        return None if view is None else _draw_frame(data, view.clip_id, view.sample_index, height_px, [view], [])
    if row.stage == "mine_pairs" and len(numbers) == 1:
        rows = data.tracks.get((clip_id, numbers[0]), [])
        return _draw_views(data, [rows[place] for place in spread(len(rows), ITEM_VIEWS)], height_px) if rows else None
    if row.stage == "segment_objects" and numbers and (clip_id, numbers[0]) in data.gallery.frames:
        boxes = [Box(*(int(edge) for edge in match)) for match in _BOX.findall(row.detail)]
        return _draw_frame(data, clip_id, numbers[0], height_px, [], boxes)
    return None


def _draw_frame(
    data: DataSet, clip_id: str, index: int, height_px: int, rejected: Sequence[MaskRecord], boxes: Sequence[Box]
) -> np.ndarray:
    """One frame: the objects of tracks in the colour of what was kept, `rejected` and `boxes` in the other."""
    others = [row for row in data.gallery.masks if (row.clip_id, row.sample_index) == (clip_id, index)]
    outlined: list[tuple[np.ndarray, Colour]] = [
        (data.gallery.load_mask(row), REJECTED if row in rejected else KEPT) for row in others
    ]
    return draw_whole(data.gallery.load_frame(clip_id, index), height_px, outlined, boxes)


def _draw_views(data: DataSet, rows: Sequence[MaskRecord], size_px: int) -> np.ndarray:
    return join_tiles([data.gallery.draw_view(row, size_px) for row in rows])


def _save_pair(data: DataSet, pair: PairRecord, size_px: int, folder: Path, clip: Path) -> Picture:
    ends = [data.gallery.views[pair.clip_id, pair.track, at] for at in (pair.reference_index, pair.target_index)]
    file = _save(
        folder, f"pair-{pair.pair_id}", _draw_views(data, ends if pair.kind != "single" else ends[:1], size_px)
    )
    note = f"change {pair.view_change:.2f}, gap {pair.gap_frames}" if pair.kind != "single" else ""
    return Picture(file, f"{clip.name} : {pair.track}", f"{pair.split}{', ' if note else ''}{note}")


def _save(folder: Path, name: str, image: np.ndarray) -> str:
    write_bytes_atomic(folder / f"{name}.jpg", encode_image(image, ".jpg", 88))
    return f"{folder.name}/{name}.jpg"
