"""What changed against the last version of the data set: `metrics/data.json` now and then, clip by clip."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprint.core.files import write_json_atomic
from imprint.core.outside import load_json

METRICS = Path("metrics/data.json")
VERSIONS = Path("work/report_data/versions.json")  # the version reported last on this machine, and the one before it
TOTALS = ("totals", "clips_per_split", "pairs", "left_out", "pairs_left_out", "licences", "review")


@dataclass(frozen=True)
class Changes:
    """Clips by name; `counts` and `changed` hold what it was and what it is, None for nothing."""

    added: Mapping[str, dict[str, Any]]
    removed: Mapping[str, dict[str, Any]]
    changed: Mapping[str, dict[str, tuple[Any, Any]]]
    counts: Mapping[str, tuple[Any, Any]]

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.removed or self.changed or self.counts)


def compare_versions(last: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """All that differs between two versions' metrics, apart from the distributions."""
    before, after = last.get("clips", {}), now["clips"]
    changed = {name: _compare(before[name], after[name]) for name in sorted(before.keys() & after.keys())}
    old, new = ({name: of.get(name, {}) for name in TOTALS} for of in (last, now))
    return Changes(
        added={name: after[name] for name in sorted(after.keys() - before.keys())},
        removed={name: before[name] for name in sorted(before.keys() - after.keys())},
        changed={name: fields for name, fields in changed.items() if fields},
        counts=_compare(flatten(old), flatten(new)),
    )


def find_last_version(now: Mapping[str, Any], root: Path = Path(".")) -> tuple[dict[str, Any], str] | None:
    """Metrics of the last version that differs from `now`, and where they are from; None for the first version.

    That is the version reported before on this machine, or else, in a fresh clone, the one committed to Git.
    """
    path = root / VERSIONS
    known = [version for version in load_json(path) if version] if path.is_file() else []
    places = [(version, "the version reported before on this machine") for version in known]
    places += [(version, "the version committed to Git") for version in _read_committed(root)]
    return next((place for place in places if not compare_versions(place[0], now).is_empty), None)


def remember_version(now: Mapping[str, Any], last: Mapping[str, Any] | None, root: Path = Path(".")) -> None:
    """Keep `now` for the next report, and `last` for another one on the same data."""
    write_json_atomic(root / VERSIONS, [now, last])


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined by dots, as `dvc metrics diff` shows them."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Names whose values differ; one that is missing and a count of 0 are the same."""
    names = list(dict.fromkeys([*after, *before]))
    return {
        name: (before.get(name), after.get(name)) for name in names if (before.get(name) or 0) != (after.get(name) or 0)
    }


def _read_committed(root: Path) -> list[dict[str, Any]]:
    command = ["git", "show", f"HEAD:./{METRICS}"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except FileNotFoundError:  # no Git on this machine
        return []
    return [json.loads(done.stdout)] if done.returncode == 0 else []
