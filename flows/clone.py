"""A clone of the project for scheduled training: it starts from committed code and never touches the user's tree.

`python -m flows.clone NAME` makes or refreshes `work/clones/NAME` of the project in the current folder and prints its
path; `prefect.yaml` calls it as a pull step. The clone shares the project's DVC cache and keeps its work folders from
run to run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flows.preflight import find_git_problem
from flows.versions import DATA_BRANCH, choose_committer, fetch_branch, read_tip, run_tool
from imprint.core.errors import InputError
from imprint.core.outside import exit_in_one_line

FOLDER = Path("work/clones")


def refresh_clone(home: Path, name: str) -> Path:
    """The clone at HEAD of `home`, merged with the data branch, so that code and settings are those that somebody
    committed and the data set is last night's. Where both changed the same data set, HEAD's is taken."""
    home = home.resolve()
    if problem := find_git_problem(home):
        raise InputError(f"{home}: {problem}")
    if remote := os.environ.get("IMPRINT_GIT_REMOTE"):
        fetch_branch(home, remote, DATA_BRANCH)
    folder = home / FOLDER / name
    if not (folder / ".git").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        run_tool(home, "git", "clone", "--quiet", "--no-checkout", str(home), str(folder))
    commits = [commit for commit in (run_tool(home, "git", "rev-parse", "HEAD"), read_tip(home, DATA_BRANCH)) if commit]
    run_tool(folder, "git", "fetch", "--quiet", "origin", *commits)
    run_tool(folder, "git", "checkout", "--quiet", "--force", "--detach", commits[0])
    run_tool(folder, "git", "clean", "--quiet", "--force", "-d")  # a lock file of the last run; what is ignored stays
    for tip in commits[1:]:
        run_tool(folder, "git", *choose_committer(folder), "merge", "--quiet", "--no-edit", "-X", "ours", tip)
    _share_dvc_settings(home, folder)
    return folder


def _share_dvc_settings(home: Path, folder: Path) -> None:
    """The cache of `home`; its local settings, which hold what no commit should, such as a remote's secrets; and its
    remotes that are folders, which may be named relative to `home`."""
    from dvc.repo import Repo

    local = home / ".dvc" / "config.local"
    copy = folder / ".dvc" / "config.local"
    copy.unlink(missing_ok=True)
    if local.is_file():
        copy.write_bytes(local.read_bytes())
        copy.chmod(0o600)
    run_tool(folder, "dvc", "cache", "dir", "--local", str(home / ".dvc" / "cache"))
    with Repo(str(home)) as repo:
        urls = {name: str(remote["url"]) for name, remote in repo.config["remote"].items()}
    for name, url in urls.items():
        if Path(url).is_absolute():
            run_tool(folder, "dvc", "remote", "modify", "--local", name, "url", url)


if __name__ == "__main__":
    with exit_in_one_line("clone"):
        print(refresh_clone(Path.cwd(), sys.argv[1]))
