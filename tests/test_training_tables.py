"""Tables of labels: what they may hold, splits, corrections and guesses, and messages that name the cell."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import HostileFile
from hostile.archives import TABLES
from training_data import draw, jpeg

from hierclass.decisions.prediction import Step
from hierclass.errors import InputError
from hierclass.labelling import bounded_parquet
from hierclass.labelling.rows import Row, columns, schema
from hierclass.labelling.table_writers import EXCEL, EXCEL_SEMICOLON, CsvForm, write_table
from taxonomy import Taxonomy
from training.data.dataset_summary import summarise_dataset
from training.data.samples import ImageSet, read_images, split
from training.data.table_rows import TableRows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with photographs 0.jpg … 5.jpg."""
    (tmp_path / "photos").mkdir()
    for number in range(6):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(jpeg(draw(number, 0)))
    return tmp_path


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def labelled(path: Path, rows: Sequence[dict[str, Any]], *more: str) -> Path:
    """A table as ``hierclass label`` writes it, with further columns."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [*columns(3), *more])
        writer.writeheader()
        writer.writerows({"chosen_level": 2, "stop_reason": "asked", **row} for row in rows)
    return path


def found(images: ImageSet) -> dict[str, int]:
    return dict(zip(images.names, images.labels.tolist(), strict=True))


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("a.csv", "path,label\nphotos/0.jpg,beagle\nphotos/1.jpg,dog\n", "utf-8"),
        ("a.csv", "path,label\r\nphotos/0.jpg,beagle\r\nphotos/1.jpg,dog\r\n", "utf-8-sig"),
        ("a.csv", "Label;FileName\nbeagle;photos/0.jpg\n\nanimal/dog;photos/1.jpg\n", "utf-8"),
        ("a.csv", 'file,label,note\n"photos/0.jpg","Beagle","two\nlines"\nphotos/1.jpg,dog', "utf-8"),
        ("a.tsv", "image\tlabel\nphotos/0.jpg\tanimal/dog/beagle\nphotos/1.jpg\tdog\n", "utf-8"),
        ("A.CSV", "path\tlabel\nphotos/0.jpg\tbeagle\nphotos/1.jpg\tdog\n", "utf-8"),
    ],
)
def test_a_table_of_paths_and_labels_is_read(
    name: str, text: str, encoding: str, folder: Path, tiny_taxonomy: Taxonomy
) -> None:
    images = read_images([write(folder / name, text, encoding)], tiny_taxonomy)
    assert found(images) == {"photos/0.jpg": 1, "photos/1.jpg": 13}
    assert images.held_out is None
    assert images.image(0).size == (32, 32)


@pytest.mark.parametrize("label", ["label", "wnid"])
def test_a_parquet_file_holds_bytes_structs_or_paths(
    label: str, folder: Path, tiny_taxonomy: Taxonomy
) -> None:
    data = jpeg(draw(1, 0))
    kinds: dict[str, list[Any]] = {
        "bytes": [data, data],
        "structs": [{"bytes": data, "path": None}, {"bytes": None, "path": "photos/1.jpg"}],
        "paths": ["photos/0.jpg", "photos/1.jpg"],
    }
    for kind, values in kinds.items():
        pq.write_table(pa.table({"image": values, label: ["beagle", "dog"]}), folder / f"{kind}.parquet")
        images = read_images([folder / f"{kind}.parquet"], tiny_taxonomy)
        assert images.labels.tolist() == [1, 13]
        assert all(images.image(index).size == (32, 32) for index in range(2))


def test_a_column_says_what_a_row_is_for(folder: Path, tiny_taxonomy: Taxonomy) -> None:
    text = "path,label,split\n" + "".join(
        f"photos/{number}.jpg,beagle,{word}\n"
        for number, word in enumerate(("train", "", "Val", "validation", "test", "train"))
    )
    table = write(folder / "a.csv", text)
    images = read_images([table], tiny_taxonomy)
    assert images.notes == ["a.csv: left out 1 row for test"]
    train, dev = split(images, dev_from=None, dev_share=0.5, seed=0)
    assert [images.names[index] for index in dev] == ["photos/2.jpg", "photos/3.jpg"]
    assert len(train) == 3
    names = {part: list(read_images([table], tiny_taxonomy, part=part).names) for part in ("val", "test")}
    assert names == {"val": ["photos/2.jpg", "photos/3.jpg"], "test": ["photos/4.jpg"]}


def test_without_the_wanted_part_the_other_is_measured_and_else_all(
    folder: Path, tiny_taxonomy: Taxonomy
) -> None:
    for words, counts in ((("train", "test"), (1, 1)), (("train", "val"), (1, 1)), (("", ""), (2, 2))):
        rows = "".join(f"photos/{number}.jpg,beagle,{word}\n" for number, word in enumerate(words))
        table = write(folder / "a.csv", f"path,label,split\n{rows}")
        assert counts == tuple(
            len(read_images([table], tiny_taxonomy, part=part)) for part in ("val", "test")
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,label\nphotos/0.jpg,beagle\n\nphotos/9.jpg,dog\n",
            "row 4, column path: 'photos/9.jpg' is no file",
        ),
        ("path,label\n,beagle\n", "row 2, column path: is empty; give the path"),
        (
            "path,label\nphotos,beagle\n",
            "row 2, column path: 'photos' is no file; relative paths start at .*",
        ),
        ("path,label\nphotos/0.jpg,\n", "row 2, column label: is empty; give the label"),
        (
            "path,label\nphotos/0.jpg,dog\nphotos/1.jpg,unicorn\n",
            "row 3, column label: label 'unicorn' is no",
        ),
        (
            "path,label,split\nphotos/0.jpg,dog,dev2\n",
            "row 2, column split: 'dev2' is none of train, val, test",
        ),
        (
            "path,label\nphotos/0.jpg,dog\nphotos/0.jpg,cat\n",
            "row 3, column label: .* is cat here, and dog in row 2",
        ),
        (
            "path,label,split\nphotos/0.jpg,dog,\nphotos/0.jpg,dog,val\n",
            "row 3, column split: .*row 2; leave one",
        ),
        (
            "picture,kind\n1.jpg,dog\n",
            r"no column path \(or image, .*\) and no column label .*there are picture, kind",
        ),
        ("", r"no column path .*there are none"),
        ('path,label\n"photos/0.jpg,dog\n' + "x" * 140_000, r"row 2 can't be read: .*is a quote open\?"),
        ("path,label\n" + "x" * (1 << 21), "line 2 is longer than a mebibyte"),
        ("path,label\n" + '"x\n",' * (1 << 18), "line 2097.. ends a row that is longer than a mebibyte"),
        ("path,label\nphotos/0.jpg," + "x" * 40_000, "row 2, column label: has 40,000 characters"),
        ("path,label,split\nphotos/0.jpg,dog,test\n", "no row is left; left out 1 row for test"),
    ],
)
def test_what_is_wrong_is_told_with_row_and_column(
    text: str, message: str, folder: Path, tiny_taxonomy: Taxonomy
) -> None:
    with pytest.raises(InputError, match=f"^a.csv.*{message}") as caught:
        read_images([write(folder / "a.csv", text)], tiny_taxonomy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("path,label\nä,dog\n".encode("latin-1"), "a.csv line 2 is no UTF-8; save it as CSV UTF-8"),
        ("path,label\n".encode("utf-16"), "a.csv is UTF-16 text; save it as CSV UTF-8"),
    ],
)
def test_other_encodings_are_named(data: bytes, message: str, folder: Path, tiny_taxonomy: Taxonomy) -> None:
    (folder / "a.csv").write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_images([folder / "a.csv"], tiny_taxonomy)


def test_rows_of_parquet_are_counted_from_0_and_other_files_are_no_tables(
    folder: Path, tiny_taxonomy: Taxonomy
) -> None:
    pq.write_table(
        pa.table({"path": ["photos/0.jpg", "photos/1.jpg"], "label": ["dog", None]}), folder / "a.parquet"
    )
    with pytest.raises(InputError, match=r"a\.parquet row 1, column label: is empty"):
        read_images([folder / "a.parquet"], tiny_taxonomy)
    with pytest.raises(
        InputError, match=r"0.jpg is no whole Parquet file; tables end in .csv, .tsv, .parquet"
    ):
        read_images([folder / "photos" / "0.jpg"], tiny_taxonomy)


@pytest.mark.parametrize("hostile", TABLES, ids=lambda hostile: hostile.name)
def test_a_hostile_parquet_file_is_told_in_a_line(
    hostile: HostileFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_parquet, "MAX_UNPACKED", 1 << 26)
    said, found = "", 0
    try:
        rows = TableRows(hostile.write(tmp_path))
        found = sum(1 for _ in rows.read(rows.columns[:1]))
    except InputError as error:
        said = str(error)
    assert found <= 10_000
    assert len(said) < 250
    assert "\n" not in said


def test_lists_in_tables_are_refused(tmp_path: Path, tiny_taxonomy: Taxonomy) -> None:
    pq.write_table(pa.table({"image": [b""], "label": [["dog"]]}), tmp_path / "a.parquet")
    with pytest.raises(
        InputError,
        match=r"a\.parquet row 0 or after it can't be read: it holds lists in column 'label', which",
    ):
        read_images([tmp_path / "a.parquet"], tiny_taxonomy)


def test_an_image_that_is_listed_twice_alike_counts_once(folder: Path, tiny_taxonomy: Taxonomy) -> None:
    table = write(folder / "a.csv", "path,label\nphotos/0.jpg,dog\nphotos/0.jpg,dog\n")
    images = read_images([table], tiny_taxonomy)
    assert len(images) == 1
    assert images.notes == ["a.csv: left out 1 row for an image that is listed above"]


def test_paths_as_labels_are_the_ways_of_a_tree(folder: Path) -> None:
    table = write(folder / "a.csv", "path,label\nphotos/0.jpg,animal/dog\nphotos/1.jpg, animal / dog / pug\n")
    assert set(summarise_dataset([str(table)]).ways) == {("animal", "dog"), ("animal", "dog", "pug")}


# ---------------------------------------------------------------- tables that hierclass label wrote


GUESSES: list[dict[str, Any]] = [
    {"path": "photos/0.jpg", "level": 2, "label": "husky", "corrected": "beagle"},
    {"path": "photos/1.jpg", "level": 2, "label": "tabby", "corrected": ""},
    {"path": "photos/2.jpg", "level": 1, "label": "dog", "corrected": " "},
    {"path": "photos/3.jpg", "label": "", "corrected": ""},
    {"path": "photos/gone.jpg", "error": "cannot be read", "corrected": ""},
    {"path": "photos/5.jpg", "label": "", "corrected": "animal/dog"},
    {"path": "photos/4.jpg", "label": "cat", "stop_reason": "not sure", "corrected": ""},
]


def test_of_a_labelled_table_the_corrections_count(folder: Path, tiny_taxonomy: Taxonomy) -> None:
    images = read_images([labelled(folder / "a.csv", GUESSES, "corrected")], tiny_taxonomy)
    assert found(images) == {"photos/0.jpg": 1, "photos/5.jpg": 13}
    assert images.guessed is None
    assert images.notes == ["a.csv: left out 5 rows without a correction"]


@pytest.mark.parametrize("form", [EXCEL, EXCEL_SEMICOLON])
def test_a_table_for_a_spreadsheet_is_read_back_with_its_corrections(
    form: CsvForm, folder: Path, tiny_taxonomy: Taxonomy
) -> None:
    names = ["=1+1.jpg", "'=2.jpg", "- 3.jpg"]
    for number, name in enumerate(names):
        (folder / f"{number}.jpg").write_bytes((folder / "photos" / f"{number}.jpg").read_bytes())
        (folder / f"{number}.jpg").rename(folder / name)
    values = [
        Row(name, None, 0, 2, "asked", False, (Step("beagle", "beagle", 0.9),)).to_dict(3) for name in names
    ]
    write_table(folder / "a.csv", [pa.Table.from_pylist(values, schema(3))], schema(3), form)
    head, *rows = (folder / "a.csv").read_bytes().decode("utf-8-sig").splitlines()
    text = "\r\n".join([f"{head}{form.delimiter}corrected", *(f"{row}{form.delimiter}husky" for row in rows)])
    write(folder / "a.csv", text, "utf-8-sig")
    assert found(read_images([folder / "a.csv"], tiny_taxonomy)) == dict.fromkeys(names, 2)


def test_its_guesses_count_where_that_is_asked_and_are_not_held_out(
    folder: Path, tiny_taxonomy: Taxonomy
) -> None:
    table = labelled(folder / "a.csv", GUESSES, "corrected")
    images = read_images([table], tiny_taxonomy, pseudo_labels=True)
    assert found(images) == {"photos/0.jpg": 1, "photos/5.jpg": 13, "photos/1.jpg": 3, "photos/2.jpg": 13}
    assert images.guessed is not None
    assert images.guessed.tolist() == [False, False, True, True]
    assert images.notes == ["a.csv: left out 2 rows where the model was not sure, 1 row with an error"]
    more = write(folder / "b.csv", "path,label\nphotos/3.jpg,beagle\nphotos/4.jpg,beagle\n")
    both = read_images([table, more], tiny_taxonomy, pseudo_labels=True)
    for share in (0.2, 0.9):
        train, dev = split(both, dev_from=None, dev_share=share, seed=0)
        assert sorted([*train, *dev]) == list(range(6))
        assert both.guessed is not None
        assert not both.guessed[dev].any()
        own = read_images([table, more], tiny_taxonomy)  # as `evaluate` sees them
        again = split(own, dev_from=None, dev_share=share, seed=0)[1]
        assert [own.names[index] for index in again] == [both.names[index] for index in dev]


def test_what_was_not_sure_is_no_guess_where_the_table_has_no_levels(
    folder: Path, tiny_taxonomy: Taxonomy
) -> None:
    text = "path,label,chosen_level,stop_reason\nphotos/1.jpg,husky,2,sure\nphotos/2.jpg,dog,2,not sure\n"
    images = read_images([write(folder / "a.csv", text)], tiny_taxonomy, pseudo_labels=True)
    assert list(found(images)) == ["photos/1.jpg"]


def test_a_correction_elsewhere_wins_over_the_guess(folder: Path, tiny_taxonomy: Taxonomy) -> None:
    guesses = labelled(folder / "a.csv", GUESSES[1:3], "corrected")
    right = write(folder / "b.csv", "path,label\nphotos/1.jpg,persian\n")
    images = read_images([guesses, right], tiny_taxonomy, pseudo_labels=True)
    assert found(images) == {"photos/1.jpg": 4, "photos/2.jpg": 13}


def test_guesses_alone_may_be_held_out(folder: Path, tiny_taxonomy: Taxonomy) -> None:
    rows = [{"path": f"photos/{number}.jpg", "level": 2, "label": "husky"} for number in range(6)]
    images = read_images([labelled(folder / "a.csv", rows)], tiny_taxonomy, pseudo_labels=True)
    assert len(split(images, dev_from=None, dev_share=0.5, seed=0)[1]) == 3


def test_a_labelled_table_without_corrections_says_what_to_do(folder: Path, tiny_taxonomy: Taxonomy) -> None:
    with pytest.raises(InputError, match="a model's guesses; put the right ones into a column corrected, or"):
        read_images([labelled(folder / "a.csv", GUESSES[:0])], tiny_taxonomy)
    with pytest.raises(InputError, match="no row is left; left out 2 rows without a correction"):
        read_images([labelled(folder / "a.csv", GUESSES[1:3], "corrected")], tiny_taxonomy)
    table = write(folder / "b.csv", "path,label\nphotos/1.jpg,persian\n")
    with pytest.raises(InputError, match="`pseudo_labels` has no effect: no table of `data` holds guesses"):
        read_images([table], tiny_taxonomy, pseudo_labels=True)


def test_paths_of_a_labelled_table_may_start_where_the_command_ran(
    folder: Path, tiny_taxonomy: Taxonomy, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "out").mkdir()
    table = labelled(folder / "out" / "a.csv", GUESSES, "corrected")
    with pytest.raises(
        InputError, match=r"row 2, column path: 'photos/0.jpg' is no file; .* start at .* or "
    ):
        read_images([table], tiny_taxonomy)
    monkeypatch.chdir(folder)
    assert len(read_images([table], tiny_taxonomy)) == 2


def test_a_correction_wins_over_the_folder_that_the_image_lies_in(
    folder: Path, tiny_taxonomy: Taxonomy
) -> None:
    (folder / "photos").rename(folder / "beagle")
    (folder / "tables").mkdir()
    rows = [{"path": "../beagle/0.jpg", "label": "beagle", "corrected": "husky"}]
    table = labelled(folder / "tables" / "a.csv", rows, "corrected")
    for order in ([folder / "beagle", table], [table, folder / "beagle"]):
        images = read_images(order, tiny_taxonomy)
        labels = {
            Path(str(source)).name: label
            for source, label in zip(images.sources, images.labels.tolist(), strict=True)
        }
        assert (len(images), labels["0.jpg"], labels["1.jpg"]) == (6, 2, 1)


def test_images_given_twice_count_once_and_two_labels_of_one_file_are_refused(
    folder: Path, tiny_taxonomy: Taxonomy
) -> None:
    one = write(folder / "a.csv", "path,label\nphotos/0.jpg,beagle\nphotos/1.jpg,beagle\n")
    same = write(folder / "b.csv", "path,label\n./photos/0.jpg,beagle\n")
    images = read_images([one, same], tiny_taxonomy)
    assert (len(images), images.notes) == (2, ["1 image is given twice and counts once"])
    other = write(folder / "c.csv", "path,label\nphotos/0.jpg,husky\n")
    with pytest.raises(InputError, match="are one file with two labels; keep the right one"):
        read_images([one, other], tiny_taxonomy)
