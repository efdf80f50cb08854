"""Unpacks the shipped clips: `python -m demo.unpack [--out data/raw/demo]`. Standard library only.

Writes `clips/*.mp4`, `masks/*.png` and `clips.json` in one rename: the folder is the whole archive or the old one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

ARCHIVE = Path(__file__).parent / "assets" / "clips.tar"


def check_member(member: tarfile.TarInfo) -> None:
    """Raise `ValueError` for anything but a plain file below the target folder."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise ValueError(f"{member.name!r} would be written outside the target folder; get the archive anew")
    if not member.isfile():
        raise ValueError(f"{member.name!r} is no plain file; get the archive anew")


def unpack(archive: Path, target: Path) -> int:
    """Replace `target` by the files of the archive; returns their number.

    `ValueError` for an unsafe member, before anything is written.
    """
    with tarfile.open(archive, "r:") as tar:
        members = tar.getmembers()
        for member in members:
            check_member(member)
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            for member in members:
                path = staged / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None
                with source, path.open("wb") as file:
                    shutil.copyfileobj(source, file)
            staged.chmod(0o755)
            if target.exists():  # it steps aside whole: a kill leaves the one beside the other
                old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
                os.replace(target, old)
                os.replace(staged, target)
                shutil.rmtree(old)
            else:
                os.replace(staged, target)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
    return len(members)


def main() -> int:
    """Entry point: exit code 2 and one line for a missing or damaged archive."""
    parser = argparse.ArgumentParser(prog="python -m demo.unpack", description=__doc__)
    parser.add_argument("--archive", type=Path, default=ARCHIVE, help="tar to unpack (default: the shipped clips)")
    parser.add_argument("--out", type=Path, default=Path("data/raw/demo"), help="folder to write (default %(default)s)")
    args = parser.parse_args()
    try:
        count = unpack(args.archive, args.out)
    except FileNotFoundError:
        print(f"error: {args.archive} is missing: restore it with git, or name another with --archive", file=sys.stderr)
        return 2
    except (tarfile.TarError, ValueError) as error:
        print(f"error: {args.archive} cannot be unpacked: {error}", file=sys.stderr)
        return 2
    print(f"{count} files in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
