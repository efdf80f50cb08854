"""Atomic writes, content digests and sorted listings."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20


@contextmanager
def replace_atomic(path: Path) -> Iterator[Path]:
    """A temporary file beside the target, to be written within; then fsync and rename: a reader of `path` sees the old
    file or the new one, never a part. Where that fails the old one stays, and the temporary file goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:  # a write that fails names no file
            error.filename = str(path)
        raise


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """The whole file or nothing (`replace_atomic`)."""
    with replace_atomic(path) as temporary:
        temporary.write_bytes(data)


def write_json_atomic(path: Path, value: Any) -> None:
    """Sorted keys, two spaces, newline at the end; NaN is refused."""
    write_bytes_atomic(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def publish_dir(source: Path, target: Path) -> None:
    """Copy a finished folder to its out path in one rename; `source` stays. Replaces what stood there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        shutil.copytree(source, staged, dirs_exist_ok=True)
        os.chmod(staged, 0o755)
        if target.exists():
            shutil.rmtree(target)
        os.replace(staged, target)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def compute_digest(data: bytes | str) -> str:
    """sha256 in hex of bytes or of UTF-8 text."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def compute_file_digest(path: Path) -> str:
    """sha256 in hex of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def compute_path_digest(path: Path, skip_dirs: Iterable[str] = ("__pycache__",)) -> str:
    """sha256 in hex of a file, or of a folder's sorted relative names and contents."""
    if path.is_file():
        return compute_file_digest(path)
    skipped = set(skip_dirs)
    lines = [
        f"{file.relative_to(path).as_posix()} {compute_file_digest(file)}"
        for file in sorted(path.rglob("*"))
        if file.is_file() and not skipped.intersection(file.parts)
    ]
    return compute_digest("\n".join(lines))
