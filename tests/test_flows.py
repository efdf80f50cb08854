"""The runner against a real Prefect server: states, retries, fan-out, cancelling; then the deployment of the whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.graph import StageHints, find_unchanged, read_graph, select_upstream
from flows.processes import build_environment
from imprint.core.errors import InputError
from imprint.core.params import parse_section
from tests.toy_project import LEFT, REPOSITORY, build_toy_project, write_failing_base

RUN_TOY = """
import json, sys
from pathlib import Path
from prefect import flow
from flows.graph import read_graph
from flows.runner import run_stages

@flow(persist_result=False)
def toy():
    return run_stages(read_graph(Path.cwd()), Path.cwd(), num_chunks=3)

print("states", json.dumps(toy()))
"""


@pytest.fixture
def server(prefect_server: dict[str, str]) -> dict[str, str]:
    return prefect_server | {"PYTHONPATH": str(REPOSITORY)}


def test_graph_is_the_one_of_dvc_yaml(tmp_path: Path) -> None:
    graph = read_graph(build_toy_project(tmp_path))
    assert list(graph) == ["base", "left", "right", "end"]
    assert graph["end"].upstream == ("left", "right")
    assert graph["end"].hints == StageHints(gpu=True)
    assert list(select_upstream(graph, ["right"])) == ["base", "right"]
    with pytest.raises(InputError, match="stage nowhere is unknown"):
        select_upstream(graph, ["nowhere"])


def test_project_graph_has_addresses_that_dvc_knows() -> None:
    graph = read_graph(REPOSITORY)
    assert next(iter(graph)) == "demo_clips"
    assert list(graph)[-1] == "evaluate"
    assert graph["demo_clips"].address == "demo/dvc.yaml:demo_clips"
    assert graph["extract_frames"].hints.fanout == "clips"


def test_one_question_tells_what_nothing_can_change(tmp_path: Path) -> None:
    root = build_toy_project(tmp_path)
    for name in ("left.on", "right.on", "work/right/1of1"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    graph = read_graph(root)
    assert find_unchanged(root, graph) == set()
    subprocess.run(["dvc", "repro", "--quiet"], cwd=root, env=build_environment(root), check=True)
    assert find_unchanged(root, graph) == set(graph)
    (root / "left.sh").write_text(f"{LEFT}\n# new")
    assert find_unchanged(root, graph) == {"base", "right"}  # `end` is up to date, but `left` may change that
    assert find_unchanged(root, {"end": graph["end"]}) == {"end"}
    with Repo(str(root)) as repo, repo.lock:  # somebody runs DVC here: each stage's own process will wait for it
        assert find_unchanged(root, graph) == set()
    (root / "end.txt").write_text("changed by hand")
    assert find_unchanged(root, {"end": graph["end"]}) == set()


@pytest.mark.parametrize(
    ("meta", "message"),
    [({"retrys": 1}, "unknown key"), ({"fanout": "frames"}, "fanout"), ({"retries": -1}, "retries")],
)
def test_meta_with_a_mistake_is_refused(meta: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_section(StageHints, meta, "dvc.yaml: x.meta")


def test_states_parallel_stages_fanout_and_retries(server: dict[str, str], tmp_path: Path) -> None:
    root = build_toy_project(tmp_path)
    write_failing_base(root, "transient", num_failures=2)
    assert run_toy(root, server) == dict.fromkeys(("base", "left", "right", "end"), "Completed")
    assert (root / "tries").read_text().count("x") == 3
    assert (root / "end.txt").read_text() == "base\n1of3 2of3 3of3"
    (root / "left.txt").unlink()
    assert run_toy(root, server) == {"base": "Skipped", "left": "Restored", "right": "Skipped", "end": "Skipped"}
    (root / "right.txt").unlink()
    shutil.rmtree(root / "work")  # a chunk would make it anew
    assert run_toy(root, server) == {"base": "Skipped", "left": "Skipped", "right": "Skipped", "end": "Skipped"}
    assert not (root / "work" / "right").exists()
    (root / "base.sh").write_text("echo other > base.txt")  # the others are up to date, and yet have to be asked again
    assert run_toy(root, server) == dict.fromkeys(("base", "left", "right", "end"), "Completed")
    assert (root / "end.txt").read_text() == "other\n1of3 2of3 3of3"


def test_other_failures_are_not_retried_and_end_what_depends_on_them(server: dict[str, str], tmp_path: Path) -> None:
    root = build_toy_project(tmp_path)
    write_failing_base(root, "config", num_failures=1)
    with pytest.raises(subprocess.CalledProcessError) as failure:
        run_toy(root, server)
    assert "StageFailedError: base: as told" in failure.value.output
    assert (root / "tries").read_text().count("x") == 1
    assert not (root / "left.txt").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_ended_flow_leaves_no_process(server: dict[str, str], tmp_path: Path, number: signal.Signals) -> None:
    saves = "trap 'touch saved; kill $child; exit 1' INT\nsleep 300 & child=$!\necho $child > pid\nwait"
    root = build_toy_project(tmp_path, saves)
    # as under `nohup ... &`, where SIGINT is ignored from the start
    background = ["sh", "-c", 'trap \'\' INT; exec "$0" -c "$1"', sys.executable, RUN_TOY]
    with subprocess.Popen(background, cwd=root, env=server, stderr=subprocess.DEVNULL) as flow_run:
        wait_until((root / "pid").exists, "the stage starts")
        flow_run.send_signal(number)
        flow_run.wait(60)
    wait_until(lambda: not is_alive(int((root / "pid").read_text())), "the stage's process ends")
    assert (root / "saved").exists()
    assert not (root / "base.txt").exists()


def run_toy(root: Path, environment: dict[str, str]) -> dict[str, str]:
    """State names of the toy's stages."""
    command = [sys.executable, "-c", RUN_TOY]
    done = subprocess.run(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout)
    line = next(line for line in done.stdout.splitlines() if line.startswith("states "))
    return json.loads(line.removeprefix("states "))


def wait_until(condition, what: str, timeout_s: float = 60) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"timed out: {what}"
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
