"""Reading of a table in an untrusted SQLite database.

Such a file can contain code: a view that never ends, a virtual table, a generated column. So only
ordinary tables with stored columns are read, in a bounded number of steps.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from scalesim.errors import TraceError

STEPS_A_CALL = 1000
STEPS_A_FILE = 100_000
STEPS_A_BYTE = 16  # of SQLite's machine: a row takes some four bytes at least, and ten steps
_MAX_VALUE_BYTES = 1 << 26


def rows_of(path: Path, table: str, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """``columns`` of each row of ``table``, in the file's order. The file is opened read-only, and
    the number of steps is bounded by what a file of its size can need. Raises ``TraceError``."""
    steps_left = STEPS_A_FILE + STEPS_A_BYTE * path.stat().st_size

    def count() -> bool:
        nonlocal steps_left
        steps_left -= STEPS_A_CALL
        return steps_left < 0

    try:
        uri = path.absolute().as_uri() + "?mode=ro"  # as a URI, a name may have ? and # in it
        with closing(sqlite3.connect(uri, uri=True)) as database:
            database.set_progress_handler(count, STEPS_A_CALL)
            if hasattr(database, "setlimit"):  # Python 3.11
                database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
            database.execute("PRAGMA trusted_schema=OFF")
            _check_stored(database, path, table, columns)
            names = ", ".join(f'"{name}"' for name in columns)
            yield from database.execute(f'SELECT {names} FROM main."{table}"')
    except (sqlite3.Error, OverflowError, UnicodeError) as error:
        if steps_left < 0:
            raise TraceError(f"{path}: reading {table} takes too many steps for its size") from None
        raise TraceError(f"{path}: {error}; an OASIS database has a table {table}") from None


def _check_stored(
    database: sqlite3.Connection, path: Path, table: str, columns: Sequence[str]
) -> None:
    """Raise unless ``columns`` are stored in an ordinary table."""
    query = "SELECT type, rootpage FROM main.sqlite_master WHERE name = ?"
    kinds = database.execute(query, (table,)).fetchall()
    if not kinds:
        raise TraceError(f"{path} has no table {table}; an OASIS database has one")
    if [kind for kind, _ in kinds] != ["table"] or not kinds[0][1]:  # a virtual one has no page
        raise TraceError(f"{path}: {table} must be a table, not a view or a virtual table")
    stored = {
        row[1] for row in database.execute(f'PRAGMA main.table_xinfo("{table}")') if row[6] == 0
    }
    missing = [name for name in columns if name not in stored]
    if missing:
        raise TraceError(f"{path}: table {table} stores no column {missing[0]}")
