"""Decisions of a review: one CSV line per track or pair that a person has kept or dropped, honoured by mining.

A line names an object by where it was seen: clip, frame and box. So it holds for as long as the object is found at that
place, whatever number its track has after another segmentation.
"""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal

from imprint.core.errors import InputError
from imprint.core.files import write_bytes_atomic
from imprint.core.geometry import Box, compute_iou
from imprint.core.records import MaskRecord, PairKind, PairRecord, Rejection, get_box

DECISIONS = Path("review/decisions.csv")
MIN_IOU = 0.5  # of an object's box now with its box when it was decided about
KINDS = ("track", "multiview", "video", "single")
Kind = Literal["track"] | PairKind
Verdict = Literal["keep", "drop"]
# A track (its frames left out: -1) or a pair of views in either direction: kind, clip, track, lower and upper frame.
Key = tuple[str, str, int, int, int]


@dataclass(frozen=True, order=True)
class Decision:
    """One line. `box` is the object's, half-open y0 x0 y1 x1, in frame `frame`; a track's `target_frame` is `frame`."""

    clip_id: str
    kind: Kind
    frame: int
    target_frame: int
    box: tuple[int, ...]
    decision: Verdict
    note: str = ""

    @property
    def place(self) -> tuple:
        """What is decided about, as written."""
        return astuple(self)[:5]


def load_decisions(root: Path = Path(".")) -> list[Decision]:
    """All lines, sorted; none where there is no file. `InputError` names the line that is wrong or contradicts one."""
    path = root / DECISIONS
    if not path.is_file():
        return []
    reader = csv.DictReader(io.StringIO(path.read_text()))
    if reader.fieldnames != [field.name for field in fields(Decision)]:
        raise InputError(f"{DECISIONS}: its first line must be {','.join(field.name for field in fields(Decision))}")
    lines: dict[tuple, tuple[int, Decision]] = {}
    for row in reader:
        number = reader.line_num
        decision = _parse_line(row, number)
        earlier, other = lines.setdefault(decision.place, (number, decision))
        if other.decision != decision.decision:
            raise InputError(f"{DECISIONS}: lines {earlier} and {number} contradict each other; delete one of them")
    return sorted(decision for _, decision in lines.values())


def save_decisions(decisions: Iterable[Decision], root: Path = Path(".")) -> None:
    """Write the file anew, sorted, in one rename."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Decision))
    for decision in sorted(decisions):
        box = " ".join(str(edge) for edge in decision.box)
        writer.writerow([*astuple(decision)[:4], box, decision.decision, decision.note])
    write_bytes_atomic(root / DECISIONS, text.getvalue().encode())


def build_key(pair: PairRecord) -> Key:
    """What a decision about `pair` is filed under; the same for the pair turned round."""
    low, high = sorted((pair.reference_index, pair.target_index))
    return pair.kind, pair.clip_id, pair.track, low, high


def find_keys(decisions: Sequence[Decision], masks: Iterable[MaskRecord]) -> list[Key | None]:
    """The key of each decision: that of the object that now lies where it was; None where there is none."""
    rows: dict[tuple[str, int], list[MaskRecord]] = {}
    for row in masks:
        rows.setdefault((row.clip_id, row.sample_index), []).append(row)
    return [_find_key(decision, rows.get((decision.clip_id, decision.frame), [])) for decision in decisions]


def drop_reviewed(
    pairs: Sequence[PairRecord], masks: Sequence[MaskRecord], root: Path = Path(".")
) -> tuple[list[PairRecord], list[Rejection]]:
    """`pairs` without those that a review has dropped, alone or with their track, and a ledger row per drop.

    A decision about what does not exist any more is told on standard error and changes nothing.
    """
    decisions = [decision for decision in load_decisions(root) if decision.decision == "drop"]
    keys = find_keys(decisions, masks)
    notes = {key: decision.note for key, decision in zip(keys, decisions, strict=True) if key}
    kept, dropped = [], Counter[Key]()
    for pair in pairs:
        track = ("track", pair.clip_id, pair.track, -1, -1)
        key = track if track in notes else build_key(pair)
        dropped[key] += key in notes
        if key not in notes:
            kept.append(pair)
    # a track that gives no pair is there all the same; a dropped pair that was not chosen may be gone for good
    idle = [
        key for key in notes if not dropped[key] and (key[0] != "track") and ("track", *key[1:3], -1, -1) not in notes
    ]
    _tell_stale([d for d, key in zip(decisions, keys, strict=True) if key is None or key in idle])
    rows = [
        _build_row(key, dropped[key], note) for key, note in sorted(notes.items()) if dropped[key] or key[0] == "track"
    ]
    return kept, rows


def _parse_line(row: dict[str | None, str | None], number: int) -> Decision:
    values = {str(name): value or "" for name, value in row.items() if isinstance(value, str)}
    try:
        kind, verdict = values["kind"], values["decision"]
        box = tuple(int(edge) for edge in values["box"].split())
        if kind not in KINDS or verdict not in ("keep", "drop") or len(box) != 4 or None in row:
            raise ValueError
        return Decision(
            clip_id=values["clip_id"],
            kind=kind,
            frame=int(values["frame"]),
            target_frame=int(values["target_frame"]),
            box=box,
            decision=verdict,
            note=values["note"],
        )
    except (KeyError, ValueError):
        raise InputError(
            f"{DECISIONS}: line {number} is no decision (or is left over from a merge); mend or delete it"
        ) from None


def _find_key(decision: Decision, rows: Sequence[MaskRecord]) -> Key | None:
    ious = {row.track: compute_iou(get_box(row), Box(*decision.box)) for row in rows}
    track = max(ious, key=lambda track: ious[track], default=0)
    if not track or ious[track] < MIN_IOU:
        return None
    if decision.kind == "track":
        return "track", decision.clip_id, track, -1, -1
    low, high = sorted((decision.frame, decision.target_frame))
    return decision.kind, decision.clip_id, track, low, high


def _tell_stale(decisions: Sequence[Decision]) -> None:
    if decisions:
        first = decisions[0]
        print(
            f"mine_pairs: {len(decisions)} drops in {DECISIONS} fit nothing that is there now "
            f"(the first: {first.kind} of clip {first.clip_id}, frame {first.frame})",
            file=sys.stderr,
        )


def _build_row(key: Key, num_pairs: int, note: str) -> Rejection:
    kind, clip_id, track, low, high = key
    what = f"the track, {num_pairs} pairs" if kind == "track" else f"{kind} pair of frames {low} and {high}"
    detail = f"{what}: {note}" if note else what
    return Rejection(stage="mine_pairs", item=f"{clip_id}:{track}", reason="dropped_in_review", detail=detail)
