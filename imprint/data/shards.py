"""Views read from tar shards by byte offset, local or in a bucket, decoded once and kept within a budget."""

from __future__ import annotations

import itertools
import json
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imprint.core.errors import InputError
from imprint.core.pixels import decode_image, put_on_black
from imprint.core.prepare import crop_object
from imprint.core.records import PairRecord, ViewRecord, build_id, decode_records
from imprint.data.cache import ViewCache, get_process_cache

_OWNERS = itertools.count()  # each reader has a number of its own in its process


@dataclass(frozen=True)
class View:
    """A view as packed: object uint8 [r, r, 4], scene uint8 [s, s, 3], mask bool [s, s] of the object in the scene;
    plate uint8 [s, s, 3]: the scene without the object, where that is known."""

    object_rgba: np.ndarray
    scene: np.ndarray
    mask: np.ndarray
    plate: np.ndarray | None = None

    @property
    def num_bytes(self) -> int:
        plate_bytes = 0 if self.plate is None else self.plate.nbytes
        return self.object_rgba.nbytes + self.scene.nbytes + self.mask.nbytes + plate_bytes


class ShardReader:
    """The views and pairs of a `data/shards` folder. Cheap to copy into another process: the cache stays behind.

    directory: a folder, or where it was copied to as a URL of fsspec (`s3://bucket/shards`, `https://...`); of a view
    only its own bytes are then fetched, in one request.
    """

    def __init__(self, directory: Path | str, *, cache_bytes: int | None = None) -> None:
        self.directory = directory if "://" in str(directory) else Path(directory)
        self.pairs = decode_records(self._read("pairs.parquet"), PairRecord, self._locate("pairs.parquet"))
        rows = decode_records(self._read("views.parquet"), ViewRecord, self._locate("views.parquet"))
        self.sources = self._load_sources()
        self._rows = {row.view_id: row for row in rows}
        self._indices: dict[tuple[str, int], list[int]] = {}  # sample indices by object, once they are asked for
        self._open_cache(cache_bytes)

    def _open_cache(self, cache_bytes: int | None) -> None:
        """The process's, or one of so many bytes that is this reader's alone."""
        self._cache_bytes, self._owner = cache_bytes, next(_OWNERS)
        self.cache = get_process_cache() if cache_bytes is None else ViewCache(cache_bytes)
        weakref.finalize(self, self.cache.forget, self._owner)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("cache", "_owner")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open_cache(state["_cache_bytes"])

    def read_pair(self, pair: PairRecord) -> tuple[View, View]:
        """Reference view, target view."""
        return self.read_view(pair, pair.reference_index), self.read_view(pair, pair.target_index)

    def read_others(self, pair: PairRecord, places: Sequence[float]) -> list[View]:
        """Further views of the pair's object, neither of the two in the pair: one per place (0-1, among those left), as
        many as there are."""
        taken = {pair.reference_index, pair.target_index}
        left = [index for index in self._list_indices(pair) if index not in taken]
        chosen = [left.pop(int(place * len(left))) for place in places[: len(left)]]
        return [self.read_view(pair, index) for index in chosen]

    def _list_indices(self, pair: PairRecord) -> list[int]:
        if not self._indices:
            for row in self._rows.values():
                self._indices.setdefault((row.clip_id, row.track), []).append(row.sample_index)
        return sorted(self._indices[pair.clip_id, pair.track])

    def read_view(self, pair: PairRecord, sample_index: int) -> View:
        """The view of the pair's object in a frame; `InputError` names one that is not packed or is damaged."""
        view_id = build_id(pair.clip_id, pair.track, sample_index)
        kept = self.cache.get(self._owner, view_id)
        if isinstance(kept, View):
            return kept
        if view_id not in self._rows:
            raise InputError(f"pair {pair.pair_id}: its view {view_id} is not in {self.directory}; run `dvc repro`")
        view = self._decode(self._rows[view_id])
        self.cache.put(self._owner, view_id, view)
        return view

    def _decode(self, row: ViewRecord) -> View:
        spans = {
            "object.png": (row.object_offset, row.object_bytes),
            "scene.jpg": (row.scene_offset, row.scene_bytes),
            "mask.png": (row.mask_offset, row.mask_bytes),
            "plate.jpg": (row.plate_offset, row.plate_bytes),
        }
        stored = {member: span for member, span in spans.items() if span[1] > 0}
        start = min(offset for offset, _ in stored.values())
        data = self._read(row.shard, start, max(offset + num_bytes for offset, num_bytes in stored.values()))
        name = f"{self._locate(row.shard)}: {row.view_id}"
        parts = {
            member: decode_image(data[offset - start : offset - start + num_bytes], f"{name}.{member}")
            for member, (offset, num_bytes) in stored.items()
        }
        if row.scene_bytes == 0:
            return view_alone(parts["object.png"])
        scene, mask = parts["scene.jpg"][..., :3], parts["mask.png"][..., 0] > 127
        found, plate = parts.get("object.png"), parts.get("plate.jpg")
        thing = crop_object(scene, mask, scene.shape[0]) if found is None else found
        return View(thing, scene, mask, None if plate is None else plate[..., :3])

    def _load_sources(self) -> list[dict]:
        """What the views were made of: dicts of `source`, `licence` and `items`; none where the folder does not say."""
        try:
            return json.loads(self._read("licences.json"))
        except InputError:
            return []

    def _locate(self, name: str) -> str:
        return f"{str(self.directory).rstrip('/')}/{name}"

    def _read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes `start` to `end` of a file of the folder. `InputError` for one that is not there."""
        try:
            if isinstance(self.directory, str):
                return read_remote(self._locate(name), start, end)
            with (self.directory / name).open("rb") as file:
                file.seek(start)
                return file.read() if end is None else file.read(end - start)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            reason = error.strerror or "not found"
            remedy = "copy data/shards there" if isinstance(self.directory, str) else "run `dvc repro pack_shards`"
            raise InputError(f"{self._locate(name)} cannot be read ({reason}); {remedy}") from None


def read_remote(url: str, start: int = 0, end: int | None = None) -> bytes:
    """Bytes `start` to `end` behind a URL. `InputError` for a protocol that fsspec does not know or cannot load."""
    from fsspec.core import url_to_fs  # one file system per protocol and process: fsspec keeps it

    try:
        filesystem, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url} cannot be read: {error}") from None
    return filesystem.cat_file(path, start=start, end=end)


def view_alone(object_rgba: np.ndarray) -> View:
    """The view of an object that was seen alone: its scene is the object on black."""
    return View(object_rgba, put_on_black(object_rgba), object_rgba[..., 3] > 127)
