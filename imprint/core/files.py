"""Atomic writes, content digests and sorted listings."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h


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
    """Copy a finished folder to its out path in one step; `source` stays. Replaces what stood there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        shutil.copytree(source, staged, dirs_exist_ok=True)
        os.chmod(staged, 0o755)
        replace_dir(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def replace_dir(staged: Path, target: Path) -> None:
    """Put a finished folder in the place of `target`, whose old content is gone only when the new one stands there.

    Where the system can exchange the two in one step (Linux), a kill at any moment leaves the one or the other. Else
    the old one steps aside first, as `.<name>.old`, and comes back with the next call if the new one did not follow.
    """
    aside = target.with_name(f".{target.name}.old")
    if not os.path.lexists(target) and aside.is_dir():
        os.replace(aside, target)
    if target.is_dir() and not target.is_symlink():
        if not _exchange(staged, target):
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(target, aside)
            try:
                os.replace(staged, target)
            except BaseException:
                os.replace(aside, target)
                raise
            staged = aside
        shutil.rmtree(staged, ignore_errors=True)
        return
    if os.path.lexists(target):
        target.unlink()
    os.replace(staged, target)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step; False where the system or the file system cannot."""
    rename = getattr(_libc(), "renameat2", None)
    if rename is None:
        return False
    return rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0


@cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


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


def compute_path_digest(
    path: Path, skip_dirs: Iterable[str] = ("__pycache__",), *, digest_file: Callable[[Path], str] = compute_file_digest
) -> str:
    """sha256 in hex of a file, or of a folder's sorted relative names and contents."""
    if path.is_file():
        return digest_file(path)
    skipped = set(skip_dirs)
    lines = [
        f"{file.relative_to(path).as_posix()} {digest_file(file)}"
        for file in sorted(path.rglob("*"))
        if file.is_file() and not skipped.intersection(file.parts)
    ]
    return compute_digest("\n".join(lines))
