"""Paths are read as people write them; where one leads to no image, a line says why and what to do."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import pytest

from hierclass.errors import InputError
from hierclass.images.decoding import read_image
from hierclass.images.discovery import check_named, find_inputs
from hierclass.images.path_lists import as_meant, read_list


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a photograph, which is also the working folder."""
    (tmp_path / "a b.jpg").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~/a b.jpg", "{home}/a b.jpg"),
        ("~/gone.jpg", "{home}/gone.jpg"),
        ("  a b.jpg\t", "a b.jpg"),
        ('"a b.jpg"', "a b.jpg"),
        (" '~/a b.jpg' ", "{home}/a b.jpg"),
        ('a b.jpg"', "a b.jpg"),
        ('gone.jpg"', 'gone.jpg"'),
        ("file://{home}/a%20b.jpg", "{home}/a b.jpg"),
        ("file://localhost{home}/a%20b.jpg", "{home}/a b.jpg"),
        ("file://server/a.jpg", "file://server/a.jpg"),
        ("~nobody-here/a.jpg", "~nobody-here/a.jpg"),
        ("https://example.org/a.jpg", "https://example.org/a.jpg"),
    ],
)
def test_a_path_is_read_as_it_is_meant(home: Path, written: str, meant: str) -> None:
    assert as_meant(written.format(home=home)) == meant.format(home=home)


@pytest.mark.parametrize("name", [" a b.jpg", '"a b.jpg"', "'a b.jpg'", "~", "file:a"])
def test_a_file_of_the_very_name_wins(home: Path, name: str) -> None:
    (home / name).touch()
    assert as_meant(name) == name
    assert list(find_inputs([name])) == [name]


@pytest.mark.parametrize(
    "table",
    [
        "path,label\na b.jpg,dog\n,cat\nc.jpg,cat\n",
        '\ufeffLabel;File\r\ndog;"a b.jpg"\r\ncat;c.jpg\r\n',
        "id\timage_path\n1\ta b.jpg\n2\tc.jpg",
        "image\na b.jpg\nc.jpg\n",
        'label,path\n"a ""dog"",\nof two lines",a b.jpg\ncat, c.jpg \n',
    ],
    ids=["commas", "semicolons", "tabs", "one column", "quotes"],
)
def test_a_table_gives_its_column_of_paths(home: Path, table: str) -> None:
    assert list(read_list(io.BytesIO(table.encode()))) == ["a b.jpg", "c.jpg"]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (
            "a b.jpg,dog\nc.jpg,cat\n",
            "a table whose first line names no columns; write a line such as path,label",
        ),
        ('{"path": "a b.jpg"}\n', r"is JSON; give its paths alone: jq -r .path FILE \| hierclass label -"),
        (
            "id,foto\n1,gone.jpg\n",
            "table with the columns id, foto; name that of paths one of path, file, .* or img$",
        ),
        ('Nummer;Datei\r\n1;"a b.jpg"\r\n', "with the columns Nummer, Datei; name"),
        ("n\tx y" + ",x" * 99 + "\n1" + ",y" * 99 + "\n", "with the columns n\tx y, x, x, .*, …; name"),
        ('path,label\n"a b.jpg,dog\n', "damaged near line 2 .*; give its paths alone, one per line"),
    ],
    ids=["no heading", "JSON", "unknown columns", "semicolons", "many columns", "no end"],
)
def test_a_list_that_is_no_list_is_one_error_and_not_a_thousand_rows(
    home: Path, listed: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        list(read_list(io.BytesIO(listed.encode())))


def test_tables_that_nobody_writes_are_not_read_into_memory(home: Path) -> None:
    assert len(list(read_list(io.BytesIO(b"x" * 200_000 + b"\ny")))) == 2
    rest = b'"a\n",' * (1 << 20)
    with pytest.raises(InputError, match="a row of a mebibyte"):
        list(read_list(io.BytesIO(b"path,label\n" + rest)))
    with pytest.raises(InputError, match="field larger than field limit"):
        list(read_list(io.BytesIO(b"path,label\n" + b"x" * 200_000)))


@pytest.mark.parametrize(
    "listed", ["Smith, John\na b.jpg\n", "a,b\n", "a,b\nc\n", "a,b\nc,d,e\n", "x.jpg,y\nb,c\n", 'a,b\n"c\n']
)
def test_names_with_commas_that_lead_nowhere_are_no_table(home: Path, listed: str) -> None:
    assert list(read_list(io.BytesIO(listed.encode()))) == listed.splitlines()


def test_a_name_with_the_end_of_a_line_in_it_is_read_from_a_table(home: Path) -> None:
    (home / "a\nb.jpg").touch()
    assert list(read_list(io.BytesIO(b'path,label\n"a\nb.jpg",dog\nc.jpg,cat\n'))) == ["a\nb.jpg", "c.jpg"]


def test_names_with_commas_and_braces_are_a_list(home: Path) -> None:
    for name in ("path,label", "{a}"):
        (home / name).touch()
        assert list(read_list(io.BytesIO(f"{name}\nb, c.jpg\n".encode()))) == [name, "b, c.jpg"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone.jpg", "no such file$"),
        ("https://example.org/a.jpg", "is a URL; nothing is fetched: download it and name the file"),
        ("s3://bucket/a.jpg", "is a URL; nothing is fetched"),
        ("gs://bucket/a.jpg", "is a URL; nothing is fetched"),
        ("", "^an empty text is no path; name an image file$"),
        ("*.png", "no such file; a pattern is expanded by the shell"),
        ("C:\\photos\\a.jpg", "no such file; folders are separated by / here"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_may_be_wrong(home: Path, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_image(path)


def written(folder: Path) -> dict[str, bytes]:
    """Files that are no images, by name."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.jpg", b"")
    text = dict.fromkeys(("t.csv", "t.TSV", "t.lst", "my list.txt", "t.jsonl"), b"path,label\na.jpg,dog\n")
    utf16 = {"powershell.txt": "a.jpg\r\n".encode("utf-16")}
    return (
        text
        | utf16
        | {"a.zip": packed.getvalue(), "a.tar.gz": gzip.compress(b""), "a.tgz": gzip.compress(b"")}
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "t.csv",
            "t.csv is a list or a table, not an image; leave it out, or give it as a list: hierclass label - < t.csv",
        ),
        ("t.TSV", "as a list: hierclass label - < t.TSV"),
        ("t.lst", "as a list: hierclass label - < t.lst"),
        ("my list.txt", "as a list: hierclass label - < 'my list.txt'"),
        ("powershell.txt", "as a list: hierclass label - < powershell.txt"),
        ("t.jsonl", "as a list: jq -r .path t.jsonl | hierclass label -"),
        ("a.zip", "a.zip is packed; unpack it first"),
        ("a.tar.gz", "is packed; unpack it first"),
        ("a.tgz", "is packed; unpack it first"),
    ],
)
def test_a_list_a_table_and_what_is_packed_are_refused_where_they_are_named_and_not_where_they_are_listed(
    home: Path, name: str, message: str
) -> None:
    (home / name).write_bytes(written(home)[name])
    with pytest.raises(InputError) as caught:
        check_named(name)
    assert str(caught.value).endswith(message)
    assert list(find_inputs(["-"], stdin=io.BytesIO(name.encode()))) == [name]


@pytest.mark.parametrize("data", [b"\xff\xd8\xff\xe0\0\x10JFIF", b"P3 1 1 255 1 2 3", b""])
@pytest.mark.parametrize("name", ["a.txt", "a.zip"])
def test_a_picture_is_a_picture_whatever_its_name(home: Path, name: str, data: bytes) -> None:
    (home / name).write_bytes(data)
    assert list(find_inputs([name, "gone.csv"])) == [name, "gone.csv"]
