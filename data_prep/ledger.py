"""What a stage left out and why: one Parquet file per stage, a table of counts, and the limit that ends the stage."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from imprint.core.errors import InputError
from imprint.core.records import Rejection, save_records

LEDGERS_DIR = Path("data/ledgers")
INTERRUPTED = "interrupted"  # the reason of a row about what another try may bring: the machine stood in the way
KEYS_SUFFIX = ".products.json"  # beside a ledger: clip => key of the product that it tells of


def save_ledger(stage: str, rejections: Iterable[Rejection], root: Path = Path(".")) -> None:
    """Write `data/ledgers/<stage>.parquet`, sorted by item and reason."""
    (root / LEDGERS_DIR / f"{stage}{KEYS_SUFFIX}").unlink(missing_ok=True)  # they belong to the ledger before
    rows = sorted(rejections, key=lambda row: (row.item, row.reason, row.detail))
    save_records(root / LEDGERS_DIR / f"{stage}.parquet", Rejection, rows)


def print_counts(stage: str, kept: str, rejections: Sequence[Rejection]) -> None:
    """Table of counts by reason on standard error; `kept` says what the stage kept (`24 clips`)."""
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 120)
    console.print(f"{stage}: {kept} kept, {len(rejections) or 'nothing'} left out", highlight=False, soft_wrap=True)
    if not rejections:
        return
    table = Table()
    table.add_column("left out because")
    table.add_column("rows", justify="right")
    table.add_column("for example")
    counts = Counter(row.reason for row in rejections)
    examples = {row.reason: row for row in reversed(rejections)}
    for reason, count in sorted(counts.items()):
        table.add_row(reason, str(count), f"{examples[reason].item} {examples[reason].detail}".strip()[:80])
    console.print(table)


def check_share(stage: str, unit: str, num_rejected: int, num_kept: int, max_share: float) -> None:
    """`InputError` with the counts and the setting if more than `max_share` of all was rejected, or nothing is left."""
    total = num_rejected + num_kept
    where = f"see data/ledgers/{stage}.parquet for the reasons"
    if num_rejected > max_share * total:
        raise InputError(
            f"{num_rejected} of {total} {unit} were rejected, more than {stage}.max_rejected_share = {max_share:g}; "
            f"{where}, mend the data or raise {stage}.max_rejected_share"
        )
    if num_kept == 0:
        raise InputError(f"no {unit} left of {total}; {where}")
