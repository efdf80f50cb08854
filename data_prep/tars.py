"""Deterministic tars: the same members give the same bytes, and every member's data has a known offset."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from imprint.core.errors import InputError

HEADER_BYTES = 512  # of a member with a short name in the USTAR format


class TarWriter:
    """Writes members without owner, time or mode of their own. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, name: str, data: bytes) -> int:
        """Append one member; returns the absolute byte offset of its data."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        start = self._tar.offset
        self._tar.addfile(info, io.BytesIO(data))
        return start + HEADER_BYTES

    @property
    def num_bytes(self) -> int:
        """Bytes written so far, without the end of the archive."""
        return self._tar.offset

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tar.close()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """One tar of the members in the order given."""
    with TarWriter(path) as tar:
        for name, data in members:
            tar.add(name, data)


def read_tar(path: Path) -> dict[str, bytes]:
    """All members by name. `InputError` for a missing or damaged archive."""
    try:
        with tarfile.open(path, "r:") as tar:
            return {info.name: _read(tar, info) for info in tar if info.isfile()}
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it and run `dvc repro`") from None


def list_members(path: Path) -> dict[str, tuple[int, int]]:
    """Name => byte offset and length of each member's data; only the headers are read. `InputError` as `read_tar`."""
    try:
        with tarfile.open(path, "r:") as tar:
            return {info.name: (info.offset_data, info.size) for info in tar if info.isfile()}
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it and run `dvc repro`") from None


def _read(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    assert file is not None
    return file.read()
