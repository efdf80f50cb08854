"""What has been run, and what has not: rows in `docs/verified.json`, and the table of them in `docs/verified.md`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from imprint.core.errors import InputError
from imprint.core.files import write_bytes_atomic, write_json_atomic
from imprint.core.params import PresetName

Action = Literal["load", "composite", "stage 1", "stage 2", "resume", "several GPUs"]
ACTIONS: tuple[Action, ...] = get_args(Action)
PRESET_NAMES: tuple[str, ...] = get_args(PresetName)
TABLE, DATA = Path("docs/verified.md"), Path("docs/verified.json")

_HEAD = """# What has been run, and what has not

Made from [verified.json](verified.json); `imprint verify PRESET` does a preset's lines on a machine and, in a checkout,
adds them here. What nobody has seen says **never run**: no time, memory or quality of it is known.

- load: the weights, strictly, into the model. *Published* weights are those of the hub; *random* ones have the preset's
  full structure in the same files, *shipped* ones are those of the repository, *fresh* is a preset without any.
- composite: `imprint composite` on demo/inputs, seed 0, with the model that training starts from.
- stage 1, stage 2: 20 steps by the stage's own command with the preset's batch; images/s is the median of a step.
- resume: stage 1 ended by SIGTERM after 10 steps and called again.
- several GPUs: stage 1 in several processes.

| preset | action | weights | figure | hardware | date | commit |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that was done once. figure: what was seen; commit: of the code, with a + if files had been changed."""

    preset: str
    action: Action
    weights: str
    figure: str
    hardware: str
    date: str
    commit: str

    @property
    def key(self) -> tuple[str, ...]:
        """A later row of the same key takes its place."""
        return self.preset, self.action, self.weights, self.hardware


def load_rows(path: Path) -> list[Row]:
    """The rows of a data file; `InputError` if it is none."""
    try:
        return [Row(**entry) for entry in json.loads(path.read_text())]
    except (OSError, json.JSONDecodeError, TypeError) as error:
        raise InputError(f"{path} holds no rows ({error}); take the repository's again") from None


def merge_rows(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """All of them in the table's order."""
    merged = {row.key: row for row in [*old, *new]}
    order = {name: place for place, name in enumerate([*PRESET_NAMES, *ACTIONS])}
    return sorted(merged.values(), key=lambda row: (order[row.preset], order[row.action], row.key))


def render_table(rows: Sequence[Row]) -> str:
    """The page: every preset and every action, at least with its `never run`."""
    lines = []
    for preset in PRESET_NAMES:
        for action in ACTIONS:
            found = [row for row in rows if (row.preset, row.action) == (preset, action)]
            lines += [format_row(row) for row in found] or [f"| `{preset}` | {action} | | **never run** | | | |"]
    return _HEAD + "\n".join(lines) + "\n"


def format_row(row: Row) -> str:
    """A line of the table, in Markdown."""
    cells = (f"`{row.preset}`", row.action, row.weights, row.figure, row.hardware, row.date, row.commit)
    return f"| {' | '.join(cells)} |"


def save_rows(rows: Iterable[Row], folder: Path, root: Path) -> list[Path]:
    """Write `verified.json` into `folder`, and in a checkout the table and its data; return the files."""
    rows = list(rows)
    write_json_atomic(folder / "verified.json", [asdict(row) for row in rows])
    if not (root / DATA).is_file():
        return [folder / "verified.json"]
    merged = merge_rows(load_rows(root / DATA), rows)
    write_json_atomic(root / DATA, [asdict(row) for row in merged])
    write_bytes_atomic(root / TABLE, render_table(merged).encode())
    return [folder / "verified.json", root / DATA, root / TABLE]
