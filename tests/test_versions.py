"""Data sets as versions: new videos, what changed, back to the first data set, and a second clone that runs nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flows.clone import refresh_clone
from flows.versions import (
    DATA_BRANCH,
    SyncResult,
    TransferError,
    checkout_data,
    commit_results,
    fetch_branch,
    fetch_data,
    push_branch,
    push_data,
    read_output_digest,
    sync_videos,
)
from imprint.core.errors import InputError
from tests.operations_project import MEANS, build_operations_project, commit_all, run
from tests.registered_models import write_evaluation


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a project in which everything has run, committed and pushed; not to be changed."""
    folder = tmp_path_factory.mktemp("versions")
    root = build_operations_project(folder)
    run(root, "dvc", "repro", "--quiet")
    assert push_data(root)
    run(root, "git", "add", "--force", "dvc.lock", "metrics")
    commit_all(root, "First run")
    return folder


@pytest.fixture
def project(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy" / "project"


def test_a_new_clip_shows_in_the_diffs_and_the_first_data_set_comes_back(project: Path) -> None:
    first = read_output_digest(project, "data/shards")
    inbox = project.parent / "inbox" / "more"
    inbox.mkdir(parents=True)
    (inbox / "three.mp4").write_text("three")
    (inbox.parent / ".hidden").write_text("is not a video")
    assert sync_videos(project, str(inbox.parent)).added == ("more/three.mp4",)
    assert sync_videos(project, str(inbox.parent)).added == ()
    (project / "videos" / "more" / "three.mp4").rename(project / "videos" / "three.mp4")
    (project / "videos" / "more").rmdir()
    run(project, "dvc", "add", "videos")
    write_evaluation(project / "given", MEANS | {"near_psnr_db": 21.0})
    run(project, "dvc", "repro", "--quiet")
    assert (project / "work" / "made").read_text().split() == ["one.mp4", "two.mp4", "three.mp4"]  # the first two once
    added = json.loads(run(project, "dvc", "diff", "--json"))["added"]
    assert {"data/shards/three.mp4", "videos/three.mp4"} <= {entry["path"] for entry in added}
    metrics = json.loads(run(project, "dvc", "metrics", "diff", "--json"))
    assert metrics["metrics/evaluation.json"]["near_psnr_db"] == {"old": 20.0, "new": 21.0, "diff": 1.0}
    run(project, "git", "add", "--force", "dvc.lock", "metrics")
    commit_all(project, "Second data set")
    assert read_output_digest(project, "data/shards") != first

    run(project, "git", "checkout", "--quiet", "HEAD~1")
    run(project, "dvc", "checkout")
    assert sorted(path.name for path in (project / "videos").iterdir()) == ["one.mp4", "two.mp4"]
    assert sorted(path.name for path in (project / "data" / "shards").iterdir()) == ["one.mp4", "two.mp4"]
    assert read_output_digest(project, "data/shards") == first
    assert "up to date" in run(project, "dvc", "repro")


def test_a_second_clone_pulls_and_repro_runs_nothing(project: Path) -> None:
    second = project.parent / "second"
    run(project, "git", "clone", "--quiet", str(project), str(second))
    run(second, "dvc", "pull")
    assert (second / "models" / "compositor" / "imprint.json").is_file()
    assert "Data and pipelines are up to date." in run(second, "dvc", "repro")


def test_a_clone_of_the_first_commit_gets_the_products_from_the_remote_alone(project: Path) -> None:
    """No lock file there: DVC's run cache knows what the same inputs gave elsewhere. Only the evaluation, whose metrics
    are in Git and not in DVC's cache, is made again."""
    second = project.parent / "second"
    run(project, "git", "clone", "--quiet", str(project), str(second))
    (second / "dvc.lock").unlink()
    assert fetch_data(second)
    checkout_data(second, overwrite=False)
    assert (second / "videos" / "two.mp4").is_file()
    told = run(second, "dvc", "repro", "--pull")
    assert told.count("is cached - skipping run") == 6
    assert told.count("Running stage") == 1
    assert not (second / "work").exists()


def test_results_are_committed_beside_the_users_work(project: Path) -> None:
    (project / "notes.txt").write_text("unfinished")
    (project / "extract.sh").write_text("unfinished")
    (project / "videos" / "three.mp4").write_text("three")
    run(project, "dvc", "add", "videos")
    head, status = run(project, "git", "rev-parse", "HEAD"), run(project, "git", "status", "--porcelain")
    first = commit_results(project, DATA_BRANCH, "Data set x")
    assert first
    assert commit_results(project, DATA_BRANCH, "Data set x") is None
    assert run(project, "git", "rev-parse", "HEAD") == head
    assert run(project, "git", "status", "--porcelain") == status
    assert run(project, "git", "diff", "--name-only", head, DATA_BRANCH) == "videos.dvc"
    (project / "videos" / "four.mp4").write_text("four")
    run(project, "dvc", "add", "videos")
    second = commit_results(project, DATA_BRANCH, "Data set y")
    assert run(project, "git", "log", "-1", "--format=%P", DATA_BRANCH) == f"{head} {first}"

    other = project.parent / "other"
    run(project, "git", "clone", "--quiet", "--bare", str(project), str(other))
    fetch_branch(project, str(other), DATA_BRANCH)
    push_branch(project, str(other), DATA_BRANCH)
    assert run(other, "git", "rev-parse", DATA_BRANCH) == second
    with pytest.raises(TransferError, match="git ls-remote"):
        fetch_branch(project, str(project.parent / "nowhere"), DATA_BRANCH)


def test_the_retraining_clone_has_committed_code_and_last_nights_data(project: Path) -> None:
    (project / "videos" / "three.mp4").write_text("three")
    run(project, "dvc", "add", "videos")
    commit_results(project, DATA_BRANCH, "Data set x")
    run(project, "git", "restore", "--staged", "videos.dvc")
    (project / "extract.sh").write_text("committed later")
    run(project, "git", "commit", "--quiet", "--message", "Better code", "extract.sh")
    (project / "dvc.yaml").write_text("unfinished")
    clone = refresh_clone(project, "weekly")
    checkout_data(clone, overwrite=True)  # from the cache that it shares: nothing was pushed
    assert (clone / "videos" / "three.mp4").is_file()
    assert (clone / "extract.sh").read_text() == "committed later"
    assert (clone / "dvc.yaml").read_text() != "unfinished"
    shutil.rmtree(project.parent / "remote")
    assert push_data(clone)
    assert (project.parent / "remote" / "files").is_dir()  # though it is named relative to the project
    (clone / "dvc.lock").write_text("left by an earlier run")
    (clone / "new.dvc").write_text("left by an earlier run")
    assert refresh_clone(project, "weekly") == clone
    assert "stages:" in (clone / "dvc.lock").read_text()
    assert not (clone / "new.dvc").exists()


def test_an_imported_data_set_is_brought_up_to_date(project: Path) -> None:
    elsewhere = project.parent / "elsewhere"
    (project / "videos").rename(elsewhere)
    run(project, "dvc", "remove", "videos.dvc")
    run(project, "dvc", "import-url", "--quiet", str(elsewhere), "videos")
    assert sync_videos(project) == SyncResult("remote")
    (elsewhere / "three.mp4").write_text("three")
    assert sync_videos(project) == SyncResult("remote", ("videos",))
    assert (project / "videos" / "three.mp4").read_text() == "three"


def test_mistakes_are_named(project: Path) -> None:
    with pytest.raises(InputError, match="nowhere is no folder"):
        sync_videos(project, str(project / "nowhere"))
    assert sync_videos(project).how == "nothing"
    (project / "videos.dvc").unlink()
    with pytest.raises(InputError, match=r"no videos\.dvc"):
        sync_videos(project, str(project))
    shutil.rmtree(project.parent / "remote")
    (project.parent / "remote").write_text("not a folder")
    with pytest.raises(TransferError, match="dvc --wait-for-lock push failed"):
        push_data(project)
    run(project, "dvc", "remote", "default", "--unset")
    assert not push_data(project)
