"""A pipeline of four one-line stages, and a Prefect server, for the tests of `flows`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAMS = Path(sys.executable).parent
STAGES = """
stages:
  base: {cmd: sh base.sh, deps: [base.sh], outs: [base.txt], meta: {retries: 2, retry_delay_s: 0}}
  left: {cmd: sh left.sh, deps: [base.txt, left.sh], outs: [left.txt], meta: {timeout_s: 60}}
  right: {cmd: python right.py, deps: [base.txt, right.py], outs: [right.txt], meta: {fanout: clips, timeout_s: 60}}
  end: {cmd: cat left.txt right.txt > end.txt, deps: [left.txt, right.txt], outs: [end.txt], meta: {gpu: true}}
"""
# Each of the two waits for the other, so they end only if they run at the same time.
LEFT = "touch left.on; until test -e right.on; do sleep 0.1; done; cat base.txt > left.txt"
RIGHT = """
import pathlib, sys, time
chunks = pathlib.Path("work/right")
if sys.argv[1:2] == ["--chunk"]:
    chunks.mkdir(parents=True, exist_ok=True)
    (chunks / sys.argv[2].replace("/", "of")).touch()
else:
    pathlib.Path("right.on").touch()
    while not pathlib.Path("left.on").exists():
        time.sleep(0.1)
    pathlib.Path("right.txt").write_text(" ".join(sorted(path.name for path in chunks.iterdir())))
"""
SERVER_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    "PREFECT_CLIENT_MAX_RETRIES": "2",
}


def build_toy_project(root: Path, base_script: str = "echo base > base.txt") -> Path:
    """Its graph: base -> left, right -> end; `right` fans out."""
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (root / "dvc.yaml").write_text(STAGES)
    (root / "base.sh").write_text(base_script)
    (root / "left.sh").write_text(LEFT)
    (root / "right.py").write_text(RIGHT)
    return root


def write_failing_base(root: Path, kind: str, num_failures: int) -> None:
    """`base` fails as a stage does, leaving its reason, and counts its tries in `tries`."""
    (root / "base.sh").write_text(
        f"""echo x >> tries
        if [ $(wc -l < tries) -le {num_failures} ]; then
          mkdir -p work/base; echo '{{"kind": "{kind}", "message": "as told"}}' > work/base/error.json; exit 1
        fi
        echo base > base.txt"""
    )


@contextmanager
def start_server(home: Path) -> Iterator[dict[str, str]]:
    """A Prefect server on a free port of loopback; gives the environment that reaches it."""
    port = _find_free_port()
    api_url = f"http://127.0.0.1:{port}/api"
    environment = os.environ | SERVER_ENVIRONMENT | {"PREFECT_HOME": str(home), "PREFECT_API_URL": api_url}
    command = [str(PROGRAMS / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    log = home / "server.log"
    with log.open("w") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as server:
        try:
            _wait_for(f"{api_url}/health", server, log)
            yield environment
        finally:
            end(server)


def end(process: subprocess.Popen) -> None:
    """SIGTERM, and SIGKILL after 20 s: Prefect's worker stays where SIGINT is ignored, as under a shell's `&`."""
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()


def _wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline_s = time.monotonic() + 300
    while time.monotonic() < deadline_s:
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"no answer from {url}: {log.read_text()}")


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
