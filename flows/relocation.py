"""A project that was moved or copied: MLflow's database says where its artifacts lay, by absolute path."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from imprint.tracking.store import EXPERIMENT, build_sqlite_uri, resolve_tracking_uri

_COLUMNS = (  # all that hold a place of artifacts
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)


def relocate_store(root: Path) -> int:
    """Tell the project's own database where its artifacts lie now; how many places were mended.

    Nothing is done for a database that is not the project's, or where `mlruns` did not come along.
    """
    root = root.resolve()
    database = root / "mlflow.db"
    if resolve_tracking_uri(root) != build_sqlite_uri(root) or not database.is_file() or not (root / "mlruns").is_dir():
        return 0
    with closing(sqlite3.connect(database)) as connection, connection:
        before = _find_former_root(connection)
        if before is None or before == root:
            return 0
        prefixes = {before.as_uri(): root.as_uri(), str(before): str(root)}
        return sum(_replace(connection, table, column, prefixes) for table, column in _COLUMNS)


def _find_former_root(connection: sqlite3.Connection) -> Path | None:
    """The folder in whose `mlruns` the experiment was made."""
    if not _has_column(connection, "experiments", "artifact_location"):
        return None
    query = "select artifact_location from experiments where name = ?"
    found = connection.execute(query, (EXPERIMENT,)).fetchone()
    if found is None or not str(found[0]).startswith(("file:", "/")):
        return None
    return Path(unquote(urlsplit(found[0]).path) if found[0].startswith("file:") else found[0]).parent


def _replace(connection: sqlite3.Connection, table: str, column: str, prefixes: dict[str, str]) -> int:
    if not _has_column(connection, table, column):
        return 0
    count = 0
    for row, value in connection.execute(f"select rowid, {column} from {table}").fetchall():
        old = next((prefix for prefix in prefixes if str(value).startswith(f"{prefix}/")), None)
        if old is not None:
            moved = prefixes[old] + value[len(old) :]
            connection.execute(f"update {table} set {column} = ? where rowid = ?", (moved, row))
            count += 1
    return count


def _has_column(connection: sqlite3.Connection, table: str, column: str) -> bool:
    return column in {name for _, name, *_ in connection.execute(f"pragma table_info({table})")}
