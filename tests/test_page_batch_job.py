"""Many photographs on the page: zip files from strangers, uploads and their limits, rows and tables."""

from __future__ import annotations

import csv
import io
import os
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hostile import HostileFile
from hostile.archives import ZIPS
from labelling_data import nobody_can_open
from page_data import CAT, EXAMPLES, calibrated, sent

import hierclass
from hierclass.errors import ImageError, InputError
from hierclass.images.discovery import PassedOver
from hierclass.labelling.rows import columns
from hierclass.page import batch_job
from hierclass.page import uploads as uploads_module
from hierclass.page.batch_job import collect_job, draw_progress, run_batch_job, table_rows, write_tables
from hierclass.page.single import AnswerOptions
from hierclass.page.unpacking import MAX_DIRECTORY, ByteBudget, unpack
from hierclass.page.uploads import Uploads


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Path) -> Any:
    return hierclass.load(tiny_checkpoint, "cpu")


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    folder = tmp_path / "uploads"
    folder.mkdir()
    return Uploads(folder, [EXAMPLES])


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def unpacked(path: Path, tmp_path: Path, space: int = 1 << 24, most: int = 500) -> list[tuple[str, str]]:
    folder = tmp_path / "unpacked"
    folder.mkdir(exist_ok=True)
    found = list(unpack(path, "my.zip", folder, ByteBudget(space), most, PassedOver()))
    assert all(each.path is None or each.path.parent == folder for each in found)
    return [(each.name, each.error) for each in found]


# ---- zip files


def test_photographs_of_a_zip_file_are_written_under_names_of_our_own(tmp_path: Path) -> None:
    names = ["a.jpg", "../../evil.jpg", "/etc/abs.PNG", "deep/er/b.jpeg", "C:\\x\\c.jpg"]
    left_out = ["readme.txt", "__MACOSX/._a.jpg", "@eaDir/a.jpg", ".hidden.jpg", "dir/", "x.jpg/"]
    path = zipped(tmp_path / "x.zip", dict.fromkeys([*names, *left_out], b"data"))
    assert unpacked(path, tmp_path) == [(f"my.zip/{name}", "") for name in names]
    assert sorted(each.name for each in (tmp_path / "unpacked").iterdir()) == [
        "0.jpg", "1.jpg", "2.png", "3.jpeg", "4.jpg",
    ]  # fmt: skip
    assert not (tmp_path.parent / "evil.jpg").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_damaged_member_is_a_row_and_the_others_come(tmp_path: Path, method: int) -> None:
    members = {f"{n}.jpg": os.urandom(2000) + bytes(3000) for n in range(3)}
    data = bytearray(zipped(tmp_path / "x.zip", members, method).read_bytes())
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        start = archive.getinfo("1.jpg").header_offset
    for at in range(start + 60, start + 1000):
        data[at] ^= 0xA5
    (tmp_path / "x.zip").write_bytes(data)
    found = unpacked(tmp_path / "x.zip", tmp_path)
    assert [bool(error) for _, error in found] == [False, True, False]
    assert found[1][1] == "is damaged inside of its zip file"


def test_a_locked_member_says_so(tmp_path: Path) -> None:
    data = bytearray(zipped(tmp_path / "x.zip", {"a.jpg": b"data"}).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    assert unpacked(tmp_path / "x.zip", tmp_path) == [
        ("my.zip/a.jpg", "is locked with a password; pack it without one")
    ]


def test_a_bomb_is_stopped_where_the_space_ends(tmp_path: Path) -> None:
    path = zipped(
        tmp_path / "x.zip", {"a.jpg": bytes(1000), "bomb.jpg": bytes(50_000_000), "c.jpg": bytes(10)}
    )
    found = unpacked(path, tmp_path, space=1_000_000)
    assert [error[:13] for _, error in found] == ["", "is left out: ", ""]
    assert sum(each.stat().st_size for each in (tmp_path / "unpacked").iterdir()) < 1_000_000


def test_a_list_of_members_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    size = MAX_DIRECTORY + 1000
    with path.open("wb") as file:
        file.write(bytes(size))
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, size, 0, 0))
    with pytest.raises(InputError, match="is no whole zip file"):
        unpacked(path, tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x05\x06", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_zip_file_is_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"my\.zip is no whole zip file"):
        unpacked(tmp_path / "x.zip", tmp_path)


def test_too_many_photographs_in_a_zip_file_are_refused_before_any_is_written(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {f"{n}.jpg": b"" for n in range(20)})
    with pytest.raises(InputError, match="holds 20 photographs; up to 10"):
        unpacked(path, tmp_path, most=10)
    assert list((tmp_path / "unpacked").iterdir()) == []


@pytest.mark.parametrize("hostile", ZIPS, ids=lambda hostile: hostile.name)
def test_a_hostile_zip_file_is_told_in_a_line(hostile: HostileFile, tmp_path: Path) -> None:
    try:
        told = [error for _, error in unpacked(hostile.write(tmp_path), tmp_path, space=1 << 21)]
    except InputError as error:
        told = [str(error)]
    assert any(hostile.says in each for each in told) or not hostile.says
    assert all("\n" not in each and len(each) < 250 for each in told)
    assert sum(each.stat().st_size for each in (tmp_path / "unpacked").iterdir()) <= 1 << 21


def test_a_photograph_with_an_endless_name_is_told_by_its_beginning(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"a/" * 5000 + ".x.jpg": b"", "b/" * 3000 + "b.jpg": b"data"})
    ((name, error),) = unpacked(path, tmp_path)
    assert len(name) < 5000
    assert error == "has a name of 6,005 characters; give it a shorter one"


# ---- uploads


def test_only_uploads_and_examples_can_be_meant(uploads: Uploads, tmp_path: Path) -> None:
    inside = uploads.folder / "a.jpg"
    inside.write_bytes(b"x")
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"x")
    (uploads.folder / "link.jpg").symlink_to(secret)
    assert uploads.find(sent(inside)) == inside
    assert uploads.find({"path": str(CAT)}) == CAT
    bad: list[Any] = [
        secret,
        uploads.folder / ".." / "secret.jpg",
        uploads.folder / "link.jpg",
        uploads.folder,
    ]
    for value in [{"path": str(each)} for each in bad] + [
        None,
        "x",
        3,
        {},
        {"path": None},
        {"path": "a\0b"},
        [],
    ]:
        with pytest.raises(ImageError, match=r"is not here|did not arrive"):
            uploads.find(value)


def test_what_is_old_is_deleted_with_its_folders_and_what_is_new_stays(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    (uploads.folder / "a" / "b").mkdir(parents=True)
    (uploads.folder / "a" / "b" / "old.jpg").write_bytes(b"x")
    (uploads.folder / "empty").mkdir()
    uploads.sweep()
    assert (uploads.folder / "a" / "b" / "old.jpg").exists()
    now = time.time()
    monkeypatch.setattr(uploads_module.time, "time", lambda: now + uploads_module.KEPT_SECONDS + 60)
    uploads.sweep()
    assert not (uploads.folder / "a" / "b" / "old.jpg").exists()
    assert not (uploads.folder / "empty").exists()
    assert uploads.folder.exists()


def test_sweeping_goes_on_by_itself_until_it_is_closed(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads_module, "SWEEP_SECONDS", 0.05)
    soon = Uploads(uploads.folder, kept_seconds=0.2)
    soon.start_sweeping()
    (uploads.folder / "x.jpg").write_bytes(b"x")
    for _ in range(600):
        if not (uploads.folder / "x.jpg").exists():
            break
        time.sleep(0.05)
    assert not (uploads.folder / "x.jpg").exists()
    soon.close()
    assert not uploads.folder.exists()


def test_the_files_of_the_page_itself_stay(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    (uploads.folder / "example.jpg").write_bytes(b"x")
    uploads.keep_what_is_there()
    (uploads.folder / "later.jpg").write_bytes(b"x")
    now = time.time()
    monkeypatch.setattr(uploads_module.time, "time", lambda: now + uploads_module.KEPT_SECONDS + 60)
    uploads.sweep()
    assert [each.name for each in uploads.folder.iterdir()] == ["example.jpg"]


def test_the_folder_of_a_page_that_was_killed_is_removed_and_that_of_one_that_runs_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = tmp_path / f"{uploads_module.PREFIX}dead"
    dead.mkdir()
    (dead / "x.jpg").write_bytes(b"x")
    code = (
        "import sys, tempfile; from hierclass.page.uploads import Uploads\n"
        f"tempfile.tempdir = {str(tmp_path)!r}\n"
        "with Uploads.opened() as found: print(found.folder, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    running = Path(other.stdout.readline().strip())
    with Uploads.opened() as mine:
        assert Path(tempfile.gettempdir()) == mine.folder  # all that is temporary goes there
        mine.sweep()
        assert running.exists()
        assert mine.folder.exists()
        assert not dead.exists()
    assert not mine.folder.exists()
    assert tempfile.gettempdir() == str(tmp_path)
    other.kill()
    other.wait()
    with Uploads.opened():
        assert not running.exists()


def test_the_disk_is_not_filled(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = SimpleNamespace(total=100 << 30, used=0, free=(1 << 30) + 5000)
    monkeypatch.setattr(uploads_module.shutil, "disk_usage", lambda _: sizes)
    assert uploads.free_space() == 5000
    uploads.check_space(4000)
    with pytest.raises(InputError, match="nearly full"):
        uploads.check_space(6000)
    sizes.free = 1 << 30
    with pytest.raises(InputError, match="nearly full"):
        uploads.result_folder()
    sizes.total = sizes.free  # a small disk keeps a share of it free
    assert uploads.free_space() > 0.9 * sizes.free


def test_no_more_uploads_are_taken_than_there_is_room_for(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    (uploads.folder / "a").mkdir()
    (uploads.folder / "a" / "x.jpg").write_bytes(bytes(2000))
    uploads.check_space()
    with pytest.raises(InputError, match="try again"):
        uploads.check_space(uploads_module.MAX_STORED)  # what is on its way counts
    monkeypatch.setattr(uploads_module, "MAX_STORED", 1000)
    with pytest.raises(InputError, match="try again"):
        uploads.check_space()
    monkeypatch.setattr(uploads_module, "MAX_STORED", 5000)
    monkeypatch.setattr(uploads_module, "MAX_FILES", 0)
    with pytest.raises(InputError, match="try again"):
        uploads.check_space()


# ---- rows


@pytest.fixture
def mixed(uploads: Uploads) -> list[dict[str, Any]]:
    """A photograph, a broken one, a zip file with one of each, a zip file without any, and a file that is gone."""
    broken = uploads.folder / "broken.jpg"
    broken.write_bytes(b"no photograph")
    good = zipped(uploads.folder / "two.zip", {"in/cat.jpg": CAT.read_bytes(), "in/bad.jpg": b"no"})
    empty = zipped(uploads.folder / "empty.zip", {"readme.txt": b"x"})
    return [sent(CAT), sent(broken), sent(good), sent(empty), sent(uploads.folder / "gone.jpg")]


def run(classifier: Any, uploads: Uploads, files: Any, tmp_path: Path, **more: Any) -> Any:
    folder = tmp_path / "work"
    folder.mkdir()
    job = collect_job(uploads, files, folder)
    for _ in run_batch_job(classifier, job, AnswerOptions(tier=2, **more), thumbnails=True):
        pass
    return job


def test_every_photograph_has_one_row_in_the_order_in_which_it_was_sent(
    classifier: Any, uploads: Uploads, mixed: list[Any], tmp_path: Path
) -> None:
    job = run(classifier, uploads, mixed, tmp_path)
    assert [row.path for row in job.done] == [
        "cat.jpg", "broken.jpg", "two.zip/in/cat.jpg", "two.zip/in/bad.jpg", "empty.zip", "gone.jpg",
    ]  # fmt: skip
    assert [row.error is None for row in job.done] == [True, False, True, False, False, False]
    assert job.done[4].error == "holds no photographs; 1 other file passed over (.txt 1)"
    assert job.done[5].error == "is not here any more"
    assert job.done[0].label == job.done[2].label == classifier.predict(CAT).label
    assert str(tmp_path) not in repr(table_rows(job))
    assert "6 photographs labelled" in draw_progress(job)
    assert "4 could not be read · 1 other file passed over (.txt 1)" in draw_progress(job)


def test_the_tables_are_those_of_the_command(
    classifier: Any, uploads: Uploads, mixed: list[Any], tmp_path: Path
) -> None:
    job = run(classifier, uploads, mixed, tmp_path)
    text, parquet = write_tables(job, 3, uploads.result_folder())
    rows = pq.read_table(parquet).to_pylist()
    assert tuple(rows[0]) == columns(3)
    assert [row["path"] for row in rows] == [row.path for row in job.done]
    (alone,) = hierclass.label([CAT], classifier=classifier)
    assert rows[0] == pytest.approx({**alone.to_dict(3), "path": "cat.jpg"})
    assert pyarrow.csv.read_csv(text).num_rows == 6


@pytest.mark.parametrize(
    "name",
    ["=1+1", "+1", "-1", "@A1", "\t=1", "\r=1", " =1", "'=1", '"=1"', "＝1", "=cmd|' C calc'!A0"],
)
def test_formulas_are_no_formulas_in_the_csv_table(
    classifier: Any, uploads: Uploads, tmp_path: Path, name: str
) -> None:
    job = run(classifier, uploads, [sent(CAT, orig_name=f"{name}.jpg")], tmp_path)
    text, parquet = write_tables(job, 3, uploads.result_folder())
    with text.open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    (plain,) = pq.read_table(parquet).to_pylist()
    assert (row["path"], plain["path"]) == (f"'{job.done[0].path}", job.done[0].path)
    assert float(row["score"]) == pytest.approx(plain["score"], abs=1e-6)  # numbers are numbers
    assert row["label"] == plain["label"]


def test_characters_that_hide_others_are_written_out_in_the_table(
    classifier: Any, uploads: Uploads, tmp_path: Path
) -> None:
    job = run(classifier, uploads, [sent(CAT, orig_name="photo\u202egpj.exe\x1b[2J.jpg")], tmp_path)
    assert table_rows(job)[0][4] == r"photo\u202egpj.exe\x1b[2J.jpg"


def test_pictures_are_shown_beside_what_could_be_read(
    classifier: Any, uploads: Uploads, mixed: list[Any], tmp_path: Path
) -> None:
    rows = table_rows(run(classifier, uploads, mixed, tmp_path))
    assert ["<img" in row[1] for row in rows] == [True, False, True, False, False, False]
    assert rows[1][2] == "could not be read"
    assert all(len(row) == len(batch_job.HEADERS) == len(batch_job.KINDS) for row in rows)


def test_an_answer_that_is_not_sure_is_marked_as_a_guess(
    tiny_checkpoint: Path, uploads: Uploads, tmp_path: Path
) -> None:
    model = calibrated(tiny_checkpoint, {0.9: 0.3})
    (row,) = table_rows(run(model, uploads, [sent(CAT)], tmp_path, precision=0.9))
    assert row[5] in ("animal", "vehicle")
    assert row[6].startswith("perhaps ")
    none = calibrated(tiny_checkpoint, {0.9: None})
    (tmp_path / "work").rmdir()
    (row,) = table_rows(run(none, uploads, [sent(CAT)], tmp_path, precision=0.9))
    assert re.fullmatch(r"not sure: (animal|vehicle) \(\d+%\)", row[2])
    assert row[3] is None  # is sorted behind what is sure


def test_rows_are_there_before_all_are_done(classifier: Any, uploads: Uploads, tmp_path: Path) -> None:
    job = collect_job(uploads, [sent(CAT)] * 100, tmp_path)
    counts = [len(job.done) for _ in run_batch_job(classifier, job, AnswerOptions(tier=0), thumbnails=False)]
    assert counts[0] == 0
    assert counts[-1] == 100
    assert len(counts) > 5


def test_what_takes_too_long_ends_with_a_row_for_every_photograph(
    classifier: Any, uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_job, "MAX_SECONDS", 0.0)
    job = collect_job(uploads, [sent(CAT)] * 100, tmp_path)
    list(run_batch_job(classifier, job, AnswerOptions(tier=0), thumbnails=False))
    assert job.finished
    assert job.done[0].error is None
    assert "was not reached within" in str(job.done[99].error)


@pytest.mark.parametrize("files", [None, [], {}, "x", 3])
def test_nothing_to_label_is_a_sentence(uploads: Uploads, tmp_path: Path, files: Any) -> None:
    if files == {}:
        assert collect_job(uploads, files, tmp_path).photographs[0].error == "did not arrive"
        return
    with pytest.raises(InputError, match="nothing to label yet"):
        collect_job(uploads, files, tmp_path)


def test_too_many_photographs_are_refused_with_a_way_out(
    uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_job, "MAX_PHOTOGRAPHS", 5)
    two = zipped(uploads.folder / "x.zip", {f"{n}.jpg": b"" for n in range(3)})
    for files in ([sent(CAT)] * 6, [sent(CAT), sent(CAT), sent(CAT), sent(two)]):
        with pytest.raises(InputError, match=r"6 photographs are too many .* hierclass label"):
            collect_job(uploads, files, tmp_path)


@pytest.mark.parametrize(
    ("orig_name", "shown"),
    [
        ("a\\b\\c.jpg", "c.jpg"),
        ("../../x.jpg", "x.jpg"),
        ("\ud800.jpg", "\\ud800.jpg"),
        (None, "cat.jpg"),
        (7, "cat.jpg"),
    ],
)
def test_files_are_called_what_the_user_calls_them(
    uploads: Uploads, tmp_path: Path, orig_name: Any, shown: str
) -> None:
    (found,) = collect_job(uploads, {**sent(CAT), "orig_name": orig_name}, tmp_path).photographs
    assert found.name == shown


def test_a_full_disk_is_a_sentence(
    classifier: Any, uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run(classifier, uploads, [sent(CAT)], tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hierclass.files.os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        write_tables(job, 3, tmp_path)


def test_a_photograph_that_takes_too_long_has_an_error_and_the_others_are_labelled(
    classifier: Any, uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_job, "READ_SECONDS", 2.0)
    archive = uploads.folder / "late.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(CAT, "cat.jpg")
    with nobody_can_open(archive):
        job = run(classifier, uploads, [sent(CAT), sent(archive), sent(CAT)], tmp_path)
    assert [row.error for row in job.done] == [None, "takes longer than 2 s to read", None]
    assert sorted(job.thumbnails) == [0, 2]
