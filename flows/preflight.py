"""What must be there before an install: Python and two system libraries. Run by make, standard library only."""

import ctypes
import sys

MIN_PYTHON = (3, 11)
LIBRARIES = {"libGL.so.1": "libgl1", "libglib-2.0.so.0": "libglib2.0-0"}  # OpenCV loads them; name => Debian package


def find_problems() -> list[str]:
    """One line per thing that is missing, with its remedy."""
    problems = []
    if sys.version_info[:2] < MIN_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        problems.append(f"Python {found} is too old: 3.11 or newer is needed (make PYTHON=/path/to/python3.11 ...)")
    missing = {name: package for name, package in LIBRARIES.items() if not _can_load(name)}
    if missing:
        names, packages = " and ".join(missing), " ".join(missing.values())
        problems.append(f"{names} is missing, OpenCV needs it: sudo apt-get install {packages}")
    return problems


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    found_problems = find_problems()
    for line in found_problems:
        print(line, file=sys.stderr)
    sys.exit(2 if found_problems else 0)
