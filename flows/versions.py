"""Data sets as versions: what moves them between clones. DVC's remote carries the bytes, Git the pointers to them.

Products that are missing here come from the remote by DVC's run cache, so that a clone needs neither the other clone's
`dvc.lock` nor its files: the same inputs and code are enough.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.preflight import find_git_problem
from flows.processes import build_environment
from imprint.core.errors import InputError
from imprint.core.outside import load_yaml

DATA_BRANCH = "auto/data"
RETRAIN_BRANCH = "auto/retrain"
_RESULTS = ("dvc.lock", "demo/dvc.lock", "metrics")  # committed beside the `.dvc` files: the bill of materials


class TransferError(RuntimeError):
    """A remote did not answer, or broke off: another try may help."""


@dataclass(frozen=True)
class SyncResult:
    """What a synchronisation brought: names of new or changed files, and how they came."""

    how: Literal["folder", "remote", "nothing"]
    added: tuple[str, ...] = ()


def has_remote(root: Path) -> bool:
    """Whether DVC has a default remote."""
    return bool(run_tool(root, "dvc", "config", "core.remote", may_fail=True))


def fetch_data(root: Path) -> bool:
    """Fetch what `dvc.lock` and `.dvc` files name, and the run cache, into DVC's cache; false without a remote.
    `TransferError`."""
    if not has_remote(root):
        return False
    _transfer(root, "fetch", "--run-cache")
    return True


def checkout_data(root: Path, *, overwrite: bool) -> None:
    """Bring the files of DVC's cache into the work tree; missing ones are left to the stages.

    overwrite: all of them, over whatever lies there. Otherwise only data sets (`.dvc`) whose files are gone, so
    that videos that somebody has put there since are safe.
    """
    absent = [name for name in list_pointers(root) if not (root / name.removesuffix(".dvc")).exists()]
    if overwrite:
        run_tool(root, "dvc", "--wait-for-lock", "checkout", "--allow-missing", "--force")
    elif absent:
        run_tool(root, "dvc", "--wait-for-lock", "checkout", *absent)


def push_data(root: Path) -> bool:
    """Send all outputs and the run cache to the remote; false without one. `TransferError`."""
    if not has_remote(root):
        return False
    _transfer(root, "push", "--run-cache")
    return True


def sync_videos(root: Path, inbox: str = "") -> SyncResult:
    """Bring new videos into the data set `ingest.source` and give it a new version (`dvc add`).

    From the folder `inbox`, by name: a file of another size or content replaces the old one, none is removed. Without
    it from where the data set was imported (`dvc import-url remote://name/path`, `dvc import`); nothing is done
    if it was not imported.
    """
    source = load_yaml(root / "params.yaml")["ingest"]["source"]
    pointer = root / f"{source}.dvc"
    if inbox:
        return _sync_folder(root, source, pointer=pointer, inbox=Path(os.path.expandvars(inbox)).expanduser())
    if not pointer.is_file() or not load_yaml(pointer).get("deps"):
        return SyncResult("nothing")
    before = pointer.read_bytes()
    _transfer(root, "update", pointer.relative_to(root).as_posix())
    return SyncResult("remote", () if pointer.read_bytes() == before else (source,))


def read_output_digest(root: Path, path: str) -> str | None:
    """md5 of an output in `dvc.lock`, DVC's name of its version; none if the stage has never run."""
    lock = root / "dvc.lock"
    stages = (load_yaml(lock) or {}).get("stages", {}) if lock.is_file() else {}
    outs = (out for stage in stages.values() for out in stage.get("outs", ()))
    return next((out["md5"] for out in outs if out["path"] == path), None)


def commit_results(root: Path, branch: str, message: str) -> str | None:
    """Commit `dvc.lock`, `.dvc` files and metrics to `branch`, leaving HEAD, the index and the work tree as they are.

    The commit's parents are HEAD and the branch's last commit, so nothing that was on the branch is lost. Its id; none
    if the branch says the same already.
    """
    names = _list_results(root)
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        run_tool(root, "git", "read-tree", "HEAD", index=index)
        run_tool(root, "git", "add", "--force", "--", *names, index=index)
        tree = run_tool(root, "git", "write-tree", index=index)
    tip = read_tip(root, branch)
    head = run_tool(root, "git", "rev-parse", "HEAD")
    if tree == run_tool(root, "git", "rev-parse", f"{tip or head}^{{tree}}"):
        return None
    parents = [argument for parent in dict.fromkeys(filter(None, (head, tip))) for argument in ("-p", parent)]
    commit = run_tool(root, "git", *choose_committer(root), "commit-tree", tree, *parents, "-m", message)
    run_tool(root, "git", "update-ref", f"refs/heads/{branch}", commit)
    return commit


def fetch_branch(root: Path, remote: str, branch: str) -> None:
    """Bring the local branch up to that of a Git remote, if that has it. `TransferError` also if both have grown."""
    reference = f"refs/heads/{branch}"
    if run_tool(root, "git", "ls-remote", "--heads", remote, reference, error=TransferError):
        run_tool(root, "git", "fetch", "--quiet", remote, f"{reference}:{reference}", error=TransferError)


def push_branch(root: Path, remote: str, branch: str) -> None:
    """Send the branch to a Git remote, if there is such a branch here. `TransferError`."""
    if read_tip(root, branch):
        run_tool(root, "git", "push", "--quiet", remote, f"refs/heads/{branch}", error=TransferError)


def read_tip(root: Path, branch: str) -> str:
    """The branch's last commit; "" without one."""
    return run_tool(root, "git", "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}", may_fail=True)


def _sync_folder(root: Path, source: str, *, pointer: Path, inbox: Path) -> SyncResult:
    if not inbox.is_dir():
        raise InputError(f"{inbox} is no folder; give the folder of new videos (inbox, or IMPRINT_INBOX)")
    if not pointer.is_file():
        raise InputError(
            f"ingest.source = {source} is no data set of DVC's (no {source}.dvc), so videos cannot be added to it; "
            f"`dvc add` a folder and name it in params.yaml"
        )
    added = tuple(_copy_new(inbox, root / source))
    if added:
        run_tool(root, "dvc", "add", "--quiet", source)
    return SyncResult("folder", added)


def _copy_new(inbox: Path, target: Path) -> Iterable[str]:
    """Each file is copied beside its place and then moved there: one that is cut short leaves nothing."""
    for path in sorted(path for path in inbox.rglob("*") if path.is_file() and not path.name.startswith(".")):
        name = path.relative_to(inbox)
        place = target / name
        if place.is_file() and _is_same(path, place):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.part")
        shutil.copy2(path, part)
        part.replace(place)
        yield name.as_posix()


def _is_same(first: Path, second: Path) -> bool:
    """By size and time, which a copy keeps: reading all videos every night would take hours."""
    one, other = first.stat(), second.stat()
    return (one.st_size, int(one.st_mtime)) == (other.st_size, int(other.st_mtime))


def list_pointers(root: Path) -> list[str]:
    """The `.dvc` files of the project's data sets, outside of what is generated."""
    known = run_tool(root, "git", "ls-files", "--cached", "--others", "--exclude-standard", "--", "*.dvc")
    return sorted(set(known.splitlines()))


def _list_results(root: Path) -> list[str]:
    pointers = list_pointers(root)
    ignores = {str(Path(name).parent / ".gitignore") for name in pointers}  # `dvc add` wrote the data's name there
    names = {*_RESULTS, *pointers, *ignores}
    return sorted(name for name in names if (root / name).exists())


def choose_committer(root: Path) -> list[str]:
    """Options of `git` that name a committer on machines where it knows none."""
    if run_tool(root, "git", "config", "user.email", may_fail=True):
        return []
    return ["-c", "user.name=imprint", "-c", "user.email=imprint@localhost"]


def _transfer(root: Path, *arguments: str) -> None:
    run_tool(root, "dvc", "--wait-for-lock", *arguments, error=TransferError)


def run_tool(
    root: Path,
    *command: str,
    may_fail: bool = False,
    error: type[Exception] = RuntimeError,
    index: Path | None = None,
) -> str:
    """The output of a DVC or Git command. It raises `error` with its last line, or gives "" if it `may_fail`.

    index: a Git index in the place of the repository's.
    """
    settings = build_environment(root, **({"GIT_INDEX_FILE": str(index)} if index else {}))
    done = subprocess.run(command, cwd=root, env=settings, capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout.strip()
    if may_fail:
        return ""
    if command[0] == "git" and (problem := find_git_problem(root)):
        raise InputError(f"{root}: {problem}")
    reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no output")
    raise error(f"{root}: {' '.join(command[:3])} failed: {reason}")
