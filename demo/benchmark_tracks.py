"""How well the mined tracks and pairs of the demo clips keep their objects apart, against the exact masks.

    python -m demo.benchmark_tracks

Reads what the stages left (`data/frames`, `data/masks`, `data/pairs.parquet`, the ledgers) and the exact masks beside
the raw clips (`data/raw/demo`). Figures are of the clips of one kind: `single`, `multi` (2 to 4 objects) or both.

- A mask's **main object** is the one of which it holds most pixels; its **purity** is that object's share of the mask's
  pixels that belong to any object. The background is no identity: how well outlines fit is the IoU's business.
- **Track purity**: the same over all masks of a track, for the object of most pixels in them; pooled over the pixels
  of all tracks, and as the share of tracks that reach 0.99.
- A mask is **right** for an object with a purity of at least 0.9, if the object and not the background is most of it.
- **Pair precision**: share of the pairs of `data/pairs.parquet` whose two masks are right for one and the same object.
  `wrong object`: pairs whose masks have two main objects.
- A **usable view** is an exact mask, in a frame that was kept, that passes the filters that found masks pass: area,
  largest component, border contact (`segment_objects`, `mine_pairs`).
- **View recall**: of all usable views, those that a track holds with a right mask.
- **Pair recall**: of all pairs of usable views of one object in one shot that are close enough for a video pair
  (`video_max_gap_frames`, `video_max_gap_s`), those of which one track holds both, with right masks. `any gap`: without
  that limit. `mined` counts the video pairs of `data/pairs.parquet` in the same way, against at most
  `max_pairs_per_track` of each object and shot.
- **Mask IoU**: of a track's mask and its main object's exact one; median and mean.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from imprint.core.errors import InputError
from imprint.core.geometry import box_from_mask, compute_border_contact
from imprint.core.masks import largest_component
from imprint.core.params import Params, load_params
from imprint.core.pixels import decode_image, load_image
from imprint.core.records import ClipRecord, FrameRecord, MaskRecord, PairRecord, Rejection, load_records

RIGHT_PURITY, PURE_TRACK = 0.9, 0.99
KINDS = {"single": ("single",), "multi": ("multi",), "all": ("single", "multi")}
ROW = "{:34} {:>16} {:>16} {:>16}"


@dataclass(frozen=True)
class FoundMask:
    """A mask of a track against the truth. counts: its pixels by instance, [0] is background."""

    row: MaskRecord
    counts: np.ndarray
    iou: float

    @property
    def main(self) -> int:
        """The instance of most pixels; 0 if the mask lies on no object."""
        return int(self.counts[1:].argmax()) + 1 if self.counts[1:].any() else 0

    @property
    def right_for(self) -> int:
        """The instance that the mask is right for, or 0."""
        own, objects = self.counts[self.main], self.counts[1:].sum()
        return self.main if own >= RIGHT_PURITY * objects and 2 * own > self.counts.sum() else 0


@dataclass(frozen=True)
class View:
    """A usable view of an instance."""

    instance: int
    frame: FrameRecord


@dataclass(frozen=True)
class ClipResult:
    """One clip: what was found in it and what could have been."""

    kind: str
    masks: list[FoundMask]
    views: list[View]
    pairs: list[PairRecord]

    def find(self) -> dict[tuple[int, int], FoundMask]:
        """(track, sample index) => mask."""
        return {(mask.row.track, mask.row.sample_index): mask for mask in self.masks}


@dataclass(frozen=True)
class Outputs:
    """What the stages left."""

    frames: list[FrameRecord]
    masks: list[MaskRecord]
    pairs: list[PairRecord]


def load_outputs(root: Path) -> Outputs:
    """Frames, masks and pairs of all clips."""
    return Outputs(
        load_records(root / "data/frames/index.parquet", FrameRecord),
        load_records(root / "data/masks/index.parquet", MaskRecord),
        load_records(root / "data/pairs.parquet", PairRecord),
    )


def measure_clip(
    clip_id: str, kind: str, truth: np.ndarray, *, outputs: Outputs, masks_tar: Path, params: Params
) -> ClipResult:
    """Compare one clip's tracks with its exact masks, uint8 [n, h, w], 0 or the instance's number."""
    frames = [row for row in outputs.frames if row.clip_id == clip_id]
    masks = [row for row in outputs.masks if row.clip_id == clip_id]
    source = {frame.sample_index: frame.source_index for frame in frames}
    found = [
        compare_mask(row, mask == row.track, truth[source[row.sample_index]])
        for row, mask in read_masks(masks, masks_tar)
    ]
    views = [View(number, frame) for frame in frames for number in list_usable(truth[frame.source_index], params)]
    return ClipResult(kind, found, views, [row for row in outputs.pairs if row.clip_id == clip_id])


def read_masks(rows: Sequence[MaskRecord], path: Path) -> Iterator[tuple[MaskRecord, np.ndarray]]:
    """Each row with its frame's mask picture, uint8 [h, w]."""
    if not rows:
        return
    with tarfile.open(path) as tar:
        members = {info.name: (tar.extractfile(info) or io.BytesIO()).read() for info in tar}
    for row in rows:
        yield row, decode_image(members[row.member], f"{path}:{row.member}")[..., 0]


def compare_mask(row: MaskRecord, mask: np.ndarray, truth: np.ndarray) -> FoundMask:
    """One found mask, bool [h, w], against one frame's exact masks."""
    counts = np.bincount(truth[mask], minlength=max(int(truth.max()), 1) + 1)
    own = truth == int(counts[1:].argmax()) + 1
    return FoundMask(row, counts, float((mask & own).sum() / max((mask | own).sum(), 1)))


def list_usable(truth: np.ndarray, params: Params) -> list[int]:
    """Instances of one frame that the filters for found masks let through."""
    limits, usable = params.segment_objects, []
    for number in np.unique(truth[truth > 0]).tolist():
        mask = truth == number
        in_size = limits.min_area_share <= mask.mean() <= limits.max_area_share
        whole = largest_component(mask).sum() >= limits.min_component_share * mask.sum()
        contact = compute_border_contact(box_from_mask(mask), mask.shape)
        if in_size and whole and contact <= params.mine_pairs.max_border_contact:
            usable.append(number)
    return usable


def describe_tracks(clips: Iterable[ClipResult]) -> dict[str, str]:
    """Purity and fit of the tracks."""
    tracks: list[np.ndarray] = []
    ious: list[float] = []
    for clip in clips:
        counts: dict[int, list[np.ndarray]] = defaultdict(list)
        for mask in clip.masks:
            counts[mask.row.track].append(np.pad(mask.counts[1:], (0, 256 - len(mask.counts))))
            ious.append(mask.iou)
        tracks += [np.sum(parts, axis=0) for parts in counts.values()]
    if not tracks:
        return {"tracks": "0"}
    main, total = np.array([track.max() for track in tracks]), np.array([track.sum() for track in tracks])
    purity = main / np.maximum(total, 1)
    return {
        "tracks": str(len(tracks)),
        "masks": str(len(ious)),
        "track purity, pooled": f"{main.sum() / max(total.sum(), 1):.4f}",
        "track purity, least": f"{purity.min():.4f}",
        f"tracks of purity >= {PURE_TRACK}": _share(int((purity >= PURE_TRACK).sum()), len(tracks)),
        "mask IoU, median": f"{np.median(ious):.4f}",
        "mask IoU, mean": f"{np.mean(ious):.4f}",
    }


def describe_pairs(clips: Iterable[ClipResult]) -> dict[str, str]:
    """Precision of the mined pairs."""
    ends = []
    for clip in clips:
        found = clip.find()
        ends += [(found[p.track, p.reference_index], found[p.track, p.target_index]) for p in clip.pairs]
    right = sum(a.right_for == b.right_for != 0 for a, b in ends)
    wrong = sum(a.main != b.main for a, b in ends)
    return {"pairs": str(len(ends)), "pair precision": _share(right, len(ends)), "wrong object": str(wrong)}


def describe_recall(clips: Iterable[ClipResult], params: Params) -> dict[str, str]:
    """What of the usable views and of their pairs was found."""
    counts: Counter[str] = Counter()
    for clip in clips:
        counts += count_recall(clip, params)
    return {
        "view recall": _share(counts["views found"], counts["views"]),
        "pair recall": _share(counts["near found"], counts["near"]),
        "pair recall, any gap": _share(counts["pairs found"], counts["pairs"]),
        "pair recall, mined": _share(counts["mined found"], counts["mined"]),
    }


def count_recall(clip: ClipResult, params: Params) -> Counter[str]:
    """Usable views and pairs of them, all and found."""
    holders: dict[tuple[int, int], set[int]] = defaultdict(set)  # (instance, sample index) => tracks with a right mask
    for mask in clip.masks:
        holders[mask.right_for, mask.row.sample_index].add(mask.row.track)
    counts: Counter[str] = Counter()
    groups: dict[tuple[int, int], list[FrameRecord]] = defaultdict(list)
    for view in clip.views:
        groups[view.instance, view.frame.shot].append(view.frame)
        counts["views"] += 1
        counts["views found"] += bool(holders[view.instance, view.frame.sample_index])
    found = clip.find()
    mined = Counter(
        (found[p.track, p.reference_index].right_for, found[p.track, p.reference_index].row.shot)
        for p in clip.pairs
        if p.kind == "video" and found[p.track, p.reference_index].right_for == found[p.track, p.target_index].right_for
    )
    for (instance, shot), frames in groups.items():
        pairs = list(combinations(frames, 2))
        near = [pair for pair in pairs if is_near(*pair, params)]
        for name, group in {"pairs": pairs, "near": near}.items():
            counts[name] += len(group)
            counts[f"{name} found"] += sum(
                bool(holders[instance, a.sample_index] & holders[instance, b.sample_index]) for a, b in group
            )
        limit = min(len(near), params.mine_pairs.max_pairs_per_track.get("video", 0))
        counts["mined"] += limit
        counts["mined found"] += min(mined[instance, shot], limit)
    return counts


def is_near(a: FrameRecord, b: FrameRecord, params: Params) -> bool:
    """Whether two frames of one shot are close enough for a video pair."""
    limits = params.mine_pairs
    gap_frames, gap_s = abs(b.sample_index - a.sample_index), abs(b.time_s - a.time_s)
    return gap_frames <= limits.video_max_gap_frames and gap_s <= limits.video_max_gap_s


def benchmark(root: Path) -> None:
    """Print the tables for the data under `root`."""
    params, raw = load_params(root / "params.yaml"), root / "data/raw/demo"
    if not (raw / "clips.json").is_file():
        raise InputError(f"{raw} holds no demo clips; run `dvc repro mine_pairs` with ingest.source at its default")
    truths = {record["name"]: record for record in json.loads((raw / "clips.json").read_text())}
    outputs, results = load_outputs(root), []
    for clip in load_records(root / "data/clips.parquet", ClipRecord):
        record = truths.get(Path(clip.path).stem)
        if record is None:
            raise InputError(f"{clip.path} is no demo clip; set ingest.source to {raw / 'clips'} and run `dvc repro`")
        stack = load_image(raw / "masks" / f"{record['name']}.png")[..., 0]
        truth = np.stack(np.split(stack, record["num_frames"]))
        tar = root / f"data/masks/{clip.clip_id}.tar"
        results.append(measure_clip(clip.clip_id, record["kind"], truth, outputs=outputs, masks_tar=tar, params=params))
    columns = []
    for kinds in KINDS.values():
        clips = [clip for clip in results if clip.kind in kinds]
        columns.append(describe_tracks(clips) | describe_pairs(clips) | describe_recall(clips, params))
    print(ROW.format("", *KINDS))
    for name in columns[-1]:
        print(ROW.format(name, *(column.get(name, "-") for column in columns)))
    print_reasons(root)


def print_reasons(root: Path) -> None:
    """Rows of the two ledgers by reason."""
    for stage in ("segment_objects", "mine_pairs"):
        rows = load_records(root / "data/ledgers" / f"{stage}.parquet", Rejection)
        reasons = Counter(row.reason for row in rows)
        print(f"{stage}: " + (", ".join(f"{reason} {n}" for reason, n in reasons.most_common()) or "nothing left out"))


def main(root: Annotated[Path, typer.Option(help="the project's folder")] = Path(".")) -> None:
    """Track purity, pair precision and pair recall on the demo clips."""
    try:
        benchmark(root)
    except InputError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


def _share(part: int, total: int) -> str:
    return f"{part / total:.4f} ({part}/{total})" if total else "-"


if __name__ == "__main__":
    typer.run(main)
