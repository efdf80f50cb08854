"""What a result depends on, said here for all stages: settings, code and the content of the inputs.

- Settings are the stage's params section without the fields that are marked `RUN_ONLY`: those say how the work is done.
- Code is what the stage's module imports, directly or not, and the files beside it in its packages (networks,
  templates). `imprint.core.params` is left out: it declares, and its values are the settings.
- Inputs are read. Where a file's size, times and inode are those of the last reading, its digest is taken over.
"""

from __future__ import annotations

import ast
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from imprint.core.errors import InputError
from imprint.core.files import compute_digest, compute_file_digest, compute_path_digest, write_json_atomic
from imprint.core.params import RUN_ONLY

PACKAGES_ROOT = Path(__file__).resolve().parents[2]  # where imprint/ and data_prep/ lie
PACKAGES = ("imprint", "data_prep", "flows", "demo")
DIGESTS = Path("work/digests.json")
_DECLARES = "imprint.core.params"
_SETTLED_NS = 2_000_000_000  # a file that is younger may change once more within one tick of its clock


def compute_key(name: str, section: BaseModel, *, inputs: Mapping[str, str], module: str) -> str:
    """The name of what the stage in `module` computes from `inputs` (name => digest) with these settings."""
    parts = [name, list_settings(section), dict(inputs), compute_code_digest(module)]
    return compute_digest(json.dumps(parts, sort_keys=True))


def list_settings(section: BaseModel) -> dict[str, Any]:
    """The section's values on which its result depends, as JSON values."""
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if RUN_ONLY in field.metadata:
            del values[name]
        elif isinstance(value, BaseModel):
            values[name] = list_settings(value)
    return values


# --- code


@cache
def compute_code_digest(module: str) -> str:
    """Digest of all sources that running `module` may load, and of the files beside them."""
    reached = find_reachable(module) - {_DECLARES}
    paths = {find_path(name) for name in reached}
    paths |= {beside for path in paths if path.name == "__init__.py" for beside in _list_beside(path.parent)}
    lines = [f"{path.relative_to(PACKAGES_ROOT).as_posix()} {compute_file_digest(path)}" for path in sorted(paths)]
    return compute_digest("\n".join(lines))


def find_path(module: str) -> Path:
    """The file of a module of ours, by its dotted name, whether there is one or not."""
    path = PACKAGES_ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def find_imports(module: str) -> frozenset[str]:
    """Our own modules that a module imports, lazily or not. `from a import b` counts as `a.b` if that is a module."""
    tree = ast.parse(find_path(module).read_text())
    return frozenset(name for name in _list_imported(tree) if _is_ours(name))


def find_reachable(module: str) -> set[str]:
    """All modules that importing and running `module` may load, itself and the packages above them included."""
    reached, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in reached or not _is_ours(name):
            continue
        reached.add(name)
        waiting += [*find_imports(name), name.rpartition(".")[0]]
    return reached


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES and find_path(module).is_file()


def _list_imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "relative imports are not used here"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _list_beside(package: Path) -> Iterator[Path]:
    """Files of a package's own folder that are no code: networks, templates."""
    return (path for path in package.iterdir() if path.is_file() and path.suffix not in (".py", ".pyc"))


# --- inputs


def compute_input_digests(paths: Iterable[Path], root: Path = Path(".")) -> dict[str, str]:
    """Path => digest of its content, the same as `compute_path_digest`'s. `InputError` names one that is missing."""
    files, digests = FileDigests(root / DIGESTS), {}
    for path in paths:
        if not (root / path).exists():
            raise InputError(f"{path} is missing; run `dvc repro` (or `dvc pull`) first")
        digests[path.as_posix()] = compute_path_digest(root / path, digest_file=files.compute)
    files.save()
    return digests


class FileDigests:
    """Digests of files, remembered in a file of their own; one that is damaged costs a reading, no more."""

    def __init__(self, path: Path | None) -> None:
        self._path = path  # None: nothing is remembered
        self._known, self._seen = _load_known(path) if path else {}, dict[str, list]()

    def compute(self, file: Path) -> str:
        """sha256 in hex of the file's bytes; not read again if nothing tells that it has changed."""
        name, marks = os.path.abspath(file), _read_marks(file)
        entry = self._known.get(name)
        if entry is None or entry[0] != marks:
            entry = [marks, compute_file_digest(file)]
            if _read_marks(file) != marks or time.time_ns() - max(marks[1:3]) < _SETTLED_NS:
                return entry[1]  # it may change again and look the same
        self._seen[name] = entry
        return entry[1]

    def save(self) -> None:
        """Remember what was computed, and forget files that are gone."""
        if self._path and any(self._known.get(name) != entry for name, entry in self._seen.items()):
            kept = {name: entry for name, entry in self._known.items() if os.path.lexists(name)}
            write_json_atomic(self._path, kept | self._seen)


def _read_marks(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def _load_known(path: Path) -> dict[str, list]:
    """Absolute path => [marks, digest]."""
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    items = entries.items() if isinstance(entries, dict) else ()
    return {name: entry for name, entry in items if _is_entry(entry)}


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[1], str)
        and len(entry[1]) == 64
        and set(entry[1]) <= set("0123456789abcdef")
    )
