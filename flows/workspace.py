"""A copy of the project's tree with other parameters: a trial run touches neither `params.yaml` nor `models/`."""

from __future__ import annotations

import filecmp
import shutil
import subprocess
from pathlib import Path

import yaml

from imprint.core.errors import InputError
from imprint.core.files import write_bytes_atomic, write_json_atomic
from imprint.core.outside import load_json, load_yaml
from imprint.core.params import load_params, merge_overlay

_MANIFEST = ".workspace.json"
_LEFT_OUT = {"dvc.lock", "demo/dvc.lock", "params.yaml"}  # the copy has its own
_DVC_CONFIG = "[core]\n    no_scm = true\n"  # it lies in a folder that Git ignores, which DVC would refuse


def make_workspace(overlay: Path, root: Path = Path("."), *, folder: Path | None = None) -> Path:
    """Make or refresh `folder` (default: `work/<name of the overlay>/`): the files that Git tracks or would track, and
    `params.yaml` with the overlay's keys. What an earlier run produced there stays, so that a second run finds it."""
    load_params(root / "params.yaml", overlay)  # a wrong key is the user's error, and is told before anything is copied
    folder = folder or root / "work" / overlay.stem
    files = sorted(set(_list_project_files(root)) - _LEFT_OUT)
    for name in _read_manifest(folder) - set(files):
        (folder / name).unlink(missing_ok=True)
    for name in files:
        _copy_if_changed(root / name, folder / name)
    values = load_yaml(root / "params.yaml")
    merged = merge_overlay(values, load_yaml(overlay), str(overlay))
    write_bytes_atomic(folder / "params.yaml", yaml.safe_dump(merged, sort_keys=False).encode())
    write_bytes_atomic(folder / ".dvc" / "config.local", _DVC_CONFIG.encode())
    write_json_atomic(folder / _MANIFEST, files)
    return folder


def _list_project_files(root: Path) -> list[str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:]
        raise InputError(f"{root.resolve()} is no Git checkout ({' '.join(reason)}); clone the project with git")
    return [name for name in done.stdout.split("\0") if name and (root / name).is_file()]


def _read_manifest(folder: Path) -> set[str]:
    path = folder / _MANIFEST
    return set(load_json(path)) if path.is_file() else set()


def _copy_if_changed(source: Path, target: Path) -> None:
    """Times are kept: DVC hashes a file again only when its time changes."""
    if target.is_file() and filecmp.cmp(source, target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
