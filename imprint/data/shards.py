"""Views read from tar shards by byte offset, decoded once and kept in a bounded cache."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imprint.core.errors import InputError
from imprint.core.pixels import decode_image, put_on_black
from imprint.core.prepare import crop_object
from imprint.core.records import PairRecord, ViewRecord, build_id, load_records

CACHE_BYTES = 4 << 30  # of decoded views, at most: about 30,000 at 128 px
CACHE_SHARE = 0.25  # of the machine's memory, at most


@dataclass(frozen=True)
class View:
    """A view as packed: object uint8 [r, r, 4], scene uint8 [s, s, 3], mask bool [s, s] of the object in the scene."""

    object_rgba: np.ndarray
    scene: np.ndarray
    mask: np.ndarray

    @property
    def num_bytes(self) -> int:
        return self.object_rgba.nbytes + self.scene.nbytes + self.mask.nbytes


class ShardReader:
    """The views and pairs of a `data/shards` folder. Cheap to copy into another process: the cache stays behind."""

    def __init__(self, directory: Path, *, cache_bytes: int | None = None) -> None:
        self.directory = directory
        self.pairs = load_records(directory / "pairs.parquet", PairRecord)
        self._rows = {row.view_id: row for row in load_records(directory / "views.parquet", ViewRecord)}
        self._indices: dict[tuple[str, int], list[int]] = {}  # sample indices by object, once they are asked for
        self._cache: OrderedDict[str, View] = OrderedDict()
        self._cached_bytes, self._cache_bytes = 0, limit_cache_bytes() if cache_bytes is None else cache_bytes

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_cache": OrderedDict(), "_cached_bytes": 0}

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
        if view_id in self._cache:
            self._cache.move_to_end(view_id)
            return self._cache[view_id]
        if view_id not in self._rows:
            raise InputError(f"pair {pair.pair_id}: its view {view_id} is not in {self.directory}; run `dvc repro`")
        view = self._decode(self._rows[view_id])
        self._cache[view_id] = view
        self._cached_bytes += view.num_bytes
        while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].num_bytes
        return view

    def _decode(self, row: ViewRecord) -> View:
        path = self.directory / row.shard
        spans = {
            "object.png": (row.object_offset, row.object_bytes),
            "scene.jpg": (row.scene_offset, row.scene_bytes),
            "mask.png": (row.mask_offset, row.mask_bytes),
        }
        parts = {}
        with _open_shard(path) as file:
            for member, (offset, num_bytes) in spans.items():
                if num_bytes > 0:
                    file.seek(offset)
                    parts[member] = decode_image(file.read(num_bytes), f"{path}: {row.view_id}.{member}")
        if row.scene_bytes == 0:
            return view_alone(parts["object.png"])
        scene, mask = parts["scene.jpg"][..., :3], parts["mask.png"][..., 0] > 127
        found = parts.get("object.png")
        return View(crop_object(scene, mask, scene.shape[0]) if found is None else found, scene, mask)


def limit_cache_bytes() -> int:
    """How much a reader may keep of what it has decoded."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(CACHE_BYTES, int(CACHE_SHARE * memory_bytes))


def view_alone(object_rgba: np.ndarray) -> View:
    """The view of an object that was seen alone: its scene is the object on black."""
    return View(object_rgba, put_on_black(object_rgba), object_rgba[..., 3] > 127)


def _open_shard(path: Path):
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); run `dvc repro pack_shards`") from None
