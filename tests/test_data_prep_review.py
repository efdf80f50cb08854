"""`imprint data review`: the server by HTTP, and its page in a browser by the keys."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_prep.decisions import load_decisions, save_decisions
from data_prep.review.catalog import load_catalog
from data_prep.review.server import VIEW_PX, Review, Verdicts, run_review
from flows.cli import app
from imprint.core.errors import InputError
from imprint.core.pixels import decode_image
from imprint.core.records import MaskRecord, PairRecord, load_records, save_records
from tests.browser import CHROMIUM, open_browser
from tests.source_tree import ROOT


@pytest.fixture(scope="module")
def project(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared data, to be reviewed."""
    root = tmp_path_factory.mktemp("review")
    (root / "data").mkdir()
    for name in ("clips.parquet", "pairs.parquet", "frames", "masks"):
        (root / "data" / name).symlink_to(prepared / "data" / name)
    return root


@pytest.fixture(autouse=True)
def _nothing_decided(project: Path) -> None:
    save_decisions([], project)


@pytest.fixture(scope="module")
def address(project: Path) -> Iterator[str]:
    """Of the page, as the command prints it."""
    command = [sys.executable, "-m", "data_prep", "review", "--no-browser"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        match = re.fullmatch(r"Review: (http://127\.0\.0\.1:\d+/\S{16,}/)\n", process.stdout.readline())
        assert match
        yield match[1]
        process.terminate()


def ask(address: str, path: str = "", body: object = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    url = urllib.parse.urlparse(address)
    connection = http.client.HTTPConnection(url.netloc, timeout=60)
    data = None if body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", url.path + path, data, headers)
    answer = connection.getresponse()
    return answer.status, answer.read(), dict(answer.getheaders())


def read(address: str, path: str) -> dict:
    status, body, _ = ask(address, path)
    assert status == 200
    return json.loads(body)


# --- the server -----------------------------------------------------------------------------------------------------


def test_every_track_and_pair_is_an_item_and_its_pictures_show_the_outline(project, address):
    items = read(address, "items")["items"]
    pairs = load_records(project / "data/pairs.parquet", PairRecord)
    kinds = [item["kind"] for item in items]
    masks = load_records(project / "data/masks/index.parquet", MaskRecord)
    assert kinds.count("track") == len({(row.clip_id, row.track) for row in masks})
    assert len(items) - kinds.count("track") == len(pairs)
    assert len({item["id"] for item in items}) == len(items)
    pair = next(item for item in items if item["kind"] == "video")
    assert len(pair["views"]) == 2
    for view in pair["views"]:
        status, body, headers = ask(address, view)
        assert (status, headers["content-type"]) == (200, "image/jpeg")
        picture = decode_image(body, view).astype(int)
        assert picture.shape == (VIEW_PX, VIEW_PX, 3)
        cyan = (picture[..., 1:] - picture[..., :1] > 60).all(axis=2)
        assert cyan.sum() > VIEW_PX  # the outline; neither objects nor walls have that colour
    assert ask(address, "views/nothing/1/0.jpg")[0] == 404


def test_a_decision_is_on_disk_when_the_answer_comes_and_can_be_taken_back(project, address):
    item = read(address, "items")["items"][-1]["id"]
    status, body, _ = ask(address, "decisions", {"id": item, "decision": "drop", "note": "a,\n b"})
    assert (status, json.loads(body)) == (200, {item: {"decision": "drop", "note": "a, b"}})
    (line,) = load_decisions(project)
    assert (line.decision, line.note, f"{line.kind}:{line.clip_id}") == ("drop", "a, b", ":".join(item.split(":")[:2]))
    ask(address, "decisions", {"id": item, "decision": "keep", "note": ""})
    assert [line.decision for line in load_decisions(project)] == ["keep"]
    ask(address, "decisions", {"id": item, "decision": "", "note": ""})
    assert load_decisions(project) == []
    assert ask(address, "decisions", {"id": "track:none:1", "decision": "drop"})[0] == 404
    assert ask(address, "decisions", {"id": item, "decision": "maybe"})[0] == 400


def test_nobody_else_can_read_or_write(address):
    port = urllib.parse.urlparse(address).netloc
    for path in ("", "items", "decisions"):
        assert ask(address, path, Host="evil.example")[0] == 400  # a foreign name that was pointed to loopback
        assert ask(f"http://{port}/", path)[0] == 404  # a page that knows the port, but not the secret
        assert ask(f"http://{port}/{'x' * 22}/", path)[0] == 404
    assert ask(f"http://{port}/", "decisions", {"id": "x", "decision": "drop"})[0] in (404, 405)
    _, page, headers = ask(address)
    assert "default-src 'self'" in headers["content-security-policy"]
    assert re.findall(rb"https?://[^\s\"'<]+", page) == []


def test_writers_in_several_processes_and_threads_lose_nothing(project):
    reviews = [Review(project), Review(project)]
    ids = list(reviews[0].catalog.items)[-24:]
    threads = [
        threading.Thread(
            target=lambda own, part: [own.write(Verdicts(id=name, decision="drop")) for name in part], args=args
        )
        for args in ((reviews[0], ids[0::3]), (reviews[1], ids[1::3]), (reviews[1], ids[2::3]))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(reviews[0].read()) == set(ids)


def test_lines_that_fit_nothing_stay_and_a_dropped_pair_can_be_found_after_mining(project, prepared):
    review = Review(project)
    name = next(name for name in review.catalog.items if name.startswith("video"))
    review.write(Verdicts(id=name, decision="drop"))
    (line,) = load_decisions(project)
    pairs = load_records(project / "data/pairs.parquet", PairRecord)
    (project / "data/pairs.parquet").unlink()
    low, high = sorted((line.frame, line.target_frame))
    left = [
        p
        for p in pairs
        if (p.kind, p.clip_id, *sorted((p.reference_index, p.target_index))) != ("video", line.clip_id, low, high)
    ]
    try:
        save_records(project / "data/pairs.parquet", PairRecord, left)
        assert len(left) == len(pairs) - 1
        assert name in load_catalog([line], project).items
        assert name not in load_catalog([], project).items
    finally:
        (project / "data/pairs.parquet").unlink()
        (project / "data/pairs.parquet").symlink_to(prepared / "data/pairs.parquet")
    with (project / "review/decisions.csv").open("a") as file:
        file.write("gone,track,0,0,1 2 3 4,drop,\n")
    assert Review(project).num_stale == 1
    review.write(Verdicts(id=name, decision=""))
    assert [line.clip_id for line in load_decisions(project)] == ["gone"]


def test_a_taken_port_and_missing_data_end_in_one_line(project, address, tmp_path, monkeypatch):
    port = urllib.parse.urlparse(address).port
    with pytest.raises(InputError, match=f"port {port} cannot be had"):
        run_review(port, browser=False, root=project)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["data", "review", "--no-browser"])
    assert done.exit_code == 2
    assert done.stderr == "review: data/frames/index.parquet is missing; run `dvc repro` first\n"


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    CHROMIUM is None, reason="the page is driven in a real browser; no Chromium is on PATH (apt install chromium)"
)
def test_the_keys_decide_and_two_pages_do_not_lose_each_others_decisions(project, address, tmp_path):
    tracks = [item["id"] for item in read(address, "items")["items"] if item["kind"] == "track"]
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)
    with open_browser(tmp_path / "profile", num_pages=2) as (first, second):
        for page in (first, second):
            page.open(address)
            page.wait_for(
                "document.querySelectorAll('#views img').length > 3 && [...document.images].every(i => i.complete)"
            )
        assert first.evaluate("[...document.images].every(image => image.naturalWidth > 0)")

        first.press("d")
        first.press("k")
        first.press("e")
        first.evaluate("document.activeElement.value = 'two objects'")
        first.press("Enter")
        first.press("d")
        first.wait_for("waiting === 0 && undone.length === 3")
        assert first.evaluate("place") == 3
        verdicts = {name: (of["decision"], of["note"]) for name, of in read(address, "decisions").items()}
        assert verdicts == {tracks[0]: ("drop", ""), tracks[1]: ("keep", ""), tracks[2]: ("drop", "two objects")}
        assert first.evaluate("document.getElementById('progress').textContent").startswith(
            f"3 of {len(tracks)} decided: 1 kept, 2 dropped"
        )

        second.press("ArrowRight")  # it shows the second track, and has not heard of the first page's decisions
        second.press("d")
        second.wait_for("waiting === 0 && undone.length === 1")
        first.press("u")
        first.wait_for("waiting === 0 && undone.length === 2")
        verdicts = {name: of["decision"] for name, of in read(address, "decisions").items()}
        assert verdicts == {tracks[0]: "drop", tracks[1]: "drop"}

        second.press("3")  # video pairs: of those of a dropped track nothing is left to decide
        second.wait_for("document.querySelectorAll('#views img').length === 2")
        shown = second.evaluate("list.map(item => item.id.split(':').slice(1, 3).join(':'))")
        assert not {name.removeprefix("track:") for name in tracks[:2]} & set(shown)
        assert second.evaluate("document.querySelectorAll('#track img').length") > 3
        assert {
            urllib.parse.urlparse(url).hostname
            for page in (first, second)
            for url in page.requests
            if url[:5] != "data:"
        } == {"127.0.0.1"}
