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
    load_first_mask,
    load_objects,
    load_picture,
)
from data_prep.ingest.licences import FILE_NAME
from data_prep.ingest.memory import SourceMemory
from data_prep.ingest.stage import Listing, list_clips
from data_prep.masks.instances import measure_given
from imprint.core.errors import InputError
from imprint.core.params import Params
from imprint.core.records import ClipRecord, Order, Rejection

REMEDIES = {
    "other_layout": "nothing if it is no data; else give it a folder of its own and name that",
    "too_small": "nothing if the object is far away; else lower segment_objects.min_area_share",
    "too_large": "give pictures that show more of the background, or raise segment_objects.max_area_share",
    "in_pieces": "give each object a number of its own, or lower segment_objects.min_component_share",
    "border_contact": "nothing if the object leaves the picture; else raise mine_pairs.max_border_contact",
    "unreadable": "convert or replace the file, or take it out",
    "not_read": "nothing if it is no data; else convert it to a format of docs/data_format.md, or unpack it",
    "dangling_link": "mount the disk or fetch the file, or take the link out",
    "outside_link": "nothing; but DVC versions the link alone, so copy the files for a data set to be kept",
    "link_loop": "take the link out",
    "bad_name": "rename it: names are UTF-8",
    "too_short": "give longer ones, or lower ingest.min_frames",
    "duplicate": "take one of the two out",
    "no_mask": "add the masks, or take the pictures out",
    "no_pictures": "add the pictures, or take the folder out",
    "unused_licence": "correct the path_prefix in licences.csv",
    "undecodable": "replace the picture",
    "interrupted": "see that the files can be read, and try again",
    "bad_mask": "save the mask as a palette or grey PNG, white where the object is",
    "mask_size": "save the mask at its picture's size",
    "empty_mask": "nothing to mend if the object is out of sight",
}


@dataclass
class Census:
    """What is usable, and the rows on what is not."""

    num_frames: int = 0
    num_objects: int = 0
    num_masks: int = 0  # one per object and picture
    num_bad_masks: int = 0  # of them, those that the filters of later stages reject
    num_items: int = 0
    problems: list[Rejection] = field(default_factory=list)


def validate_source(source: str, params: Params, root: Path = Path(".")) -> tuple[str, bool]:
    """The page, and whether something is usable. Reads every picture and mask; writes nothing."""
    try:
        with SourceMemory() as memory:
            listing = list_clips(params.ingest.model_copy(update={"source": source}), root, memory=memory)
    except InputError as error:
        return f"{source}: not usable\n  {error}\n", False
    census = Census(problems=list(listing.rejections))
    for clip in listing.clips:
        count_clip(clip, census, params, root)
    objects = "found later, by the network"
    if any(clip.has_all_masks for clip in listing.clips):
        num_usable = census.num_masks - census.num_bad_masks
        objects = f"{census.num_objects}, in {num_usable} usable masks of {census.num_masks}"
    lines = [
        f"{source}: {'usable' if census.num_items else 'not usable'}",
        f"  layout    {listing.layout}: {listing.reason}",
        f"  items     {census.num_items} usable of {len(listing.clips) + listing.num_dropped}",
        f"  frames    {census.num_frames} usable",
        f"  objects   {objects}",
        f"  licences  {describe_licences(listing, params.ingest.licence)}",
        *describe_problems(census.problems),
    ]
    return "\n".join(lines) + "\n", census.num_items > 0


def describe_licences(listing: Listing, default: str) -> str:
    """`CC-BY-4.0 (3), CC0-1.0 (2); 2 by ingest.licence ...`: what is known and what is taken for granted."""
    counts = Counter(clip.licence for clip in listing.clips)
    text = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items())) or "none"
    if listing.num_unnamed == 0:
        return text
    return f"{text}; {listing.num_unnamed} not named in {FILE_NAME}: {default} is ingest.licence of params.yaml"


def find_objects(mask: Path, picture: np.ndarray, *, order: Order, black_and_white: bool) -> np.ndarray:
    """Ids of the objects in a given mask, [h, w]; `BadPicture` if it holds none or does not fit the picture."""
    ids = fit_mask(load_objects(mask, order, black_and_white), picture.shape, picture.shape)
    if not ids.any():
        raise BadPicture("empty_mask", "the mask holds no object")
    return ids


def check_object(picture: np.ndarray, mask: np.ndarray, params: Params) -> tuple[str, str] | None:
    """Reason and detail if the filters of `segment_objects` or `mine_pairs` would reject a given mask."""
    result = measure_given(picture, mask, params.segment_objects)
    if isinstance(result, str):
        return result, f"an object of {mask.mean():.1%} of the picture"
    if result.border_contact > params.mine_pairs.max_border_contact:
        return "border_contact", f"{result.border_contact:.0%} of an object's outline lie on the picture's border"
    return None


def count_clip(clip: ClipRecord, census: Census, params: Params, root: Path) -> None:
    """Add one item's usable frames and objects; of a video the probed number of frames."""
    if not clip.frames:
        census.num_frames += clip.num_frames
        census.num_items += 1
        if clip.masks:
            check_first_mask(clip, census, root)
        return
    masks = [root / clip.masks_path / name for name in clip.masks]
    black_and_white = clip.order == "time" and bool(masks) and is_black_and_white(masks)
    usable, objects = 0, set[int]()
    for number, name in enumerate(clip.frames):
        item = f"{clip.path}/{name}"
        try:
            picture = load_picture(root / clip.path / name)
            if masks:
                ids = find_objects(masks[number], picture, order=clip.order, black_and_white=black_and_white)
                objects |= count_masks(picture, ids, item, census=census, params=params)
        except BadPicture as bad:
            census.problems.append(_reject(item, *bad.args))
            continue
        usable += 1
    census.num_frames += usable
    census.num_objects += len(objects)
    census.num_items += usable > 0


def check_first_mask(clip: ClipRecord, census: Census, root: Path) -> None:
    """Add a row if the mask beside a video cannot be used."""
    try:
        load_first_mask(clip, (clip.height_px, clip.width_px), root)
    except BadPicture as bad:
        census.problems.append(_reject(f"{clip.masks_path}/{clip.masks[0]}", *bad.args))


def count_masks(picture: np.ndarray, ids: np.ndarray, item: str, *, census: Census, params: Params) -> set[int]:
    """Add one picture's masks to the census; the ids of its objects."""
    found = set(np.unique(ids[ids > 0]).tolist())
    for number in sorted(found):
        problem = check_object(picture, ids == number, params)
        census.num_masks += 1
        if problem is not None:
            census.num_bad_masks += 1
            census.problems.append(_reject(f"{item}: object {number}", *problem))
    return found


def _reject(item: str, reason: str, detail: str) -> Rejection:
    return Rejection(stage="validate", item=item, reason=reason, detail=detail)


def describe_problems(problems: Sequence[Rejection]) -> list[str]:
    """Each kind once: how often, an example, what to do."""
    if not problems:
        return ["  nothing is wrong"]
    examples = {row.reason: row for row in reversed(problems)}
    lines = ["  left out:"]
    for reason, count in sorted(Counter(row.reason for row in problems).items()):
        row = examples[reason]
        lines.append(f"    {reason} ({count}): {row.item}: {row.detail}")
        lines.append(f"      to mend it: {REMEDIES.get(reason, 'see params.yaml for the filters')}")
    return lines
