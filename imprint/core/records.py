"""Records that cross a stage: frozen types, written as Parquet with a schema version."""

from __future__ import annotations

import io
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from imprint.core.errors import InputError
from imprint.core.files import compute_digest, write_bytes_atomic
from imprint.core.geometry import Box

Split = Literal["train", "val", "test"]
PairKind = Literal["multiview", "video", "single"]
Layout = Literal["videos", "davis", "mvimgnet", "photo_sets", "images"]
Order = Literal["time", "views", "single"]


@dataclass(frozen=True, kw_only=True)
class ClipRecord:
    """One item of the source: a video, a sequence or set of pictures, or one picture (`docs/data_format.md`).

    `clip_id` is a digest of the content: of the video file, or of all pictures and masks.
    """

    clip_id: str
    path: str  # the video, or the pictures' folder; relative to the project where it lies inside it
    source: str
    licence: str
    layout: Layout
    order: Order  # time: frames of a video; views: pictures that all show one object; single: one picture
    frames: tuple[str, ...]  # pictures in `path`, in their order; none for a video file
    masks_path: str  # folder of the given masks; empty: the objects are still to be found
    masks: tuple[str, ...]  # files in `masks_path`, one per picture, or a video's first frame's; none: not given
    num_frames: int
    fps: float  # 0: the pictures have no time
    height_px: int  # of the first frame
    width_px: int
    duration_s: float

    @property
    def has_all_masks(self) -> bool:
        """Whether the objects are known in every picture; of a video a mask is given for the first frame alone."""
        return bool(self.masks and self.frames)


@dataclass(frozen=True, kw_only=True)
class FrameRecord:
    """One kept frame: member `member` of `data/frames/<clip_id>.tar`."""

    clip_id: str
    sample_index: int  # counts the sampled frames of the clip, kept or not: the gap of a pair is measured in it
    source_index: int  # counts the frames of the file
    time_s: float  # 0 where the pictures have no time
    shot: int  # cuts before this frame; pictures that are no video are each a shot of their own
    sharpness: float  # variance of the Laplacian of the grey frame
    phash: str  # 64-bit perceptual hash, hex
    height_px: int
    width_px: int
    member: str


@dataclass(frozen=True, kw_only=True)
class MaskRecord:
    """One object of one frame. Its mask: pixels equal to `track` in member `member` of `data/masks/<clip_id>.tar`."""

    clip_id: str
    track: int  # 1-255, one number per object of the clip
    sample_index: int
    time_s: float
    shot: int
    box: tuple[int, int, int, int]  # half-open y0 x0 y1 x1, pixels of the frame
    area_share: float  # of the frame, 0-1
    confidence: float  # mean probability inside the mask, 0-1
    boundary_confidence: float  # share of the mask's rim where the network is sure, 0-1
    border_contact: float  # share of the box's outline that lies on the frame's border, 0-1
    member: str


@dataclass(frozen=True, kw_only=True)
class PairRecord:
    """Two views of one object. Stage 1 trains on `multiview`, stage 2 on `video` and `single` (reference = target)."""

    pair_id: str
    kind: PairKind
    split: Split
    clip_id: str
    track: int
    reference_index: int  # sample_index of the reference view
    target_index: int
    gap_frames: int  # in sampled frames
    gap_s: float
    view_change: float  # measure of how much the view differs, 0-1


@dataclass(frozen=True, kw_only=True)
class ViewRecord:
    """One training-ready view in a shard: `<view_id>.object.png`, `.scene.jpg`, `.mask.png` and `.plate.jpg`, by byte
    offset.

    object: RGBA [reference_px, reference_px, 4]; scene: RGB [size_px, size_px, 3] around the object;
    mask: grey [size_px, size_px], the object in the scene, 0 or 255; plate: RGB like the scene, without the object
    (rendered scenes have one, footage has none).
    A part of 0 bytes is not stored but follows from the others: an object seen alone (no scene, no mask) has black
    about it, and an object that is stored in its scene only is cut out of it.
    """

    view_id: str
    split: Split
    clip_id: str
    track: int
    sample_index: int
    shard: str
    object_offset: int
    object_bytes: int
    scene_offset: int
    scene_bytes: int
    mask_offset: int
    mask_bytes: int
    plate_offset: int
    plate_bytes: int


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A row of a stage's ledger: what was left out and why. Bad data is a value, not an exception."""

    stage: str
    item: str  # clip id, clip id:frame, clip id:track ...
    reason: str  # short, one of a stage's fixed set
    detail: str


# Raised with every change of a record's fields; a stage refuses what was written under another version.
SCHEMA_VERSIONS: dict[type, int] = {
    ClipRecord: 2,
    FrameRecord: 1,
    MaskRecord: 1,
    PairRecord: 1,
    ViewRecord: 2,
    Rejection: 1,
}

Record = TypeVar("Record", ClipRecord, FrameRecord, MaskRecord, PairRecord, ViewRecord, Rejection)


def build_id(*parts: str | int) -> str:
    """Deterministic id of 16 hex digits from content digests and indices."""
    return compute_digest("\0".join(str(part) for part in parts))[:16]


def get_box(record: MaskRecord) -> Box:
    return Box(*record.box)


def save_records(path: Path, kind: type[Record], records: Iterable[Record]) -> None:
    """Write records, in their order, as one Parquet file with the schema version; an empty list keeps its columns."""
    rows = [{field.name: getattr(record, field.name) for field in fields(kind)} for record in records]
    schema = _build_schema(kind)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    write_bytes_atomic(path, sink.getvalue())


def load_records(path: Path, kind: type[Record]) -> list[Record]:
    """Read what `save_records` wrote. `InputError` for a missing file or another record type or schema version."""
    try:
        return decode_records(path.read_bytes(), kind, str(path))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; run `dvc repro` first") from None


def decode_records(data: bytes, kind: type[Record], path: str) -> list[Record]:
    """`load_records` from the bytes of the file that errors call `path`."""
    try:
        table = pq.read_table(io.BytesIO(data))
    except pa.ArrowInvalid:
        raise InputError(f"{path} is no Parquet file; delete it and run `dvc repro`") from None
    metadata = table.schema.metadata or {}
    found = (metadata.get(b"record", b"?").decode(), metadata.get(b"schema_version", b"?").decode())
    wanted = (kind.__name__, str(SCHEMA_VERSIONS[kind]))
    if found != wanted:
        raise InputError(
            f"{path} holds {found[0]} version {found[1]}, not {wanted[0]} version {wanted[1]}; run `dvc repro`"
        )
    return [kind(**{key: _to_python(value) for key, value in row.items()}) for row in table.to_pylist()]


def _to_python(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _build_schema(kind: type) -> pa.Schema:
    hints = typing.get_type_hints(kind)
    columns = [pa.field(field.name, _arrow_type(hints[field.name]), nullable=False) for field in fields(kind)]
    return pa.schema(columns, metadata={"record": kind.__name__, "schema_version": str(SCHEMA_VERSIONS[kind])})


def _arrow_type(hint: Any) -> pa.DataType:
    origin = typing.get_origin(hint)
    if origin is tuple:
        of = typing.get_args(hint)
        return pa.list_(pa.string()) if of == (str, ...) else pa.list_(pa.int32(), len(of))
    if origin is Literal:
        return pa.string()
    assert not isinstance(hint, types.UnionType), f"records have no optional fields: {hint}"
    return {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}[hint]
