"""Measurement: what the flow costs beside `dvc repro`, per stage and per chunk of clips, on stages that do nothing.

`python -m tests.drills.flow_overhead` prints a table; the wall time is that of the machine as it is, so its load is
printed too. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import yaml

from flows.processes import build_environment
from tests.toy_project import REPOSITORY, start_server

FEW, MANY = 2, 10  # stages: what every run costs drops out of the difference
CHUNKS = (1, 20)
FLOW = """
import sys
from pathlib import Path
from prefect import flow
from flows.graph import read_graph
from flows.runner import run_stages

@flow(persist_result=False)
def chain():
    return run_stages(read_graph(Path.cwd()), Path.cwd(), num_chunks=int(sys.argv[1]))

assert set(chain().values()) == {"Completed"}
"""


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="overhead-") as name, start_server(Path(name)) as server:
        folder = Path(name)
        environment = server | {"PYTHONPATH": str(REPOSITORY)}
        flow = {count: measure_flow(build_chain(folder / f"flow{count}", count), environment) for count in (FEW, MANY)}
        repro = {count: measure_repro(build_chain(folder / f"repro{count}", count)) for count in (FEW, MANY)}
        fanned = {
            count: measure_flow(build_chain(folder / f"fan{count}", 1, fanout=True), environment, num_chunks=count)
            for count in CHUNKS
        }
    per_stage = show("a stage, in the flow", flow[FEW], flow[MANY], MANY - FEW)
    bare = show("a stage, in dvc repro", repro[FEW], repro[MANY], MANY - FEW)
    show("a chunk of clips", fanned[CHUNKS[0]], fanned[CHUNKS[-1]], CHUNKS[-1] - CHUNKS[0])
    print(f"the flow adds {per_stage - bare:.2f} s to a stage: {(per_stage - bare) / 60:.1%} of a minute")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def show(what: str, few: tuple[float, float], many: tuple[float, float], count: int) -> float:
    """Print the seconds of one more of it, by the clock and of the processor; those by the clock."""
    wall_s, cpu_s = ((after - before) / count for before, after in zip(few, many, strict=True))
    print(f"{what}: {wall_s:.2f} s, {cpu_s:.2f} s of CPU without the server's", flush=True)
    return wall_s


def build_chain(root: Path, count: int, *, fanout: bool = False) -> Path:
    """A project of `count` stages one after the other, each of which copies a line."""
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (root / "0.txt").write_text("x\n")
    meta = {"meta": {"fanout": "clips"}} if fanout else {}
    stages = {
        f"s{number}": {
            "cmd": f"sh -c 'cp {number}.txt {number + 1}.txt'",  # what follows, such as `--chunk 1/2`, is not looked at
            "deps": [f"{number}.txt"],
            "outs": [f"{number + 1}.txt"],
            **meta,
        }
        for number in range(count)
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    return root


def measure_flow(root: Path, environment: Mapping[str, str], *, num_chunks: int = 1) -> tuple[float, float]:
    return measure([sys.executable, "-c", FLOW, str(num_chunks)], root, dict(environment))


def measure_repro(root: Path) -> tuple[float, float]:
    return measure(["dvc", "repro", "--quiet"], root, build_environment(root))


def measure(command: list[str], root: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds by the clock and of the processor, with all that the command starts."""
    before, start_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, cwd=root, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - start_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
