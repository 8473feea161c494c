"""Archives are listed and read image by image; what is broken is an input that has an error."""

from __future__ import annotations

import io
import shlex
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import HostileFile
from hostile import tables as made
from hostile.archives import TABLES, TARS, TINY_PNG, member
from PIL import Image

from hierclass.errors import ImageError, InputError
from hierclass.images.decoding import read_image
from hierclass.images.discovery import PassedOver
from hierclass.labelling import bounded_parquet
from hierclass.labelling.bounded_parquet import BoundedParquet
from hierclass.labelling.inputs import Input, ParquetRows, list_inputs, source, stamp
from hierclass.labelling.tar_members import LINK, TarMember, list_tar
from taxonomy.folders import IGNORED


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def grey(item: Input, rows: ParquetRows | None = None) -> int:
    data = (rows or ParquetRows()).data(item)
    return int(np.asarray(read_image(source(item) if data is None else data))[0, 0, 0])


def test_a_tar_file_gives_its_images_in_their_order(tmp_path: Path) -> None:
    shard = tar_of(
        tmp_path / "a.tar",
        {"z/000.png": png(1), "z/000.cls": b"3", "z/001.json": b"{}", "z/001.PNG": png(2), "b.png": png(3)},
    )
    found = list(list_inputs([shard]))
    assert [item.name for item in found] == [
        f"{shard}/{name}" for name in ("z/000.png", "z/001.PNG", "b.png")
    ]
    rows = ParquetRows()
    assert [grey(item, rows) for item in reversed(found)] == [3, 2, 1]


def test_tar_files_in_folders_are_found_beside_images(tmp_path: Path) -> None:
    tar_of(tmp_path / "b.tar", {"x.png": png(1)})
    for name in ("a.png", "c.png"):
        (tmp_path / name).write_bytes(png(0))
    names = [item.name.removeprefix(f"{tmp_path}/") for item in list_inputs([tmp_path])]
    assert names == ["a.png", "b.tar/x.png", "c.png"]


def test_of_a_tar_file_what_describes_no_image_is_counted_and_what_is_ignored_is_left_out(
    tmp_path: Path,
) -> None:
    members = {
        "./0/a.png": png(1),
        "./0/a.json": b"{}",
        "./0/a.seg.png.npy": b"",
        "1/b.cls": b"1",
        "1/b.jxl": b"",
        "1/b.png": png(2),
        "2/c.mov": b"",
        "2/c.json": b"{}",
        "__MACOSX/0/._a.png": b"",
        "./.cache/d.png": b"",
        "raw/e.png": png(3),
        "notes.txt": b"",
    }
    shard, passed_over = tar_of(tmp_path / "a.tar", members), PassedOver()
    found = list(list_inputs([shard], ignore=[*IGNORED, f"{shard}/raw"], passed_over=passed_over))
    assert [item.member for item in found] == ["./0/a.png", "1/b.png"]
    assert passed_over.counts() == "4 other files passed over (.json 1, .jxl 1, .mov 1, .txt 1)"


def test_an_archive_of_other_files_alone_says_what_is_in_it(tmp_path: Path) -> None:
    shard = tar_of(tmp_path / "a.tar", {"0.jxl": b"", "1.txt": b""})
    with pytest.raises(
        InputError, match=r"no images in .*a\.tar; 2 other files .*; convert to JPEG or PNG: .jxl$"
    ):
        list(list_inputs([shard]))


def test_of_a_tar_file_whose_images_are_all_ignored_one_is_named(tmp_path: Path) -> None:
    shard = tar_of(tmp_path / "a.tar", {"x/0.png": png(0)})
    with pytest.raises(
        InputError,
        match=r"no images in .*a\.tar but ignored ones, such as .*a\.tar/x/0\.png \(see --ignore\);",
    ):
        list(list_inputs([shard], ignore=("x",)))


def test_folders_in_a_tar_file_are_no_images_and_links_are_errors(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (
            ("d.png", tarfile.DIRTYPE),
            ("s.png", tarfile.SYMTYPE),
            ("h.png", tarfile.LNKTYPE),
            ("f.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("ok.png")
        info.size = len(png(1))
        tar.addfile(info, io.BytesIO(png(1)))
    symbolic, hard, good = list_inputs([tmp_path / "a.tar"])
    for link in (symbolic, hard):
        with pytest.raises(ImageError, match="is a link inside of its tar file; unpack the file"):
            grey(link)
    assert (symbolic.member, hard.member, good.member, grey(good)) == ("s.png", "h.png", "ok.png", 1)


@pytest.mark.parametrize(("cut", "whole"), [(100, []), (550, []), (700, [1]), (1300, [1]), (1580, [1])])
def test_a_tar_file_that_was_cut_gives_what_is_whole_and_an_error(
    tmp_path: Path, cut: int, whole: list[int]
) -> None:
    shard = tar_of(tmp_path / "a.tar", {"0.png": png(1), "1.png": png(2)})
    shard.write_bytes(shard.read_bytes()[:cut])
    rows, errors, good = ParquetRows(), [], []
    for item in list_inputs([shard]):
        try:
            good.append(grey(item, rows))
        except ImageError as error:
            errors.append(str(error))
    assert len(errors) >= 1
    assert all("tar file" in error for error in errors)
    assert good == whole


def test_a_compressed_tar_file_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.add(Path(__file__), "x.png")
    (item,) = list_inputs([tmp_path / "a.tar"])
    with pytest.raises(ImageError, match="unpacked first"):
        grey(item)


def parquet_of(path: Path, count: int, *, struct: bool = False, group: int = 7) -> Path:
    values: list[object] = [png(row % 256) for row in range(count)]
    if struct:
        values = [{"bytes": value, "path": "x"} for value in values]
    table = pa.table({"id": list(range(count)), "image": values})
    pq.write_table(table, path, row_group_size=group)
    return path


@pytest.mark.parametrize("struct", [False, True])
def test_a_parquet_file_gives_its_rows(tmp_path: Path, struct: bool) -> None:
    file = parquet_of(tmp_path / "a.parquet", 40, struct=struct)
    found = list(list_inputs([file]))
    assert [item.name for item in found] == [f"{file}/{row}" for row in range(40)]
    rows = ParquetRows()
    assert [grey(item, rows) for item in found] == list(range(40))


def test_rows_of_a_parquet_file_can_be_passed_over(tmp_path: Path) -> None:
    one, two = parquet_of(tmp_path / "a.parquet", 40), parquet_of(tmp_path / "b.parquet", 40)
    wanted = [Input(str(file), str(row), row) for file in (one, two) for row in (3, 4, 29, 39)]
    rows = ParquetRows()
    assert [grey(item, rows) for item in wanted] == [3, 4, 29, 39] * 2
    assert grey(Input(str(one), "5", 5), rows) == 5  # backwards, after the other file


def test_the_column_of_images_can_be_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [png(1)], "mask": [png(2)], "text": ["x"]}), file)
    (item,) = list_inputs([file], image_column="mask")
    assert grey(item, ParquetRows("mask")) == 2
    for name, message in (("text", "holds no bytes"), ("nothing", "does not exist")):
        with pytest.raises(InputError, match=message):
            list(list_inputs([file], image_column=name))


def test_a_parquet_file_without_images_is_refused_and_says_how_to_label_what_it_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"id": [1], "path": ["a.jpg"]}), tmp_path / "labels.parquet")
    with pytest.raises(InputError, match="no column of images") as caught:
        list(list_inputs([tmp_path / "labels.parquet"]))
    code = shlex.split(str(caught.value).partition("as a list: ")[2].partition(" | hierclass label -")[0])[-1]
    exec(code)
    assert capsys.readouterr().out == "a.jpg\n"


def test_a_list_that_is_named_is_refused_on_the_call(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path\na.jpg\n")
    with pytest.raises(InputError, match="as a list: hierclass label - <"):
        list_inputs([tmp_path / "b.jpg", tmp_path / "a.csv"])


def test_a_row_without_bytes_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [png(1), None, png(3)]}), file)
    rows, (first, second, third) = ParquetRows(), list_inputs([file])
    assert grey(first, rows) == 1
    with pytest.raises(ImageError, match="no bytes"):
        grey(second, rows)
    assert grey(third, rows) == 3


def test_a_broken_parquet_file_is_an_error(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", 4)
    file.write_bytes(file.read_bytes()[:-20])
    (item,) = list_inputs([file])
    with pytest.raises(ImageError, match="no whole Parquet file"):
        grey(item)


def test_a_parquet_file_that_went_away_is_an_error_for_each_row(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", 3)
    found, rows = list(list_inputs([file])), ParquetRows()
    file.unlink()
    for item in found:
        with pytest.raises(ImageError, match="archive does not exist any more"):
            grey(item, rows)


def test_the_stamp_of_a_file_changes_with_it(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    assert stamp(str(file)) is None
    file.write_bytes(b"1")
    before = stamp(str(file))
    file.write_bytes(b"22")
    assert stamp(str(file)) != before
    assert stamp("a" * 5000) is None


# ---- hostile archives


def outcomes(file: Path) -> Counter[str]:
    """How often each error is met, or an input is read without decoding it."""
    rows, found = ParquetRows(), Counter[str]()
    try:
        for item in list_inputs([file]):
            try:
                data = rows.data(item)
                found["read" if (source(item) if data is None else data) else "is empty"] += 1
            except ImageError as error:
                found[str(error)] += 1
    except InputError as error:
        found[str(error)] += 1
    return found


@pytest.mark.parametrize("hostile", [*TARS, *TABLES], ids=lambda hostile: hostile.name)
def test_a_hostile_archive_is_told_in_a_line(
    hostile: HostileFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_parquet, "MAX_UNPACKED", 1 << 27)
    found = outcomes(hostile.write(tmp_path))
    count, _, says = hostile.says.rpartition(" rows: ")
    assert any(says in each for each in found)
    assert not count or sum(found.values()) == int(count)
    assert all("\n" not in each and len(each) < 250 for each in found)


def test_what_stands_before_a_hostile_member_is_labelled(tmp_path: Path) -> None:
    for hostile in TARS[:8]:
        with hostile.write(tmp_path).open("rb") as file:
            (tmp_path / "whole.tar").write_bytes(member("first.png", TINY_PNG) + file.read(4096))
        first, *_ = list_inputs([tmp_path / "whole.tar"])
        assert read_image(source(first)).size == (1, 1)


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_lists(tmp_path: Path, format_: int) -> None:
    names = ["a.png", "d/" * 40 + "b.jpg", "ä ö.png", "c\udcff.gif", "e" * 90 + ".png", "f/", "g"]
    if format_ != tarfile.USTAR_FORMAT:
        names += ["h" * 300 + ".png", "i/" * 700 + ".webp"]
    with tarfile.open(tmp_path / "a.tar", "w", format=format_) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size = 0 if info.isdir() else 400 * number
            tar.addfile(info, io.BytesIO(bytes(info.size)))
        link = tarfile.TarInfo("l" * 200 + ".png" if format_ != tarfile.USTAR_FORMAT else "l.png")
        link.type, link.linkname = tarfile.SYMTYPE, "t" * (200 if format_ != tarfile.USTAR_FORMAT else 20)
        tar.addfile(link)
    with tarfile.open(tmp_path / "a.tar") as tar:
        theirs = [
            TarMember(each.name, each.offset_data, LINK if each.issym() else each.size)
            for each in tar
            if not each.isdir()
        ]
    assert list(list_tar(str(tmp_path / "a.tar"))) == theirs


def test_rows_after_a_damaged_group_are_read(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", 21)
    where = pq.read_metadata(file).row_group(1).column(1).data_page_offset
    data = bytearray(file.read_bytes())
    data[where : where + 20] = b"\xff" * 20
    file.write_bytes(data)
    rows, found = ParquetRows(), list(list_inputs([file]))
    for item in found[7:14]:
        with pytest.raises(ImageError, match="can't be read from its Parquet file"):
            grey(item, rows)
    assert [grey(item, rows) for item in (*found[14:], *found[:7])] == [*range(14, 21), *range(7)]


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize(
    ("version", "encoding"), [("1.0", "PLAIN"), ("2.0", "DELTA_BYTE_ARRAY"), ("1.0", None)]
)
def test_parquet_files_of_every_writer_are_read(
    tmp_path: Path, codec: str, version: str, encoding: str | None
) -> None:
    values = [bytes([row % 251]) * (37 * row) if row % 7 else None for row in range(100)]
    columns = {} if encoding is None else {"use_dictionary": False, "column_encoding": {"image": encoding}}
    pq.write_table(
        pa.table({"image": pa.array(values, pa.binary())}),
        tmp_path / "a.parquet",
        compression=codec,
        data_page_version=version,
        data_page_size=4000,
        row_group_size=60,
        write_page_checksum=True,
        **columns,
    )
    with BoundedParquet(tmp_path / "a.parquet") as file:
        found = [
            value for _, batch in file.batches(["image"], first=3) for value in batch.column(0).to_pylist()
        ]
    assert found == values[3:]


def test_values_that_outgrow_their_file_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_parquet, "MAX_UNPACKED", 1 << 22)
    file = made.one_dictionary_value(tmp_path, size=1 << 16, rows=200)
    assert (
        outcomes(file)["can't be read from its Parquet file: it unpacks to more than 200 times its size"]
        > 100
    )
    ordinary = parquet_of(tmp_path / "a.parquet", 200)
    assert outcomes(ordinary) == {"read": 200}
