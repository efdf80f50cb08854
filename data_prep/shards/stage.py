"""Stage `pack_shards`: every view that a pair needs, once, by the one preparation path, in tar shards with an index.

Nothing is dropped here: a view that cannot be made ends the stage.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from data_prep.shards.packing import ViewKey, compute_tar_bytes, encode_clip, write_shard
from imprint.core.files import publish_dir, write_json_atomic
from imprint.core.params import PackShards, Params
from imprint.core.progress import show_progress
from imprint.core.records import ClipRecord, PairRecord, ViewRecord, load_records, save_records
from imprint.core.stage import open_stage

STAGE = "pack_shards"
CLIPS, PAIRS, OUT = Path("data/clips.parquet"), Path("data/pairs.parquet"), Path("data/shards")
FRAMES, MASKS = Path("data/frames"), Path("data/masks")
View = tuple[ViewKey, tuple[bytes, bytes, bytes]]


def run_pack_shards(params: Params, root: Path = Path(".")) -> None:
    """Write `data/shards/`: `<split>-<n>.tar`, two indices, `licences.json`. Finished shards survive a kill."""
    section = params.pack_shards
    run = open_stage(STAGE, section, [CLIPS, PAIRS, FRAMES, MASKS], __name__, root)
    pairs = load_records(root / PAIRS, PairRecord)
    keys = list_views(pairs)
    shards, done = run.work_dir / "shards", run.work_dir / "done"
    for folder in (shards, done):
        folder.mkdir(exist_ok=True)
    rows = [row for path in sorted(done.glob("*.parquet")) for row in load_records(path, ViewRecord)]
    packed = {(row.clip_id, row.track, row.sample_index) for row in rows}
    missing = [key for key in keys if (key.clip_id, key.track, key.sample_index) not in packed]
    with show_progress("pack_shards: views", len(keys), len(packed)) as bar:
        for split in sorted({key.split for key in missing}):
            number = len({row.shard for row in rows if row.split == split})
            views = encode_views([key for key in missing if key.split == split], section, root)
            for part in split_by_size(views, section.shard_mb * 1e6):
                name = f"{split}-{number:05d}"
                written = write_shard(shards / f"{name}.tar", part)
                save_records(done / f"{name}.parquet", ViewRecord, written)
                rows, number = rows + written, number + 1
                bar.advance(len(written))
    save_records(shards / "views.parquet", ViewRecord, sorted(rows, key=lambda row: (row.shard, row.object_offset)))
    save_records(shards / "pairs.parquet", PairRecord, pairs)
    write_json_atomic(shards / "licences.json", list_sources(load_records(root / CLIPS, ClipRecord), pairs))
    publish_dir(shards, root / OUT)
    shutil.rmtree(run.work_dir)


def list_sources(clips: Sequence[ClipRecord], pairs: Sequence[PairRecord]) -> list[dict[str, str | int]]:
    """Each source and licence, sorted, with the number of its clips in use; models take it over into their cards."""
    used = {pair.clip_id for pair in pairs}
    counts = Counter((clip.source, clip.licence) for clip in clips if clip.clip_id in used)
    return [
        {"source": source, "licence": licence, "items": count} for (source, licence), count in sorted(counts.items())
    ]


def list_views(pairs: Sequence[PairRecord]) -> list[ViewKey]:
    """Each view that a pair refers to, once, sorted by split, clip, track and frame."""
    ends = [(pair, index) for pair in pairs for index in (pair.reference_index, pair.target_index)]
    return sorted({ViewKey(pair.split, pair.clip_id, pair.track, index) for pair, index in ends})


def encode_views(keys: Sequence[ViewKey], params: PackShards, root: Path) -> Iterator[View]:
    """The views with their encoded parts, clip by clip."""
    for clip_id, group in groupby(keys, key=lambda key: key.clip_id):
        of_clip = list(group)
        tars = root / FRAMES / f"{clip_id}.tar", root / MASKS / f"{clip_id}.tar"
        yield from zip(of_clip, encode_clip(of_clip, *tars, params), strict=True)


def split_by_size(views: Iterator[View], max_bytes: float) -> Iterator[list[View]]:
    """Consecutive views in parts of at most `max_bytes` of tar; one view larger than that is a part of its own."""
    part, size = [], 0
    for view in views:
        view_bytes = compute_tar_bytes(view[1])
        if part and size + view_bytes > max_bytes:
            yield part
            part, size = [], 0
        part.append(view)
        size += view_bytes
    if part:
        yield part
