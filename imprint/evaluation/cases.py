"""The test cases with ground truth: one tar of pictures, of objects that no training clip shows."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imprint.core.errors import InputError
from imprint.core.files import compute_digest
from imprint.core.masks import MaskLevel
from imprint.core.pixels import decode_image
from imprint.core.view_changes import VIEW_CHANGES, ViewChange, name_reference


@dataclass(frozen=True)
class Case:
    """One object to insert. All pictures but the references have the same size.

    references: RGBA uint8, other views of the object, by view change; plate, truth: RGB uint8, the scene without and
    with the object; object_mask, shadow_mask: bool, disjoint; holes: bool per mask level, each holds the object.
    """

    name: str
    references: Mapping[ViewChange, np.ndarray]
    plate: np.ndarray
    truth: np.ndarray
    object_mask: np.ndarray
    shadow_mask: np.ndarray
    holes: Mapping[MaskLevel, np.ndarray]


@dataclass(frozen=True)
class CaseSet:
    """Cases in the archive's order, and the digest of exactly the pictures that are used."""

    cases: list[Case]
    digest: str


def load_cases(path: Path, levels: Sequence[MaskLevel], max_cases: int) -> CaseSet:
    """Read the first `max_cases` cases that the tar's `cases.json` lists. `InputError` names archive and case."""
    try:
        with tarfile.open(path) as archive:
            members = _read_members(archive)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check evaluate.cases in params.yaml") from None
    except tarfile.TarError:
        raise InputError(f"{path} is no tar archive; check evaluate.cases in params.yaml") from None
    names = _list_names(members, path)[:max_cases]
    used: list[str] = []
    cases = [_build_case(name, members, levels, path, used) for name in names]
    lines = [f"{member} {compute_digest(members[member])}" for member in used]
    return CaseSet(cases=cases, digest=compute_digest("\n".join(lines)))


def _read_members(archive: tarfile.TarFile) -> dict[str, bytes]:
    """Content by `<case>/<file>` or `cases.json`, whatever folder the archive puts in front."""
    members = {}
    for info in archive.getmembers():
        file = archive.extractfile(info) if info.isfile() else None
        if file is not None:
            parts = Path(info.name).parts
            members["/".join(parts[-1:] if parts[-1] == "cases.json" else parts[-2:])] = file.read()
    return members


def _list_names(members: Mapping[str, bytes], path: Path) -> list[str]:
    names = sorted({member.split("/")[0] for member in members if member.endswith("/truth.png")})
    if not names:
        raise InputError(f"{path} holds no cases (no */truth.png); check evaluate.cases in params.yaml")
    listed = json.loads(members["cases.json"]).get("cases") if "cases.json" in members else None
    if listed is None:
        return names
    ordered = [entry["name"] if isinstance(entry, dict) else str(entry) for entry in listed]
    absent = sorted(set(ordered) - set(names))
    if absent:
        raise InputError(f"{path}: cases.json lists {absent[0]}, which has no truth.png; make the archive again")
    return ordered


def _build_case(
    name: str, members: Mapping[str, bytes], levels: Sequence[MaskLevel], path: Path, used: list[str]
) -> Case:
    def read(stem: str) -> np.ndarray:
        member = f"{name}/{stem}.png"
        if member not in members:
            raise InputError(f"{path}: {name} has no {stem}.png; make the archive again")
        used.append(member)
        return decode_image(members[member], f"{path}: {member}")

    def read_mask(stem: str) -> np.ndarray:
        return read(stem)[..., 0] > 127

    references: dict[ViewChange, np.ndarray] = {
        view_change: read(name_reference(view_change)) for view_change in VIEW_CHANGES
    }
    plate, truth = read("plate")[..., :3], read("truth")[..., :3]
    object_mask = read_mask("object_mask")
    shadow_mask = read_mask("shadow_mask") & ~object_mask
    holes: dict[MaskLevel, np.ndarray] = {level: read_mask(f"hole_{level}") | object_mask for level in levels}
    sizes = {picture.shape[:2] for picture in (plate, truth, object_mask, shadow_mask, *holes.values())}
    opaque = any(reference.shape[2] != 4 for reference in references.values())
    if len(sizes) > 1 or opaque or not object_mask.any():
        raise InputError(f"{path}: {name}: sizes differ, a reference has no alpha, or the object is empty")
    return Case(name, references, plate, truth, object_mask, shadow_mask, holes)
