"""Files that are written whole or not at all: what a failure says, and what it leaves."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hierclass.errors import InputError
from hierclass.files import check_writable, make_folder, replacing, replacing_all


def fail_after(file: Path, error: OSError) -> None:
    """Write a part of a file."""
    file.write_text("half", encoding="utf-8")
    raise error


def test_a_write_that_fails_names_the_file_and_leaves_the_former_one(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("former", encoding="utf-8")
    with pytest.raises(OSError, match="File too large") as caught, replacing(file) as temporary:
        fail_after(temporary, OSError(errno.EFBIG, "File too large"))  # as a stream says it, without a name
    assert caught.value.filename == str(file)
    assert [each.read_text("utf-8") for each in tmp_path.iterdir()] == ["former"]


def test_a_folder_that_is_gone_is_told_by_the_name_of_the_file(tmp_path: Path) -> None:
    files = tmp_path / "a.json", tmp_path / "none" / "b.json"
    with pytest.raises(FileNotFoundError) as caught, replacing_all(*files) as (first, second):
        assert first.write_text("1", encoding="utf-8") == second.write_text("1", encoding="utf-8")
    assert caught.value.filename == str(files[1])
    assert not list(tmp_path.iterdir())


def test_the_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a.json"):
        (tmp_path / "source").read_text(encoding="utf-8")
    assert str(caught.value.filename) == str(tmp_path / "source")


def test_what_can_not_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.json", "--json")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="is a folder; name a file"):
        check_writable(tmp_path, "--json")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^--json .* cannot be written: Not a directory$"):
        check_writable(tmp_path / "file" / "x.json", "--json")


def test_the_names_of_new_folders_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, sync = set[int](), os.fsync

    def noted(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    make_folder(tmp_path / "a" / "b" / "c")
    assert synced == {each.stat().st_ino for each in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")}
    synced.clear()
    make_folder(tmp_path / "a" / "b" / "c")
    assert synced == set()
