"""Chunks on a Dask cluster: Dask places them, and a worker runs a chunk's command as the flow process would.

Only chunks travel. `dvc repro` stays with the flow's process, which finds the products in the folder that all share. A
chunk of a worker that died is placed again and makes what is missing. prefect-dask is an extra: imported when needed.
"""

from __future__ import annotations

import platform
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from flows.chunks import fill_chunk, list_chunks
from flows.graph import StageNode
from flows.processes import Processes, StageFailedError, build_environment
from imprint.core.errors import InputError

if TYPE_CHECKING:
    from prefect_dask import PrefectDaskClient

CHUNKS_PER_THREAD = 2  # so that a slow or a lost one costs little
CONNECT_S = 10.0
FIRST_WORKER_S = 60.0
POLL_S = 0.3
# One chunk is one Dask thread is one core: whatever else a stage would start shares it.
ONE_CORE = dict.fromkeys(
    ("IMPRINT_MAX_WORKERS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1"
)
# What the products' bytes and the messages between the machines depend on.
LIBRARIES = (
    "prefect",
    "distributed",
    "numpy",
    "opencv-python",
    "pillow",
    "decord",
    "scenedetect",
    "ImageHash",
    "onnxruntime",
    "rembg",
    "pyarrow",
)


def count_threads(address: str, root: Path) -> int:
    """Threads of all workers. `InputError` if there is no cluster at `address`, or if a worker has another folder at
    `root` or other versions than this process: its products would go astray, or have other bytes."""
    with _connect(address) as client:
        try:
            client.wait_for_workers(1, timeout=FIRST_WORKER_S)
        except TimeoutError:
            raise InputError(
                f"no worker joined {address} in {FIRST_WORKER_S:.0f} s; in {root} start `dask worker {address}`"
            ) from None
        _check_workers(client, root)
        threads: Any = client.nthreads()
        return sum(threads.values())


@task(cache_policy=NO_CACHE, persist_result=False)
def run_chunks(
    node: StageNode, root: Path, processes: Processes, *, address: str, count: int, stale: bool
) -> State | None:
    """Have all chunks of a stage run on the cluster, each a task of its own. The first chunk's failure is raised after
    the others have ended; closing the connection, or losing it, ends what still runs."""
    if not stale:
        return Completed(name="Skipped", message="the stage is up to date")
    chunk_task: Any = run_chunk_on_worker.with_options(
        name=f"{node.name}-chunk", task_run_name=f"{node.name} {{chunk}}"
    )
    with _connect(address) as client:
        futures = [
            client.submit(chunk_task, parameters={"node": node, "root": root, "chunk": chunk})
            for chunk in list_chunks(count)
        ]
        _wait(futures, node, processes)
    return None


@task(cache_policy=NO_CACHE, persist_result=False)
def run_chunk_on_worker(node: StageNode, root: Path, chunk: str) -> None:
    """Runs on a Dask worker."""
    processes = Processes(build_environment(root, **ONE_CORE))
    with _end_when_unwanted(processes):
        fill_chunk(node, processes, chunk)


def _connect(address: str) -> PrefectDaskClient:
    try:
        from prefect_dask import PrefectDaskClient
    except ModuleNotFoundError:
        raise InputError("prefect-dask is not installed: `pip install -c constraints.txt -e '.[dask]'`") from None
    try:
        return PrefectDaskClient(address, set_as_default=False, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Dask scheduler answers at {address} ({error}); `dask scheduler` starts one and prints its address"
        ) from None


def _wait(futures: list[Any], node: StageNode, processes: Processes) -> None:
    failures = []
    while futures:
        if processes.stopped:
            raise StageFailedError(node.name, "cancelled", "the run was cancelled")
        for future in [future for future in futures if future.done()]:
            futures.remove(future)  # and so releases it: Dask would repeat a held one if its worker died later
            if error := future.exception():
                failures.append(error)
        time.sleep(POLL_S)
    if failures:
        raise failures[0]


@contextmanager
def _end_when_unwanted(processes: Processes) -> Iterator[None]:
    """End the command once Dask wants the task no more: cancelled, or the flow's process is gone, or it is another
    worker's now. Dask itself cannot interrupt a task."""
    from distributed import get_worker

    worker, done = get_worker(), threading.Event()
    key = worker.get_current_task()

    def watch() -> None:
        while not done.wait(POLL_S):
            state = worker.state.tasks.get(key)
            if state is None or state.state not in ("executing", "long-running"):
                processes.stop()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _check_workers(client: PrefectDaskClient, root: Path) -> None:
    (root / "work").mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix=".dask-", dir=root / "work") as file:
        marker = Path(file.name)
        try:
            found: Any = client.run(describe_machine, marker)
        except ImportError as error:
            raise InputError(f"a Dask worker does not have this project ({error}); start it with its .venv") from None
        here = describe_machine(marker)
    for address, there in found.items():
        wrong = [f"{what} {there[what]} (here {here[what]})" for what in here if there[what] != here[what]]
        if wrong:
            raise InputError(
                f"Dask worker {address} differs: {', '.join(wrong)}; it needs {root} under the same path, "
                "and the versions of constraints.txt"
            )


def describe_machine(marker: Path) -> dict[str, str]:
    """What has to be the same on every machine; `marker` is a file that was made in the project's folder just now."""
    folder = "shared" if marker.exists() else "not shared"
    return {name: _find_version(name) for name in LIBRARIES} | {"Python": platform.python_version(), "folder": folder}


def _find_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
