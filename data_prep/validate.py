"""One page on a source: which layout it has and why, what is usable, what is wrong and how to mend it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.frames.pictures import (
    BadPicture,
    fit_mask,
    is_black_and_white,
    load_ids,
    load_picture,
    number_objects,
)
from data_prep.ingest.stage import list_clips
from imprint.core.errors import InputError
from imprint.core.params import Ingest
from imprint.core.records import ClipRecord, Order, Rejection

REMEDIES = {
    "unreadable": "replace the file, or take it out",
    "too_short": "give longer ones, or lower ingest.min_frames",
    "duplicate": "take one of the two out",
    "no_mask": "add the masks, or take the pictures out",
    "no_pictures": "add the pictures, or take the folder out",
    "unused_licence": "correct the path_prefix in licences.csv",
    "undecodable": "replace the picture",
    "bad_mask": "save the mask as a palette or grey PNG",
    "mask_size": "save the mask at its picture's size",
    "empty_mask": "nothing to mend if the object is out of sight",
}


@dataclass
class Census:
    """What is usable, and the rows on what is not."""

    num_frames: int = 0
    num_objects: int = 0
    num_items: int = 0
    problems: list[Rejection] = field(default_factory=list)


def validate_source(source: str, section: Ingest, root: Path = Path(".")) -> tuple[str, bool]:
    """The page, and whether something is usable. Reads every picture and mask; writes nothing."""
    try:
        listing = list_clips(section.model_copy(update={"source": source}), root)
    except InputError as error:
        return f"{source}: not usable\n  {error}\n", False
    census = Census(problems=list(listing.rejections))
    for clip in listing.clips:
        count_clip(clip, census, root)
    licences = Counter(clip.licence for clip in listing.clips)
    objects = str(census.num_objects) if any(clip.masks for clip in listing.clips) else "found later, by the network"
    lines = [
        f"{source}: {'usable' if census.num_items else 'not usable'}",
        f"  layout    {listing.layout}: {listing.reason}",
        f"  items     {census.num_items} usable of {len(listing.clips) + listing.num_dropped}",
        f"  frames    {census.num_frames} usable",
        f"  objects   {objects}",
        f"  licences  {', '.join(f'{name} ({count})' for name, count in sorted(licences.items())) or 'none'}",
        *describe_problems(census.problems),
    ]
    return "\n".join(lines) + "\n", census.num_items > 0


def find_objects(mask: Path, picture: np.ndarray, *, order: Order, black_and_white: bool) -> set[int]:
    """Ids of the objects in a given mask; `BadPicture` if it holds none or does not fit the picture."""
    ids = number_objects(load_ids(mask), order, black_and_white)
    found = np.unique(fit_mask(ids, picture.shape, picture.shape))
    if not found.any():
        raise BadPicture("empty_mask", "the mask holds no object")
    return set(found[found > 0].tolist())


def count_clip(clip: ClipRecord, census: Census, root: Path) -> None:
    """Add one item's usable frames and objects; of a video the probed number of frames."""
    if not clip.frames:
        census.num_frames += clip.num_frames
        census.num_items += 1
        return
    masks = [root / clip.masks_path / name for name in clip.masks]
    black_and_white = bool(masks) and is_black_and_white(masks)
    usable, objects = 0, set[int]()
    for number, name in enumerate(clip.frames):
        try:
            picture = load_picture(root / clip.path / name)
            if masks:
                objects |= find_objects(masks[number], picture, order=clip.order, black_and_white=black_and_white)
        except BadPicture as bad:
            reason, detail = bad.args
            item = f"{clip.path}/{name}"
            census.problems.append(Rejection(stage="validate", item=item, reason=reason, detail=detail))
            continue
        usable += 1
    census.num_frames += usable
    census.num_objects += len(objects)
    census.num_items += usable > 0


def describe_problems(problems: Sequence[Rejection]) -> list[str]:
    """Each kind once: how often, an example, what to do."""
    if not problems:
        return ["  nothing is wrong"]
    examples = {row.reason: row for row in reversed(problems)}
    lines = ["  left out:"]
    for reason, count in sorted(Counter(row.reason for row in problems).items()):
        row = examples[reason]
        lines.append(f"    {reason} ({count}): {row.item}: {row.detail}")
        lines.append(f"      to mend it: {REMEDIES[reason]}")
    return lines
