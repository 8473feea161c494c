"""Files that are written whole or not at all: what a failure says, and what it leaves."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hierclass.errors import InputError
from hierclass.files import check_writable, locked, make_folder, replacing, replacing_all


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
    assert check_writable(tmp_path / "new.json", "--json", overwrite=False) == tmp_path / "new.json"
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="is a folder; name a file"):
        check_writable(tmp_path, "--json", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^--json .* cannot be written: Not a directory$"):
        check_writable(tmp_path / "file" / "x.json", "--json", overwrite=True)


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


# ---- locks


def test_a_lock_touches_neither_links_nor_what_is_no_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("dear", encoding="utf-8")
    (tmp_path / "link").symlink_to(mine)
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling", "folder", "pipe"):
        with (
            pytest.raises(OSError, match=f"its {name} is no regular file; remove it"),
            locked(tmp_path / name),
        ):
            pass
    with locked(mine), locked(tmp_path / "new" / "folder" / ".lock"):
        pass
    assert mine.read_text("utf-8") == "dear"
    assert not (tmp_path / "none").exists()


HOLDS = """
import os, shutil, sys
from pathlib import Path
from hierclass.errors import InputError
from hierclass.files import locked
root, held = Path(sys.argv[1]), 0
for turn in range(1000):
    try:
        with locked(root / "run" / ".lock", "busy", wait=turn % 2 == 0):
            os.close(os.open(root / "inside", os.O_CREAT | os.O_EXCL))  # fails if another process is inside
            os.unlink(root / "inside")
            held += 1
            if turn % 3 == 0:
                (root / "run" / ".lock").unlink()
            elif turn % 3 == 1:
                shutil.rmtree(root / "run", ignore_errors=True)
    except InputError:
        pass
print(held)
"""


def test_one_process_at_a_time_holds_a_lock_whose_file_is_removed_by_its_holders(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    held = [int(process.communicate()[0]) for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert min(held) >= 500
