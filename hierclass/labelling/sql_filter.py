"""Select rows of a table by an SQL condition such as `tier0_label in ('dog', 'bird') and score < 0.5`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hierclass.errors import InputError
from hierclass.labelling.rows import SCORE_DIGITS, columns

if TYPE_CHECKING:
    import pyarrow as pa

_ALLOWED = {sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}
"""A condition may read columns and call functions of SQLite, and nothing else."""


class SqlFilter:
    """An SQL condition (SQLite's grammar) on one row of a table of labels.

    Scores are compared as the table shows them, rounded to `SCORE_DIGITS` digits.
    """

    def __init__(self, text: str, num_tiers: int) -> None:
        """Check a condition on a table of N = `num_tiers` tiers.

        Raises:
            InputError: it is no condition, or names a column that does not exist.
        """
        self._text, self._columns = text, ("_index", *columns(num_tiers))
        self._database = sqlite3.connect(":memory:", isolation_level=None)
        names = ", ".join(f'"{name}"' for name in self._columns)
        self._database.execute(f"CREATE TABLE rows ({names})")
        self._insert = f"INSERT INTO rows VALUES ({', '.join('?' * len(self._columns))})"
        list(self.numbers(None))

    def numbers(self, rows: pa.Table | None) -> Iterator[int]:
        """Yield the numbers of the inputs whose rows meet the condition, rising; None: of an empty table."""
        self._database.set_authorizer(None)
        self._database.execute("DELETE FROM rows")
        if rows is not None:
            values = zip(*(_rounded(rows.column(name).to_pylist()) for name in self._columns), strict=True)
            self._database.executemany(self._insert, values)
        selects = 0

        def permit(action: int, *_: object) -> int:
            nonlocal selects
            selects += action == sqlite3.SQLITE_SELECT
            allowed = action in _ALLOWED or (action == sqlite3.SQLITE_SELECT and selects == 1)
            return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

        self._database.set_authorizer(permit)
        try:
            found = self._database.execute(f"SELECT _index FROM rows WHERE ({self._text}\n) ORDER BY _index")
            yield from [number for (number,) in found]
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            reason = "it looks at more than one row" if selects > 1 else error
            raise InputError(
                f"--where {self._text!r}: {reason}; give a condition such as tier0_label in ('dog', 'bird'); columns: "
                f"{', '.join(self._columns[1:])}"
            ) from error


def _rounded(values: list[Any]) -> list[Any]:
    return [round(value, SCORE_DIGITS) if isinstance(value, float) else value for value in values]
