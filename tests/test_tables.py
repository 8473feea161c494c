"""A table is complete or absent, the same in every format, and holds any path."""

from __future__ import annotations

import csv
import io
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hierclass.decisions import Step
from hierclass.errors import InputError
from hierclass.tables import Output, Row, columns

GOOD = Row("a.jpg", (Step("n1", "animal", 0.97), Step("n2", "dog", 1 / 3)))
BAD = Row("b.jpg", error="is truncated")
ODD = Row('new\nline, "quoted" caf\udce9\r.jpg', (Step("n1", "animal", 1e-7), Step("n2", "toy, dog", 0.0)))
FORMATS = (".csv", ".jsonl", ".parquet")


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as file:
            return [{key: value or None for key, value in row.items()} for row in csv.DictReader(file)]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def write(path: Path, rows: list[Row]) -> None:
    with Output(path).open_table(1) as table:
        for row in rows:
            table.write([row])


def interrupted(output: Output, rows: list[Row]) -> None:
    with output.open_table(1) as table:
        table.write(rows)
        raise KeyboardInterrupt


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_columns_are_fixed_by_the_level() -> None:
    first = (
        "path",
        "error",
        "level",
        "synset",
        "label",
        "score",
        "tier0_synset",
        "tier0_label",
        "tier0_score",
    )
    assert columns(0) == first
    assert columns(1) == (*first, "tier1_synset", "tier1_label", "tier1_score")
    for row in (GOOD, BAD, ODD):
        assert tuple(row.to_dict(1)) == columns(1)


def test_a_row_says_what_its_last_step_says() -> None:
    values = GOOD.to_dict(1)
    assert values["level"] == 1
    assert (values["synset"], values["label"], values["score"]) == ("n2", "dog", 0.3333)
    assert (values["tier0_label"], values["tier0_score"]) == ("animal", 0.97)
    assert values["error"] is None


def test_a_row_with_an_error_has_nothing_but_the_error() -> None:
    values = BAD.to_dict(1)
    assert {key: value for key, value in values.items() if value is not None} == {
        "path": "b.jpg",
        "error": "is truncated",
    }


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_holds_the_same_rows(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"out{ending}"
    write(file, [GOOD, BAD, ODD])
    rows = read(file)
    assert [tuple(row) for row in rows] == [columns(1)] * 3
    assert [row["path"] for row in rows] == ["a.jpg", "b.jpg", 'new\nline, "quoted" caf\\xe9\r.jpg']
    assert [row["error"] for row in rows] == [None, "is truncated", None]
    assert float(rows[0]["score"]) == pytest.approx(0.3333, abs=1e-6)
    assert rows[1]["score"] is None
    assert int(rows[0]["level"]) == 1
    assert rows[2]["label"] == "toy, dog"
    assert names(tmp_path) == [file.name]


def test_parquet_has_types_even_if_every_row_is_an_error(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write(tmp_path / "out.parquet", [BAD])
    types = {field.name: str(field.type) for field in pq.read_schema(tmp_path / "out.parquet")}
    assert types["level"] == "int32"
    assert types["tier1_score"] == "float"
    assert types["tier1_label"] == types["path"] == types["error"] == "string"


def test_parquet_is_written_by_row_groups(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    with Output(tmp_path / "out.parquet").open_table(1) as table:
        for _ in range(25):
            table.write([GOOD] * 1000)
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert file.metadata.num_rows == 25_000
    assert file.metadata.num_row_groups == 3


@pytest.mark.parametrize("name", ["out.xlsx", "out", "out.csv.gz"])
def test_another_ending_is_an_error_that_lists_the_three(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.csv, \.jsonl or \.parquet"):
        Output(tmp_path / name)


def test_an_ending_may_be_in_capitals(tmp_path: Path) -> None:
    write(tmp_path / "OUT.CSV", [GOOD])
    assert (tmp_path / "OUT.CSV").read_text().startswith("path,error,level")


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing" / "out.csv", tmp_path / "folder.csv", tmp_path / "file" / "out.csv"):
        with pytest.raises(InputError):
            Output(path)
    with pytest.raises(InputError, match="No such file or directory"):
        Output(tmp_path / "missing" / "out.csv")


@pytest.mark.parametrize("ending", FORMATS)
def test_after_a_failure_the_old_table_stands_and_the_rows_so_far_are_kept(
    ending: str, tmp_path: Path
) -> None:
    file = tmp_path / f"out{ending}"
    file.write_text("old")
    output = Output(file)
    with pytest.raises(KeyboardInterrupt):
        interrupted(output, [GOOD, BAD])
    assert file.read_text() == "old"
    assert output.kept == tmp_path / f"out.partial{ending}"
    assert [row["path"] for row in read(output.kept)] == ["a.jpg", "b.jpg"]
    assert names(tmp_path) == sorted([file.name, output.kept.name])


def test_a_failure_before_the_first_row_leaves_nothing(tmp_path: Path) -> None:
    output = Output(tmp_path / "out.csv")
    with pytest.raises(KeyboardInterrupt):
        interrupted(output, [])
    assert output.kept is None
    assert names(tmp_path) == []


@pytest.mark.parametrize("ending", FORMATS)
def test_a_full_disk_leaves_whole_rows_or_nothing(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"out{ending}"
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from hierclass.decisions import Step\n"
        "from hierclass.tables import Output, Row\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "output = Output(Path(sys.argv[1]))\n"
        "try:\n"
        "    with output.open_table(0) as table:\n"
        "        for i in range(2000):\n"
        "            names = [f'{i}-{j}-{hash((i, j))}.jpg' for j in range(50)]\n"
        "            table.write([Row(name, (Step('n', 'x', 0.5),)) for name in names])\n"
        "except OSError as error:\n"
        "    print(type(error).__name__, output.kept, table.num_rows)\n"
    )
    command = [sys.executable, "-c", script, str(file)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert ran.stderr == ""
    assert ran.stdout.startswith("OSError")
    _, kept, num_rows = ran.stdout.split()
    if ending == ".parquet":
        assert names(tmp_path) == []
    else:
        assert len(read(Path(kept))) == int(num_rows) > 1000
        assert names(tmp_path) == [f"out.partial{ending}"]


def test_a_table_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write(tmp_path / "out.csv", [GOOD])
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("out.csv", "other")}
    assert len(modes) == 1


def test_through_a_link_the_file_behind_it_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    write(tmp_path / "link.csv", [GOOD])
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text().startswith("path,")


def test_without_a_path_csv_goes_to_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stdout)
    with Output(None).open_table(0) as table:
        table.write([Row("é.jpg", (Step("n1", "animal", 0.5),))])
    lines = stdout.buffer.getvalue().decode().splitlines()  # type: ignore[attr-defined]
    assert lines == [",".join(columns(0)), "é.jpg,,0,n1,animal,0.5,n1,animal,0.5"]


def test_a_carriage_return_in_a_path_does_not_end_a_row_of_csv(tmp_path: Path) -> None:
    write(tmp_path / "out.csv", [Row("a\rb.jpg", error="is truncated")])
    assert [row["path"] for row in read(tmp_path / "out.csv")] == ["a\rb.jpg"]
