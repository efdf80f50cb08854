"""What the world does to a command ends in one line with the culprit and the remedy, and exit code 2."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest
import requests
import yaml

from imprint.core.errors import InputError
from imprint.core.outside import exit_in_one_line, explain, is_transient, load_json, load_yaml, reach_loopback_directly
from imprint.core.params import load_params
from imprint.core.stage import read_dvc_digests, run_command

CONFLICT = "schema: '2.0'\nstages:\n<<<<<<< HEAD\n  a: {}\n=======\n  b: {}\n>>>>>>> auto/data\n"


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\x00" * 40, b"\xff\xfe{}", CONFLICT.encode()])
def test_a_damaged_record_names_its_file_and_the_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(InputError, match=r"record\.json is damaged \(.*\); restore it .*or delete it"):
        load_json(tmp_path / "record.json")


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "owner"),
        (errno.ENOENT, "check the path"),
        (errno.EISDIR, "move it away"),
        (errno.EMFILE, "ulimit"),
        (errno.EIO, "the disk fails"),
    ],
)
def test_errors_of_the_system_name_the_file_and_the_remedy(
    number: int, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"), exit_in_one_line("composite"):
        fail(OSError(number, os.strerror(number), "out.png"))
    line = capsys.readouterr().err
    assert line.startswith("composite: out.png cannot be")
    assert remedy in line
    assert line.count("\n") == 1


def test_bugs_keep_their_traceback() -> None:
    for error in (KeyError("x"), AssertionError("x"), OSError(errno.EINVAL, "x"), RuntimeError("x")):
        assert explain(error) is None
        with pytest.raises(type(error)), exit_in_one_line("composite"):
            fail(error)


def test_texts_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    for data, told in (
        (b"a: 1\n# M\xfcller\n", "no UTF-8 .line 2."),
        (CONFLICT.encode(), "conflict markers"),
        (b"a:\n\tb: 1\n", "no valid YAML"),
        (b"a: 2026-99-99\n", "no valid YAML"),
    ):
        path.write_bytes(data)
        for load in (load_yaml, load_params):
            with pytest.raises(InputError, match=f"params.yaml .*{told}"):
                load(path)
    path.write_bytes("\ufeffa: 1\r\nb: ü\r\n".encode())
    assert load_yaml(path) == {"a": 1, "b": "ü"}


def test_a_half_merged_lock_says_how_to_end_the_merge(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(CONFLICT)
    with pytest.raises(InputError, match=r"dvc\.lock has the conflict markers.*dvc repro"):
        read_dvc_digests(tmp_path)


def test_servers_and_databases_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://away:5000")
    away = "API request to http://away:5000/api failed with exception HTTPConnectionPool(host='away'):\n max retries"
    old = "Detected out-of-date database schema (found version 1, but expected 2)."
    for error, told in (
        (MlflowException(away), "http://away:5000 does not answer; start the server"),
        (requests.exceptions.ConnectionError("refused"), "does not answer"),
        (MlflowException(old), "mlflow db upgrade"),
        (OperationalError("select", {}, sqlite3.OperationalError("database or disk is full")), "make room"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "permissions"),
        (sqlite3.DatabaseError("file is not a database"), "restore it"),
        (yaml.YAMLError("bad"), "no valid YAML"),
        (UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed"), "no UTF-8"),
    ):
        message = explain(error)
        assert message is not None
        assert told in message
        assert "\n" not in message
    assert is_transient(requests.exceptions.ConnectionError())
    assert not is_transient(OSError(errno.ENOSPC, "full"))


def test_a_stage_whose_record_cannot_be_written_still_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file stands where the record's folder should be, which no owner may get around, root neither."""
    (tmp_path / "work").write_text("in the way")
    with pytest.raises(SystemExit, match="2"):
        run_command("ingest", lambda: fail(OSError(errno.ENOSPC, "No space left on device", "data/clips")), tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert any("error.json cannot be written" in line for line in lines)
    assert lines[-1].startswith("ingest: ")
    assert (tmp_path / "work").read_text() == "in the way"


def test_loopback_is_asked_past_any_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "intranet")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    reach_loopback_directly()
    assert requests.utils.should_bypass_proxies("http://127.0.0.1:4200/api", no_proxy=None)
    assert requests.utils.should_bypass_proxies("http://intranet/", no_proxy=None)
    assert not requests.utils.should_bypass_proxies("http://example.org/", no_proxy=None)


def test_a_store_that_cannot_be_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imprint.tracking.store import open_store

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "what?").mkdir()
    with pytest.raises(InputError, match="rename the folder"):
        open_store(tmp_path / "what?")
    for uri in ("databricks", "./mlruns"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(InputError, match="neither a server nor a database"):
            open_store(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["what?"]


def test_a_folder_that_is_no_clone_is_told_before_the_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    from flows.clone import refresh_clone
    from flows.demo import run_demo
    from flows.preflight import find_git_problem

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "git clone" in find_git_problem(tmp_path)
    for act in (lambda: run_demo(root=tmp_path), lambda: refresh_clone(tmp_path, "weekly")):
        with pytest.raises(InputError, match="no Git clone"):
            act()
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert find_git_problem(tmp_path) == ""
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert "safe.directory" in find_git_problem(tmp_path)


def test_a_disk_that_takes_no_more_is_told_with_the_file_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import resource

    from imprint.core.files import write_bytes_atomic

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(SystemExit, match="2"), exit_in_one_line("composite"):
            write_bytes_atomic(tmp_path / "out.png", bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capsys.readouterr().err.startswith(f"composite: {tmp_path / 'out.png'} cannot be written (File too large)")
    assert list(tmp_path.iterdir()) == []
