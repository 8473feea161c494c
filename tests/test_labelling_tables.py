"""A table is whole or absent, the same in every format, and holds any path."""

from __future__ import annotations

import csv
import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hierclass.decisions.exit_policy import Answers, StopReason
from hierclass.errors import InputError
from hierclass.labelling.inputs import Input, Stamp
from hierclass.labelling.rows import ClassNames, Outcome, Row, columns, schema
from hierclass.labelling.table_files import refuse_to_lose
from hierclass.labelling.table_writers import (
    EXCEL,
    EXCEL_SEMICOLON,
    PLAIN,
    check_target,
    csv_form_of,
    marked_as_text,
    open_writer,
    unmarked,
    write_table,
)
from taxonomy import Node, Taxonomy

FORMATS = (".csv", ".jsonl", ".parquet")
TREE = Taxonomy(
    name="tiny",
    nodes=[Node("root", "thing"), Node("n1", "animal"), Node("n2", "dog"), Node("n3", "toy, cat")],
    parents=[-1, 0, 1, 1],
    leaves=["n2", "n3"],
    tiers=[["n1"], ["n2", "n3"]],
)
ODD = 'new\nline, "quoted" caf\udce9\r.jpg'


def outcome() -> Outcome:
    """A dog, a broken file, an odd name with a sure superclass only, one that is excluded, and one that is not sure."""
    answers = Answers(
        classes=np.array([[0, 0], [-1, -1], [0, 1], [0, -1], [0, 1]], dtype=np.int32),
        scores=np.array([[0.97, 1 / 3], [np.nan, np.nan], [1, 1e-7], [0.9, np.nan], [0.41, 0.3]], np.float32),
        tier=np.array([1, -1, 0, -1, -1], dtype=np.int8),
        level=np.array([1, -1, 1, 0, 1], dtype=np.int8),
        reason=np.array(
            [StopReason.ASKED, -1, StopReason.LAST, StopReason.EXCLUDED, StopReason.NOT_SURE], np.int8
        ),
        guess=np.array([-1, -1, -1, -1, 0], dtype=np.int8),
    )
    return Outcome(
        numbers=np.arange(5),
        inputs=[
            Input("a.jpg"),
            Input("b.jpg"),
            Input(ODD),
            Input("s.tar", "x/d.jpg", 512, 9),
            Input("e.jpg"),
        ],
        answers=answers,
        errors=[None, "is truncated", None, None, None],
        previews=np.array([False, False, True, False, False]),
        stamps=[Stamp(5, 6), None, None, None, None],
    )


def table(num_tiers: int = 2) -> pa.Table:
    return outcome().table(ClassNames(TREE, num_tiers))


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as file:
            return [{key: value or None for key, value in row.items()} for row in csv.DictReader(file)]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_columns_are_fixed_by_the_number_of_tiers() -> None:
    first = ("path", "error", "level", "synset", "label", "score", "chosen_level", "stop_reason", "preview")
    assert columns(0) == first
    assert columns(1) == (*first, "tier0_synset", "tier0_label", "tier0_score")
    assert set(table().column_names) - set(columns(2)) == {"_index", "_size", "_modified"}


def test_the_columns_of_a_table_are_the_values_of_the_rows() -> None:
    rows = outcome().rows(TREE)
    found = table().select(columns(2)).to_pylist()
    for row, record in zip(rows, found, strict=True):
        assert tuple(record) == columns(2)
        for name, value in row.to_dict(2).items():
            assert record[name] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value), (
                name
            )


def test_a_row_alone_has_the_columns_of_its_own_tiers() -> None:
    dog, broken, _, other, _ = outcome().rows(TREE)
    assert dog.to_dict() == dog.to_dict(2)
    assert other.to_dict() == other.to_dict(1)
    assert tuple(broken.to_dict()) == columns(0)


def test_a_row_says_what_its_answer_says() -> None:
    dog, broken, unsure, other, _ = outcome().rows(TREE)
    assert (dog.path, dog.level, dog.synset, dog.label) == ("a.jpg", 1, "n2", "dog")
    assert dog.score == pytest.approx(1 / 3)
    assert [step.label for step in dog.steps] == ["animal", "dog"]
    assert broken == Row("b.jpg", error="is truncated")
    assert (unsure.label, unsure.chosen_level, unsure.stop_reason, unsure.preview) == (
        "animal",
        1,
        "last",
        True,
    )
    assert (other.path, other.label, other.score, other.stop_reason) == (
        "s.tar/x/d.jpg",
        None,
        None,
        "excluded",
    )
    assert [step.label for step in other.steps] == ["animal"]


def test_a_row_that_is_not_sure_shows_its_coarsest_guess_without_a_level() -> None:
    *sure, guess = outcome().rows(TREE)
    assert (guess.level, guess.answer, guess.sure, guess.stop_reason) == (None, None, False, "not sure")
    assert (guess.synset, guess.label, guess.score) == ("n1", "animal", pytest.approx(0.41))
    assert [row.sure for row in sure] == [None, False, True, False]
    record = table().to_pylist()[-1]
    assert (record["level"], record["label"], record["stop_reason"]) == (None, "animal", "not sure")


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_holds_the_same_rows(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"out{ending}"
    write_table(file, [table(), table()], schema(2))
    rows = read(file)
    assert [tuple(row) for row in rows] == [columns(2)] * 10
    assert [row["path"] for row in rows[:3]] == ["a.jpg", "b.jpg", 'new\nline, "quoted" caf\\xe9\r.jpg']
    assert [row["error"] for row in rows[:4]] == [None, "is truncated", None, None]
    assert float(rows[0]["score"]) == pytest.approx(0.3333, abs=1e-6)
    assert [row["score"] for row in (rows[1], rows[3])] == [None, None]
    assert int(rows[0]["level"]) == 1
    assert rows[2]["tier1_label"] == "toy, cat"
    assert names(tmp_path) == [file.name]


def test_scores_are_short_in_text(tmp_path: Path) -> None:
    write_table(tmp_path / "out.csv", [table()], schema(2))
    assert read(tmp_path / "out.csv")[0]["score"] == "0.3333"


FORMULAS = ["=1+1", "+1", "-1", "@A1", "\t=1", "\r=1", " =1", "'=1", '"=1', "＝1", "\0=1", "''=1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_that_a_spreadsheet_would_compute_is_marked_and_found_again(text: str) -> None:
    assert marked_as_text(text) == f"'{text}"
    assert unmarked(marked_as_text(text)) == text


@pytest.mark.parametrize("text", ["a=1", "photos/-1.jpg", "'quoted'", "", "'", "n02084071"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert marked_as_text(text) == unmarked(text) == text


@pytest.mark.parametrize(("form", "delimiter", "decimal"), [(EXCEL, ",", "."), (EXCEL_SEMICOLON, ";", ",")])
def test_csv_for_a_spreadsheet_has_a_byte_order_mark_its_line_ends_and_no_formulas(
    form: Any, delimiter: str, decimal: str, tmp_path: Path
) -> None:
    file, rows = tmp_path / "out.csv", table().to_pylist()
    rows[0]["path"] = "=cmd|' /C calc'!A0.jpg"
    rows[1]["path"] = "été;a,b.jpg"
    write_table(file, [pa.Table.from_pylist(rows, table().schema)], schema(2), form)
    data = file.read_bytes()
    assert data.startswith(b"\xef\xbb\xbfpath")
    assert data.endswith(b"\r\n")
    with open(file, newline="", encoding="utf-8-sig") as stream:
        found = list(csv.DictReader(stream, delimiter=delimiter))
    assert [tuple(row) for row in found] == [columns(2)] * 5
    paths = [
        "'=cmd|' /C calc'!A0.jpg",
        "été;a,b.jpg",
        'new\nline, "quoted" caf\\xe9\r.jpg',
        "s.tar/x/d.jpg",
        "e.jpg",
    ]
    assert [row["path"] for row in found] == paths
    assert [row["score"] for row in found] == [f"0{decimal}3333", "", f"1{decimal}0", "", f"0{decimal}41"]
    assert [row["level"] for row in found] == ["1", "", "0", "", ""]
    assert csv_form_of(file) == form
    refuse_to_lose(file)  # it is known as a table of ours


def test_plain_csv_is_what_it_was(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", [table()], schema(2))
    data = (tmp_path / "a.csv").read_bytes()
    assert data.startswith(b"path,error,level,")
    assert data.splitlines()[1] == (b"a.jpg,,1,n2,dog,0.3333,1,asked,False,n1,animal,0.97,n2,dog,0.3333")
    assert csv_form_of(tmp_path / "a.csv") == csv_form_of(tmp_path / "none.csv") == PLAIN


def test_parquet_has_types_even_if_every_row_is_an_error(tmp_path: Path) -> None:
    write_table(tmp_path / "out.parquet", [table().slice(1, 1)], schema(2))
    types = {field.name: str(field.type) for field in pq.read_schema(tmp_path / "out.parquet")}
    assert (types["level"], types["chosen_level"], types["preview"]) == ("int32", "int32", "bool")
    assert types["tier1_score"] == "float"
    assert types["tier1_label"] == types["path"] == types["error"] == "string"


def test_parquet_is_written_by_row_groups(tmp_path: Path) -> None:
    write_table(tmp_path / "out.parquet", [table()] * 6000, schema(2))
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert file.metadata.num_rows == 30_000
    assert file.metadata.num_row_groups == 3


@pytest.mark.parametrize("name", ["out.xlsx", "out", "out.csv.gz"])
def test_another_ending_is_an_error_that_lists_the_three(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.csv, \.jsonl or \.parquet, or be a folder"):
        check_target(tmp_path / name)


def test_an_ending_may_be_in_capitals(tmp_path: Path) -> None:
    write_table(tmp_path / "OUT.CSV", [table()], schema(2))
    assert (tmp_path / "OUT.CSV").read_text().startswith("path,error,level")


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing" / "out.csv", tmp_path / "folder.csv", tmp_path / "file" / "out.csv"):
        with pytest.raises(InputError):
            check_target(path)
    with pytest.raises(InputError, match="No such file or directory"):
        check_target(tmp_path / "missing" / "out.csv")


@pytest.mark.parametrize("ending", FORMATS)
def test_after_a_failure_the_old_table_stands(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"out{ending}"
    file.write_text("old")

    def breaking() -> Any:
        yield table()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_table(file, breaking(), schema(2))
    assert file.read_text() == "old"
    assert names(tmp_path) == [file.name]


def test_a_table_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_table(tmp_path / "out.csv", [table()], schema(2))
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("out.csv", "other")}
    assert len(modes) == 1


def test_through_a_link_the_file_behind_it_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    write_table(check_target(tmp_path / "link.csv"), [table()], schema(2))
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text().startswith("path,")


def test_a_file_that_takes_a_part_of_a_write_gets_all_of_it(tmp_path: Path) -> None:
    class Short:
        def __init__(self) -> None:
            self.data = b""

        def write(self, view: memoryview) -> int:
            self.data += bytes(view[:7])
            return min(7, len(view))

        def flush(self) -> None: ...

    short = Short()
    open_writer(short, "csv", schema(2)).write(table())  # type: ignore[arg-type]
    whole = tmp_path / "out.csv"
    write_table(whole, [table()], schema(2))
    assert short.data == whole.read_bytes()
