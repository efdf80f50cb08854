"""Packs rendered clips and cases into the shipped tars: sorted names, no times, no owners."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from demo.catalogue import NUM_CASES, NUM_CLIPS, clip_entry


def write_tar(target: Path, members: dict[str, bytes]) -> None:
    """Write the members in the order of their names; the same members give the same bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(members):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(members[name]), 0o644, 0
            archive.addfile(info, io.BytesIO(members[name]))
    partial.rename(target)


def pack_clips(folder: Path, assets: Path, chosen: Iterable[int] = range(NUM_CLIPS)) -> None:
    """Encode clips, all unless some are chosen, and write `clips.tar`: clips/*.mp4, masks/*.png, clips.json."""
    from demo.encode import encode_clip

    members, records = {}, []
    with tempfile.TemporaryDirectory() as scratch:
        for index in chosen:
            name = clip_entry(index).name
            movie = Path(scratch) / f"{name}.mp4"
            encode_clip(folder / f"{name}.frames.png", movie)
            members[f"clips/{name}.mp4"] = movie.read_bytes()
            members[f"masks/{name}.png"] = (folder / f"{name}.masks.png").read_bytes()
            records.append(json.loads((folder / f"{name}.json").read_text()))
    members["clips.json"] = (json.dumps(records, indent=1) + "\n").encode()
    write_tar(assets / "clips.tar", members)


def pack_cases(folder: Path, assets: Path) -> None:
    """Write `cases.tar`: cases/<name>/*.png and case.json, cases.json with all records."""
    members, records = {}, []
    for index in range(NUM_CASES):
        name = f"case_{index:03d}"
        for path in sorted((folder / name).iterdir()):
            members[f"cases/{name}/{path.name}"] = path.read_bytes()
        records.append(json.loads(members[f"cases/{name}/case.json"]))
    members["cases.json"] = (json.dumps({"cases": records}) + "\n").encode()
    write_tar(assets / "cases.tar", members)
