"""A chunk: the command of a stage that fans out, for one share of the clips (`--chunk i/n`)."""

from __future__ import annotations

import shlex

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from flows.graph import StageNode
from flows.processes import Processes, StageFailedError

MAX_CHUNKS = 200  # per stage; a mapped task costs Prefect about 30 ms


def list_chunks(count: int) -> list[str]:
    """`3` => `1/3`, `2/3`, `3/3`; at least one and at most `MAX_CHUNKS`."""
    count = max(1, min(count, MAX_CHUNKS))
    return [f"{number}/{count}" for number in range(1, count + 1)]


@task(cache_policy=NO_CACHE, persist_result=False)
def run_chunk(node: StageNode, processes: Processes, *, chunk: str, stale: bool) -> State | None:
    """Fill the stage's work folder for one share of the clips; the stage itself then only assembles."""
    if not stale:
        return Completed(name="Skipped", message="the stage is up to date")
    fill_chunk(node, processes, chunk)
    return None


def fill_chunk(node: StageNode, processes: Processes, chunk: str) -> None:
    """Run the command here, its output into the log of the task that calls. `StageFailedError` if it fails."""
    command = ["sh", "-c", f"{node.command} --chunk {shlex.quote(chunk)}"]
    log = get_run_logger()
    code = processes.run(
        node.name, command, cwd=node.working_dir, timeout_s=node.hints.timeout_s, on_line=lambda line: log.info(line)
    )
    if code != 0:
        raise StageFailedError(node.name, "unknown", f"chunk {chunk} ended with exit code {code}")
