"""Work per clip: each clip's product is made once, kept under a digest of what it depends on, assembled at the end.

What only the machine stood in the way of (rows `interrupted`) is no verdict on the clip: it is tried again, several
times in one run and once more in each later one, and a product that lacks it is never taken for the clip's.

A product is a folder `work/<stage>/clips/<key>/` with `product.tar`, `records.parquet` and `ledger.parquet`; the key
is a digest of the clip's content, the stage's params and the stage's code. A chunk of the clips can be made by any
process on any machine that shares the folder; assembling takes what is there.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from data_prep.children import MAX_TRIES, end_with_parent, get_process_context
from data_prep.ledger import INTERRUPTED, KEYS_SUFFIX, LEDGERS_DIR
from data_prep.tars import read_tar, write_tar
from imprint.core.errors import InputError
from imprint.core.files import publish_dir, replace_dir, write_json_atomic
from imprint.core.keys import compute_key
from imprint.core.outside import load_json
from imprint.core.params import Section
from imprint.core.progress import show_progress
from imprint.core.records import FrameRecord, MaskRecord, Rejection, load_records, save_records
from imprint.core.stage import StageRun

_TRIES = "tries.json"  # in the folder of a product that lacks something: how often it was tried
MAX_WORKERS_VARIABLE = "IMPRINT_MAX_WORKERS"  # a limit for `workers`, where others use this machine too
Row = TypeVar("Row", FrameRecord, MaskRecord)


@dataclass(frozen=True)
class Product(Generic[Row]):
    """What a stage makes of one clip: tar members, index rows and what was left out."""

    members: Sequence[tuple[str, bytes]]
    rows: Sequence[Row]
    rejections: Sequence[Rejection]


@dataclass(frozen=True)
class Job(Generic[Row]):
    """One clip: `make` is called with `argument` in a worker process and must be a module's function."""

    clip_id: str
    folder: Path
    kind: type[Row]
    make: Callable[..., Product[Row]]
    argument: object


def compute_product_key(stage: str, section: Section, *, content: str, module: str) -> str:
    """Key of one clip's product from the clip's content digest, the stage's settings and its code."""
    return compute_key(stage, section, inputs={"clip": content}, module=module)[:32]


def parse_chunk(text: str) -> tuple[int, int]:
    """`2/5` => (2, 5): the second of five shares of the clips."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise InputError(f"--chunk {text}: give i/n with 1 <= i <= n, for example 1/4")
    return number, count


def make_products(jobs: Sequence[Job], description: str, workers: int, chunk: tuple[int, int] | None = None) -> None:
    """Make the missing products of all clips, or of one chunk of them, in `workers` processes (0: one per core)."""
    number, count = chunk or (1, 1)
    mine = list(jobs)[number - 1 :: count]
    missing = [job for job in mine if count_tries(job) != 0]
    with show_progress(description, total=len(mine), done=len(mine) - len(missing)) as bar:
        for _ in _make_each(missing, workers):
            bar.advance()
    for _ in range(MAX_TRIES - 1):
        missing = [job for job in missing if 0 < (count_tries(job) or 0) < MAX_TRIES]
        if missing:
            print(f"{description}: {len(missing)} were interrupted and are tried again", file=sys.stderr, flush=True)
        for _ in _make_each(missing, workers):
            pass


def count_tries(job: Job) -> int | None:
    """How often a clip was tried without getting all of it: 0 if its product is whole, None if there is none."""
    if not job.folder.is_dir():
        return None
    try:
        return int(load_json(job.folder / _TRIES))
    except FileNotFoundError:
        return 0


def restore_products(jobs: Sequence[Job], stage: str, out: Path, root: Path) -> None:
    """Take missing products back from published files, where those were made under the same keys.

    So a fresh clone with pulled outs makes only what is new. DVC removes a stage's outs before it runs the stage: only
    chunks, which run before that, find them.
    """
    keys_path = root / LEDGERS_DIR / f"{stage}{KEYS_SUFFIX}"
    if not (keys_path.is_file() and (root / out / "index.parquet").is_file()):
        return
    keys = load_json(keys_path)
    wanted = [job for job in jobs if not job.folder.is_dir() and keys.get(job.clip_id) == job.folder.name]
    rows: list[Any] = load_records(root / out / "index.parquet", jobs[0].kind) if wanted else []
    ledger = load_records(root / LEDGERS_DIR / f"{stage}.parquet", Rejection) if wanted else []
    for job in wanted:
        own_rows = [row for row in rows if row.clip_id == job.clip_id]
        own_ledger = [row for row in ledger if row.item.partition(":")[0] == job.clip_id]
        members = read_tar(root / out / f"{job.clip_id}.tar") if own_rows else {}
        _save_product(job, Product(list(members.items()), own_rows, own_ledger))


def collect(jobs: Sequence[Job]) -> tuple[list, list[Rejection]]:
    """Index rows and rejections of all products, by clip; every product must be there."""
    rows, rejections = [], []
    for job in sorted(jobs, key=lambda job: job.clip_id):
        rows += load_records(job.folder / "records.parquet", job.kind)
        told = f"; tried {count_tries(job)} times, `dvc repro --force --single-item STAGE` tries again"
        for row in load_records(job.folder / "ledger.parquet", Rejection):
            detail = row.detail + told.replace("STAGE", row.stage) if row.reason == INTERRUPTED else row.detail
            rejections.append(replace(row, detail=detail))
    return rows, rejections


def publish(jobs: Sequence[Job], rows: Sequence, run: StageRun, out: Path, root: Path) -> None:
    """Publish `<clip_id>.tar` of every clip with a row, and `index.parquet`, in one rename.

    The products' keys stand beside the ledger: in `out` they would make an edit of the code reach the next stage even
    where its result is the same.
    """
    staged = Path(tempfile.mkdtemp(prefix="assemble-", dir=run.work_dir))
    kept = {row.clip_id for row in rows}
    try:
        for job in jobs:
            if job.clip_id in kept:
                _link_or_copy(job.folder / "product.tar", staged / f"{job.clip_id}.tar")
        save_records(staged / "index.parquet", jobs[0].kind, rows)
        publish_dir(staged, root / out)
    finally:
        shutil.rmtree(staged)
    keys = {job.clip_id: job.folder.name for job in jobs if count_tries(job) == 0}
    write_json_atomic(root / LEDGERS_DIR / f"{run.name}{KEYS_SUFFIX}", keys)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _make_each(jobs: Sequence[Job], workers: int) -> Iterator[Job]:
    num_cores = os.cpu_count() or 1
    num_workers = min(workers or num_cores, int(os.environ.get(MAX_WORKERS_VARIABLE, num_cores)), len(jobs))
    if num_workers > 1:
        yield from _run_pool(jobs, num_workers)
        return
    for job in jobs:
        _make_product(job)
        yield job


def _make_product(job: Job) -> None:
    _save_product(job, job.make(job.argument))


def _save_product(job: Job, product: Product) -> None:
    """Write into a folder beside the target, then rename: a folder with the final name is complete."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{job.folder.name}.", dir=job.folder.parent))
    try:
        write_tar(staged / "product.tar", product.members)
        save_records(staged / "records.parquet", job.kind, product.rows)
        save_records(staged / "ledger.parquet", Rejection, product.rejections)
        if any(row.reason == INTERRUPTED for row in product.rejections):
            write_json_atomic(staged / _TRIES, (count_tries(job) or 0) + 1)
        os.chmod(staged, 0o755)
        if count_tries(job):
            replace_dir(staged, job.folder)
        else:
            os.replace(staged, job.folder)
    except OSError:
        if not job.folder.is_dir():  # else another process was first, with the same bytes
            raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _run_pool(jobs: Sequence[Job], num_workers: int) -> Iterator[Job]:
    with _open_pool(num_workers) as pool:
        pending: dict[Future[None], Job] = {pool.submit(_make_product, job): job for job in jobs}
        while pending:
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                job = pending.pop(future)
                future.result()
                yield job


@contextmanager
def _open_pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(num_workers, mp_context=get_process_context(), initializer=end_with_parent)
    try:
        yield pool
    except BrokenProcessPool:
        raise ConnectionError(
            "a worker process was killed (out of memory?); run again, with fewer workers if it recurs"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
