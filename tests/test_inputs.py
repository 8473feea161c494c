"""What a user names becomes a list of paths: complete, in a fixed order, and finite."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from hierclass.errors import InputError
from hierclass.images.discovery import display_name, find_inputs


def touch(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def found(folder: Path, *names: str | Path) -> list[str]:
    """The inputs below `folder`, relative to it."""
    return [os.path.relpath(path, folder) for path in find_inputs(names or (folder,))]


def test_a_folder_gives_its_images_recursively_and_sorted(tmp_path: Path) -> None:
    touch(
        tmp_path, "b.JPG", "a.png", "c/z.jpeg", "c/d/y.WebP", "B.tif", "notes.txt", "noending", "c/data.csv"
    )
    assert found(tmp_path) == ["B.tif", "a.png", "b.JPG", "c/d/y.WebP", "c/z.jpeg"]


def test_hidden_files_and_folders_are_skipped_unless_they_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "._a.jpg", ".thumbnails/b.jpg")
    assert found(tmp_path) == ["a.jpg"]
    assert found(tmp_path, tmp_path / "._a.jpg") == ["._a.jpg"]
    assert found(tmp_path, tmp_path / ".thumbnails") == [".thumbnails/b.jpg"]


def test_a_named_file_is_kept_whatever_its_name_and_whether_it_exists(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt")
    names = [str(tmp_path / "a.txt"), str(tmp_path / "missing.jpg"), str(tmp_path / "a.txt")]
    assert list(find_inputs(names)) == names


def test_names_keep_their_order(tmp_path: Path) -> None:
    touch(tmp_path, "z.jpg", "folder/a.jpg", "folder/b.jpg", "b.jpg")
    names = [tmp_path / "z.jpg", tmp_path / "folder", tmp_path / "b.jpg"]
    assert found(tmp_path, *names) == ["z.jpg", "folder/a.jpg", "folder/b.jpg", "b.jpg"]


def test_loops_of_links_are_entered_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jpg", "b/y.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "other").symlink_to(tmp_path / "a")
    assert found(tmp_path) == ["a/x.jpg", "b/y.jpg"]


def test_a_linked_folder_is_entered(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/x.jpg", "named/y.jpg")
    (tmp_path / "named" / "link").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path, tmp_path / "named") == ["named/link/x.jpg", "named/y.jpg"]


def test_what_looks_like_an_image_but_is_none_is_not_dropped(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    touch(tmp_path, "phone.heic")
    assert found(tmp_path) == ["dangling.jpg", "folder.jpg", "loop.jpg", "phone.heic", "pipe.jpg"]


def test_an_empty_folder_beside_others_is_not_dropped(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "empty").mkdir()
    assert found(tmp_path, tmp_path / "empty", tmp_path / "a.jpg") == ["empty", "a.jpg"]


def test_nothing_but_empty_folders_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(InputError, match="no images in the folder"):
        list(find_inputs([tmp_path]))


def test_a_list_of_something_else_is_not_read_into_memory() -> None:
    with pytest.raises(InputError, match="a line of a mebibyte, which is no path"):
        list(find_inputs(["-"], stdin=io.BytesIO(b"x" * (1 << 21))))


def test_an_empty_list_is_an_error() -> None:
    with pytest.raises(InputError, match="list on standard input is empty"):
        list(find_inputs(["-"], stdin=io.BytesIO(b"\n\r\n")))
    with pytest.raises(InputError, match="no image is named"):
        list(find_inputs([]))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_list_in_utf_16_is_refused_and_not_taken_for_one_of_single_letters(encoding: str) -> None:
    listed = io.BytesIO("\ufeffphotos/cat.jpg\r\n".encode(encoding))
    with pytest.raises(InputError, match="write it as UTF-8"):
        list(find_inputs(["-"], stdin=listed))


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (b"a.jpg\nb c.jpg\n", ["a.jpg", "b c.jpg"]),
        (b"a.jpg\r\n\r\nb.jpg", ["a.jpg", "b.jpg"]),
        (b"\xef\xbb\xbfa.jpg\n", ["a.jpg"]),
        (b"a\nb.jpg\0c.jpg\0", ["a\nb.jpg", "c.jpg"]),
        (b" leading.jpg \n", [" leading.jpg "]),
        (b"caf\xe9.jpg\n", ["caf\udce9.jpg"]),
    ],
    ids=["lines", "Windows", "byte order mark", "NUL", "spaces", "no UTF-8"],
)
def test_a_list_on_standard_input_is_read(listed: bytes, expected: list[str]) -> None:
    assert list(find_inputs(["x.png", "-"], stdin=io.BytesIO(listed))) == ["x.png", *expected]


def test_a_long_list_is_read_in_pieces() -> None:
    paths = [f"folder/{number:06}.jpg" for number in range(20_000)]
    for separator in ("\n", "\0"):
        stream = io.BytesIO(separator.join(paths).encode())
        assert list(find_inputs(["-"], stdin=stream)) == paths


def test_listed_folders_are_walked(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jpg")
    assert list(find_inputs(["-"], stdin=io.BytesIO(os.fsencode(tmp_path)))) == [
        str(tmp_path / "a" / "x.jpg")
    ]


def test_a_path_is_shown_as_text_whatever_its_bytes() -> None:
    assert display_name("caf\udce9 é.jpg") == "caf\\xe9 é.jpg"
