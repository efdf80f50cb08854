"""One generic runner: each stage of `dvc.yaml` becomes one Prefect task that calls `dvc repro` on that stage alone.

DVC decides what is stale; Prefect gives order, states, retries and timeouts. A stage that DVC found unchanged ends as
`Skipped`, one whose outputs came from DVC's cache as `Restored`. No task's result is kept: DVC is the cache.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.runtime import flow_run
from prefect.states import Completed, State

from flows.chunks import list_chunks, run_chunk
from flows.cluster import CHUNKS_PER_THREAD, count_threads, run_chunks
from flows.graph import StageNode, find_unchanged
from flows.processes import Processes, StageFailedError, build_environment
from imprint.core.outside import load_json

_SKIPPED_MARK = "didn't change, skipping"
_RESTORED_MARK = "is cached - skipping run"
_RESTORE = Path(__file__).with_name("restore.py")
_GPU = threading.Lock()


def run_stages(
    stages: Mapping[str, StageNode], root: Path, num_chunks: int = 2, *, dask_address: str | None = None
) -> dict[str, str]:
    """Run the stages in the graph's order, independent ones in parallel; stage => name of its final state.

    Call it in a flow. Anything that interrupts the flow (a cancel, Ctrl-C) ends all commands first. A failed stage
    raises after the stages that do not depend on it have ended. With the address of a Dask scheduler, chunks run on its
    workers, at least `CHUNKS_PER_THREAD` for each of their threads.
    """
    root = root.resolve()
    if dask_address:
        num_chunks = max(num_chunks, CHUNKS_PER_THREAD * count_threads(dask_address, root))
    environment = build_environment(root, IMPRINT_FLOW_RUN_ID=str(flow_run.id or ""))
    processes = Processes(environment)
    unchanged = find_unchanged(root, stages)
    futures: dict[str, PrefectFuture[Any]] = {}
    all_chunks: list[PrefectFuture[Any]] = []
    try:
        for name, node in stages.items():
            upstream = [futures[parent] for parent in node.upstream if parent in futures]
            chunks = []
            if node.hints.fanout and name not in unchanged:
                chunks = _submit_chunks(
                    node, root, processes=processes, num_chunks=num_chunks, dask_address=dask_address, upstream=upstream
                )
            all_chunks += chunks
            stage_task: Any = run_stage.with_options(
                name=name,
                task_run_name=name,
                retries=node.hints.retries,
                retry_delay_seconds=node.hints.retry_delay_s,
            )
            futures[name] = stage_task.submit(
                node, root, processes, unchanged=name in unchanged, wait_for=[*upstream, *chunks]
            )
        wait(list(futures.values()))
    except BaseException:
        processes.stop()
        raise
    return _collect_states(futures, all_chunks)


def _may_retry(_task: Any, _task_run: Any, state: State) -> bool:
    """Another try helps only against transient failures, and never while the run is being cancelled."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailedError) and error.kind == "transient"


@task(cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=_may_retry)
def run_stage(node: StageNode, root: Path, processes: Processes, *, unchanged: bool) -> State:
    """`dvc repro` of one stage, unless DVC has said that it is `unchanged`. Raises `StageFailedError`."""
    if unchanged:
        return Completed(name="Skipped", message="nothing changed")
    if not node.hints.gpu:
        return _repro(node, root, processes)
    with _GPU:
        return _repro(node, root, processes)


@task(cache_policy=NO_CACHE, persist_result=False)
def find_stale(node: StageNode, root: Path, processes: Processes) -> bool:
    """Whether DVC would run the stage: chunks of one that it would skip or restore need not be looked at."""
    lines: list[str] = []
    command = ["dvc", "status", "--json", node.address]
    code = processes.run(node.name, command, cwd=root, timeout_s=600.0, on_line=lines.append)
    if code == 0 and lines[-1:] == ["{}"]:
        return False
    pull = ["--pull"] if node.has_remote else []
    restore = [sys.executable, "-I", str(_RESTORE), node.name, *pull]
    return processes.run(node.name, restore, cwd=root, timeout_s=node.hints.timeout_s, on_line=lines.append) != 0


def _submit_chunks(
    node: StageNode,
    root: Path,
    *,
    processes: Processes,
    num_chunks: int,
    dask_address: str | None,
    upstream: list[PrefectFuture[Any]],
) -> list[PrefectFuture[Any]]:
    check: Any = find_stale.with_options(task_run_name=f"{node.name}?")
    stale = check.submit(node, root, processes, wait_for=upstream)
    if dask_address:
        spread: Any = run_chunks.with_options(task_run_name=f"{node.name} on Dask")
        return [spread.submit(node, root, processes, address=dask_address, count=num_chunks, stale=stale)]
    chunk_task: Any = run_chunk.with_options(name=f"{node.name}-chunk", task_run_name=f"{node.name} {{chunk}}")
    return [chunk_task.submit(node, processes, chunk=chunk, stale=stale) for chunk in list_chunks(num_chunks)]


def _repro(node: StageNode, root: Path, processes: Processes) -> State:
    log = get_run_logger()
    record = root / "work" / node.name / "error.json"
    record.unlink(missing_ok=True)  # of an earlier run: DVC may fail before the command starts
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        log.info(line)

    pull = ["--pull"] if node.has_remote else []
    command = ["dvc", "--wait-for-lock", "repro", *pull, "-s", node.address]
    code = processes.run(node.name, command, cwd=root, timeout_s=node.hints.timeout_s, on_line=on_line)
    if code != 0:
        raise _read_failure(node.name, record, lines)
    return _read_outcome(lines)


def _read_outcome(lines: list[str]) -> State:
    """DVC tells what it did in words alone."""
    if any(_RESTORED_MARK in line for line in lines):
        return Completed(name="Restored", message="outputs came from DVC's cache")
    if any(_SKIPPED_MARK in line for line in lines):
        return Completed(name="Skipped", message="nothing changed")
    return Completed()


def _read_failure(stage: str, record: Path, lines: list[str]) -> StageFailedError:
    """DVC hides exit codes, so the stage leaves its reason in a file."""
    if record.is_file():
        reason = load_json(record)
        return StageFailedError(stage, reason["kind"], reason["message"])
    return StageFailedError(stage, "unknown", next((line for line in reversed(lines) if line), "no output"))


def _collect_states(futures: Mapping[str, PrefectFuture[Any]], chunks: list[PrefectFuture[Any]]) -> dict[str, str]:
    """State names of all stages; the first failure of a chunk or a stage is raised."""
    states = {name: future.state for name, future in futures.items()}
    for state in [*(future.state for future in chunks), *states.values()]:
        if state.is_failed() or state.is_crashed():
            state.result(raise_on_failure=True)
    left_out = [name for name, state in states.items() if not state.is_completed()]
    if left_out:  # no failure of a stage: a chunk of clips failed before it
        raise StageFailedError(left_out[0], "unknown", "did not run, since a task before it failed; see its log above")
    return {name: state.name or state.type.value for name, state in states.items()}
