"""What must be there before an install: Python, two system libraries, a clone that Git accepts. Run by make, standard
library only."""

import ctypes
import os
import shutil
import subprocess
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
    git = find_git_problem()
    return [*problems, git] if git else problems


def find_git_problem(folder: "str | os.PathLike[str]" = ".") -> str:
    """Why Git, which DVC needs, does not take the folder for a clone, with the remedy; an empty string if it does."""
    if shutil.which("git") is None:
        return "git is missing, DVC needs it: sudo apt-get install git"
    command = ["git", "-C", str(folder), "rev-parse", "--git-dir"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return ""
    if "dubious ownership" in done.stderr:
        remedy = 'git config --global --add safe.directory "$PWD"'
        return f"the folder is another user's, and Git does not trust it: give it yourself (chown -R), or {remedy}"
    if "not a git repository" in done.stderr:
        return "the folder is no Git clone, which DVC needs (a downloaded ZIP is none): git clone it, or git init here"
    return f"git does not take the folder for a clone: {' '.join(done.stderr.split())[:300]}"


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
