"""`imprint status`: a screen that works before anything ran, changes nothing, and shows what is there."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from flows.prefect_api import close_orphans, list_runs
from flows.promotion import promote, run_gate
from flows.registry import COMPOSITOR, DATA_COUNTS_TAG, DATA_TAG
from flows.status import measure_bytes, print_status
from imprint.tracking.store import open_store
from tests.registered_models import PERFECT, add_pair
from tests.source_tree import ROOT

GOOD = dict.fromkeys(("identity_top1", "log_sharpness", "gradient_agreement", "outline_iou"), 0.5) | dict.fromkeys(
    ("near_psnr_db", "shadow_psnr_db", "surround_psnr_db"), 20.0
)
OUT = {"path": "data/shards", "md5": "0123456789abcdef.dir", "size": 51_000_000, "nfiles": 5}


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{find_free_port()}/api")


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def show(root: Path) -> str:
    console = Console(width=100, record=True, file=(root.parent / "screen").open("w"))
    print_status(root, console)
    return console.export_text()


def test_a_fresh_clone_is_told_what_to_do_and_stays_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "clone"
    root.mkdir()
    screen = show(root)
    for words in ("no model is registered yet: `make demo`", "no Prefect server at", "no shards yet", "dvc gc"):
        assert words in screen
    assert list(root.iterdir()) == []


def test_the_screen_shows_models_data_and_growth(tmp_path: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    shutil.copy(ROOT / "gate.yaml", root)
    first = add_pair(root, "a" * 64, GOOD | PERFECT)
    client, _ = open_store(root)
    client.set_model_version_tag(COMPOSITOR.name, first, DATA_TAG, "fedcba9876543210.dir")
    client.set_model_version_tag(COMPOSITOR.name, first, DATA_COUNTS_TAG, json.dumps({"clips": 72.0, "pairs": 900.0}))
    promote(COMPOSITOR.name, first, reason="by hand", root=root)
    add_pair(root, "b" * 64, GOOD | PERFECT | {"near_psnr_db": 18.25})
    run_gate(root)
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": {"pack_shards": {"outs": [OUT]}}}))
    counts = {"totals": {"clips": 80, "pairs": 900, "share": 0.5}, "clips": {"a.mp4": {"frames": 7}}}
    (root / "metrics" / "data.json").write_text(json.dumps(counts))
    screen = show(root)
    lines = {line.split()[0]: line.split()[1:] for line in screen.splitlines() if line.strip()}
    assert lines["version"] == ["1", "2"]
    assert lines["gate"] == ["-", "keep", "worse"]
    assert [round(float(cell)) for cell in lines["near_psnr_db"]] == [20, 18]
    assert "version 01234567, 51 MB in 5 files; the champion was trained on fedcba98" in screen
    assert "clips 80 (+8 since the champion), pairs 900" in screen
    assert "share" not in screen
    assert "a.mp4" not in screen
    assert max(len(line) for line in screen.splitlines()) <= 100
    # a challenger of another protocol has no number beside the champion's
    add_pair(root, "c" * 64, GOOD | PERFECT, protocol="fedcba987654")
    lines = {line.split()[0]: line.split()[1:] for line in show(root).splitlines() if line.strip()}
    assert (lines["version"], lines["outline_iou"][1]) == (["1", "3"], "-")


def test_a_dead_mlflow_server_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{find_free_port()}")
    assert "does not answer" in show(tmp_path)


def test_sizes_count_files_once_and_follow_no_links(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"12345")
    (tmp_path / "a" / "b" / "two").write_bytes(b"1234567")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a")
    links = (tmp_path / "a" / "link").lstat().st_size
    assert measure_bytes(tmp_path / "a") == 12 + links
    assert measure_bytes(tmp_path / "c") is None


def test_what_goes_while_it_is_measured_counts_nothing(tmp_path: Path) -> None:
    """Trainings remove checkpoints, and stages their scratch folders, at any moment."""
    is_over = threading.Event()

    def come_and_go() -> None:
        while not is_over.is_set():
            for number in range(8):
                (tmp_path / "work" / str(number) / "deep").mkdir(parents=True)
                (tmp_path / "work" / str(number) / "deep" / "file").write_bytes(b"1")
            shutil.rmtree(tmp_path / "work")

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        sizes = [measure_bytes(tmp_path / "work") for _ in range(3000)]
    finally:
        is_over.set()
        other.join()
    assert all(size is None or 0 <= size <= 8 for size in sizes)


# --- Prefect --------------------------------------------------------------------------------------------------------


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/api"


def test_a_server_that_never_answers_is_given_up(silent_server: str) -> None:
    with pytest.raises(OSError, match="timed out"):
        list_runs(silent_server)


def test_runs_and_the_schedule_come_from_the_server(
    tmp_path: Path, prefect_server: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = prefect_server["PREFECT_API_URL"]
    monkeypatch.setenv("PREFECT_API_URL", url)
    monkeypatch.setattr("flows.prefect_api.TIMEOUT_S", 60.0)  # a busy machine
    flow = post(f"{url}/flows/", {"name": "seen-by-status"})["id"]
    failed = {"type": "FAILED", "name": "Failed", "message": "as told"}
    post(f"{url}/flow_runs/", {"flow_id": flow, "name": "gone", "state": failed})
    for day in (3, 2):
        details = {"scheduled_time": f"2020-01-0{day}T04:30:00Z"}
        post(f"{url}/flow_runs/", {"flow_id": flow, "state": {"type": "SCHEDULED", "state_details": details}})
    last, upcoming = list_runs(url)
    assert ("seen-by-status", "Failed") in [(run.name, run.state) for run in last]
    assert [run.start[:10] for run in upcoming if run.name == "seen-by-status"] == ["2020-01-02", "2020-01-03"]
    screen = show(tmp_path)
    assert "seen-by-status at 2020-01-02 04:30" in screen
    assert "Failed" in screen


def test_a_run_that_ended_with_its_server_gives_its_place_back(prefect_server: dict[str, str]) -> None:
    """`make up` calls it; until then the deployment's one place is taken and every later run is cancelled."""
    url = prefect_server["PREFECT_API_URL"]
    flow = post(f"{url}/flows/", {"name": "interrupted"})["id"]
    limit = {"concurrency_limit": 1, "concurrency_options": {"collision_strategy": "CANCEL_NEW"}}
    deployment = post(f"{url}/deployments/", {"name": "one-run", "flow_id": flow, **limit})["id"]

    def start() -> tuple[str, str]:
        run = post(f"{url}/deployments/{deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}})["id"]
        answer = post(f"{url}/flow_runs/{run}/set_state", {"state": {"type": "PENDING"}})
        return run, answer["state"]["type"]

    lost, state = start()
    assert state == "PENDING"
    assert start()[1] == "CANCELLED"
    assert lost in close_orphans(url)
    assert start()[1] == "PENDING"
    assert lost not in close_orphans(url)


def post(url: str, body: dict, tries: int = 20) -> dict:
    """The server's answer; a server whose database is busy answers 503 and wants to be asked again."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        return json.loads(urllib.request.urlopen(request, timeout=30).read())
    except urllib.error.HTTPError as error:
        if error.code != 503 or tries == 1:
            raise
    time.sleep(1.0)
    return post(url, body, tries - 1)
