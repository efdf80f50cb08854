"""`licences.csv` in the source's root: columns `path_prefix,licence`; the longest prefix that fits an item counts."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from imprint.core.errors import InputError

FILE_NAME = "licences.csv"
COLUMNS = ["path_prefix", "licence"]


@dataclass
class Licences:
    """Path prefix below `source` => licence; `used` collects the prefixes that an item had."""

    source: Path
    by_prefix: dict[PurePosixPath, str]
    used: set[PurePosixPath] = field(default_factory=set)

    def find(self, item: Path) -> str | None:
        """Licence of an item of the source; None if the file names none for it."""
        path = PurePosixPath(item.relative_to(self.source).as_posix()) if item != self.source else PurePosixPath()
        for prefix in (path, *path.parents):  # from the longest
            if prefix in self.by_prefix:
                self.used.add(prefix)
                return self.by_prefix[prefix]
        return None

    def list_unused(self) -> list[str]:
        return sorted(str(prefix) for prefix in self.by_prefix.keys() - self.used)


def load_licences(source: Path) -> Licences:
    """Read the file, if there is one. `InputError` names the line that is not `path_prefix,licence`."""
    root = source if source.is_dir() else source.parent
    path = root / FILE_NAME
    if not path.is_file():
        return Licences(root, {})
    by_prefix: dict[PurePosixPath, str] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        if [cell.strip() for cell in next(rows, [])] != COLUMNS:
            raise InputError(f"{path}: the first line must be {','.join(COLUMNS)}")
        for row in [row for row in rows if row]:
            if len(row) != len(COLUMNS) or not all(cell.strip() for cell in row):
                raise InputError(f"{path}: line {rows.line_num}: give a path prefix and a licence")
            by_prefix[PurePosixPath(row[0].strip())] = row[1].strip()
    return Licences(root, by_prefix)
