"""Select rows of a table by an SQL condition such as `tier0_label in ('dog', 'bird') and score < 0.5`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from hierclass.errors import InputError
from hierclass.labelling.rows import SCORE_DIGITS, columns

if TYPE_CHECKING:
    import pyarrow as pa

MAX_CONDITION = 1_000_000
"""Characters of a condition, at most: a list of twenty thousand paths has room."""
MAX_VALUE = 1 << 20
"""Bytes of a row, and of a text that a condition makes of it, at most: 64 tiers with names of 1,000 letters fit."""
MAX_TEXT = 1 << 12
"""Characters of a text of a row that are compared; the rest is cut off. Paths end long before."""
SECONDS = 60.0
"""Time that a condition may take for a table, which has up to some ten thousand rows; ordinary ones take a hundredth of
a second."""
_ALLOWED = {sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}
"""A condition may read columns and call these functions of SQLite, and nothing else."""
# fmt: off
_FUNCTIONS = frozenset((
    "abs", "ceil", "ceiling", "coalesce", "floor", "glob", "ifnull", "iif", "instr", "length",
    "like", "lower", "ltrim", "max", "min", "nullif", "random", "replace", "round", "rtrim", "sign",
    "sqrt", "substr", "substring", "trim", "typeof", "unicode", "upper",
))
# fmt: on
_OVER_ROWS = frozenset(("avg", "count", "group_concat", "string_agg", "sum", "total"))
"""Functions of many rows, which a condition on one row may not call."""
_SHOWN = 200


class SqlFilter:
    """An SQL condition (SQLite's grammar) on one row of a table of labels.

    Scores are compared as the table shows them, rounded to `SCORE_DIGITS` digits.
    """

    def __init__(self, text: str, num_tiers: int, *, seconds: float = SECONDS) -> None:
        """Check a condition on a table of N = `num_tiers` tiers; `seconds` is the time it may take for one table.

        Raises:
            InputError: it is no condition, names a column that does not exist, or is too long.
        """
        self._text, self._columns, self._seconds = text, ("_index", *columns(num_tiers)), seconds
        if len(text) > MAX_CONDITION:
            raise InputError(f"--where has {len(text):,} characters; up to {MAX_CONDITION:,} are read")
        self._database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
        names = ", ".join(f'"{name}"' for name in self._columns)
        self._database.execute(f"CREATE TABLE rows ({names})")
        self._insert = f"INSERT INTO rows VALUES ({', '.join('?' * len(self._columns))})"
        list(self.numbers(None))

    def numbers(self, rows: pa.Table | None) -> Iterator[int]:
        """Yield the numbers of the inputs whose rows meet the condition, rising; None: of an empty table.

        Raises:
            InputError: it takes too long, or makes a text that is too long.
        """
        self._database.set_authorizer(None)
        self._database.execute("DELETE FROM rows")
        if rows is not None:
            values = zip(*(_stored(rows.column(name).to_pylist()) for name in self._columns), strict=True)
            self._database.executemany(self._insert, values)
        selects = 0

        def permit(action: int, _: object, name: str | None, *__: object) -> int:
            nonlocal selects
            calls = action == sqlite3.SQLITE_FUNCTION
            selects += action == sqlite3.SQLITE_SELECT or (calls and name in _OVER_ROWS)
            allowed = action in _ALLOWED or (action == sqlite3.SQLITE_SELECT and selects == 1)
            known = not calls or name in _FUNCTIONS
            return sqlite3.SQLITE_OK if allowed and known else sqlite3.SQLITE_DENY

        self._database.set_authorizer(permit)
        try:
            yield from self._select()
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            reason = "it looks at more than one row" if selects > 1 else " ".join(str(error).split())[:_SHOWN]
            raise self._refused(reason) from error
        except TimeoutError:
            raise self._refused(
                f"it takes longer than {self._seconds:g} s for {len(rows or ()):,} rows"
            ) from None

    def _select(self) -> list[int]:
        """Run the query in a thread, so that this one hears signals; end it before this one goes on."""
        query = f"SELECT _index FROM rows WHERE ({self._text}\n) ORDER BY _index"
        with ThreadPoolExecutor(1) as thread:
            future = thread.submit(lambda: self._database.execute(query).fetchall())
            try:
                return [number for (number,) in future.result(self._seconds)]
            finally:
                while not future.done():
                    self._database.interrupt()
                    wait([future], 0.05)

    def _refused(self, reason: str) -> InputError:
        shown = self._text if len(self._text) <= _SHOWN else f"{self._text[:_SHOWN]}…"
        return InputError(
            f"--where {shown!r}: {reason}; give a condition such as tier0_label in ('dog', 'bird'); columns: "
            f"{', '.join(self._columns[1:])}"
        )


def _stored(values: list[Any]) -> list[Any]:
    return [
        round(value, SCORE_DIGITS)
        if isinstance(value, float)
        else value[:MAX_TEXT]
        if isinstance(value, str)
        else value
        for value in values
    ]
