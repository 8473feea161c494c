"""Conditions of refining: what they may say, and how much time and memory they may take."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import pyarrow as pa
import pytest

from hierclass.errors import InputError
from hierclass.labelling.rows import schema
from hierclass.labelling.sql_filter import MAX_CONDITION, SqlFilter

SLOW = " or ".join(
    ["instr(replace(path || path || path, 'a', 'aaaa'), replace(path, 'a', 'aaa') || 'b')"] * 20
)
"""Takes a second a row for paths of 4,000 letters a."""


def table(*paths: str, scores: float = 0.5) -> pa.Table:
    count = len(paths)
    known = {
        "_index": range(count),
        "path": paths,
        "tier0_label": ["dog"] * count,
        "tier0_score": [scores] * count,
    }
    kinds = schema(1)
    columns = {field.name: pa.array(known.get(field.name) or [None] * count, field.type) for field in kinds}
    return pa.table({"_index": pa.array(range(count)), **columns})


@pytest.mark.parametrize(
    "condition",
    [
        "tier0_label in ('dog', 'bird') and tier0_score > 0.4",
        "path like 'B%' or path glob '*B.png'",
        "lower(substr(path, 1, 1)) = 'b' and round(tier0_score, 1) = 0.5",
        "instr(path, 'b') > 0 and coalesce(error, '') = '' and abs(random()) >= 0",
        f"path in ({', '.join(repr(f'{number}.png') for number in range(20_000))}, 'b.png')",
    ],
)
def test_ordinary_conditions_find_rows(condition: str) -> None:
    assert 1 in SqlFilter(condition, 1).numbers(table("a.png", "b.png"))


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("length(zeroblob(1e9))", "not authorized to use function: zeroblob"),
        ("length(randomblob(1e9))", "not authorized to use function: randomblob"),
        ("printf('%.*c', 1e9, 'x') = ''", "not authorized to use function: printf"),
        ("load_extension('x')", "not authorized to use function: load_extension"),
        ("path in (select path from rows)", "it looks at more than one row"),
        ("1 + " * 2000 + "1", "Expression tree is too large"),
        ("(" * 2000 + "1" + ")" * 2000, "parser stack overflow"),
        ("1 or " * (MAX_CONDITION // 5) + "1", "up to 1,000,000 are read"),
        ("path = ?", "Incorrect number of bindings"),
    ],
)
def test_what_a_condition_may_not_do_is_told_in_a_line(condition: str, reason: str) -> None:
    with pytest.raises(InputError, match=r"^--where") as caught:
        list(SqlFilter(condition, 1).numbers(table("a.png")))
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 800
    assert "\n" not in str(caught.value)


def test_a_text_that_grows_without_end_is_refused() -> None:
    grows = "path"
    for _ in range(7):
        grows = f"replace({grows}, 'a', 'aaaaaaaaaa')"
    with pytest.raises(InputError, match="string or blob too big"):
        list(SqlFilter(f"length({grows}) > 1", 1).numbers(table("a.png")))


def test_patterns_with_many_wildcards_are_quick() -> None:
    rows = table(*["a" * 4000] * 1000)
    assert list(SqlFilter(f"path like '{'%a_' * 500}b'", 1).numbers(rows)) == []


def test_the_longest_paths_are_compared_as_far_as_they_are_read() -> None:
    assert list(
        SqlFilter("path like 'x%' and length(path) = 4096", 1).numbers(table("x" * 100_000, "y"))
    ) == [0]


def test_a_condition_that_takes_too_long_is_ended() -> None:
    condition = SqlFilter(SLOW, 1, seconds=0.2)
    with pytest.raises(InputError, match=r"it takes longer than 0\.2 s for 100 rows"):
        list(condition.numbers(table(*["a" * 4000] * 100)))
    assert list(condition.numbers(table("x"))) == []  # and can be used again


def test_a_signal_ends_a_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(BaseException):
        pass

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    before = signal.signal(signal.SIGUSR1, stop)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        timer.start()
        with pytest.raises(Stopped):
            list(SqlFilter(SLOW, 1).numbers(table(*["a" * 4000] * 1000)))
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
