"""What a user names becomes a list of paths: complete, in a fixed order, and finite."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hierclass.errors import InputError
from hierclass.images.discovery import PassedOver, display_name, find_inputs, what_else
from taxonomy.folders import IGNORED


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


def test_what_nas_and_desktops_leave_behind_is_skipped_unless_it_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "@eaDir/a.jpg/b.jpg", "c/#recycle/d.jpg", "$Recycle.Bin/e.jpg", "__MACOSX/f.jpg")
    assert found(tmp_path) == ["a.jpg"]
    assert found(tmp_path, tmp_path / "@eaDir") == ["@eaDir/a.jpg/b.jpg"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*_small.JPG"], ["a.jpg", "b/a.jpg", "b/c/a.jpg"]),
        (["b"], ["a.jpg", "a_small.jpg"]),
        (["b/c"], ["a.jpg", "a_small.jpg", "b/a.jpg"]),
        (["./b/c/"], ["a.jpg", "a_small.jpg", "b/a.jpg"]),
        (["c/"], ["a.jpg", "a_small.jpg", "b/a.jpg"]),
        (["/a.jpg"], ["a_small.jpg", "b/a.jpg", "b/c/a.jpg"]),
        (["*/a.jpg"], ["a.jpg", "a_small.jpg"]),
        (["{folder}/b"], ["a.jpg", "a_small.jpg"]),
        (["a.jpg", "c"], ["a_small.jpg"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_patterns_leave_out_names_or_paths_in_any_case(
    tmp_path: Path, patterns: list[str], expected: list[str]
) -> None:
    folder = tmp_path / "photos"
    touch(folder, "a.jpg", "a_small.jpg", "b/a.jpg", "b/c/a.jpg", "@eaDir/a.jpg")
    ignore = [*IGNORED, *(pattern.format(folder=folder) for pattern in patterns)]
    assert [os.path.relpath(path, folder) for path in find_inputs([folder], ignore=ignore)] == expected


def test_without_patterns_hidden_files_are_found(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", ".b.jpg", "@eaDir/c.jpg")
    names = [os.path.relpath(path, tmp_path) for path in find_inputs([tmp_path], ignore=())]
    assert names == [".b.jpg", "@eaDir/c.jpg", "a.jpg"]


def counted(*names: str) -> PassedOver:
    found = PassedOver()
    for name in names:
        found.add(name)
    return found


def test_other_files_are_counted_by_ending_and_hidden_and_ignored_ones_are_not(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.jpg",
        "a.xmp",
        "b/c.MOV",
        "b/d.mov",
        "README",
        ".hidden",
        "@eaDir/e.mov",
        "x.tiff.bak",
        "y.XMP",
    )
    passed_over = PassedOver()
    list(find_inputs([tmp_path, tmp_path / "a.xmp"], passed_over=passed_over))
    assert passed_over.text() == "4 other files passed over (.mov 2, .bak 1, no ending 1)"


def test_what_hierclass_wrote_into_a_folder_is_not_counted(tmp_path: Path) -> None:
    run = ("run.json", "inputs.parquet", "labels.parquet", "parts/0.parquet")
    touch(tmp_path, "a.jpg", *(f"run/{name}" for name in run), "run/b.jpg", "run/c.txt")
    passed_over = PassedOver()
    assert [Path(path).name for path in find_inputs([tmp_path], passed_over=passed_over)] == [
        "a.jpg",
        "b.jpg",
    ]
    assert passed_over.text() == "1 other file passed over (.txt 1)"


def test_photographs_that_are_not_read_come_with_what_to_do() -> None:
    assert counted("a.jxl", "b.JXL", "c.txt").text() == (
        "3 other files passed over (.jxl 2, .txt 1); convert to JPEG or PNG: .jxl"
    )
    assert counted().text() == ""


def test_however_many_endings_there_are_the_line_is_short_and_so_is_the_memory() -> None:
    strange = [f"a.{number}" for number in range(5000)] + ["b.\n", "c." + "x" * 99, "d.\udcff"]
    passed_over = counted("e.txt", "f.txt", *strange)
    assert len(passed_over) == 5005
    assert len(passed_over._endings) <= 1001
    assert passed_over.text() == (
        "5,005 other files passed over (.txt 2, .0 1, .1 1, .10 1, .100 1, .101 1, others 4,998)"
    )


def test_where_all_images_are_ignored_one_of_them_is_named(tmp_path: Path) -> None:
    touch(tmp_path, ".a.jpg", "b.jpg", "c.jxl")
    with pytest.raises(InputError) as caught:
        list(find_inputs([tmp_path], ignore=(*IGNORED, "b*")))
    assert str(caught.value) == (
        f"nothing to do: no images in the folder {tmp_path} but ignored ones, such as {tmp_path}/.a.jpg (see --ignore)"
        "; 1 other file passed over (.jxl 1); convert to JPEG or PNG: .jxl"
    )


def test_a_folder_of_other_files_alone_says_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "a.jxl", "b.zip", "c.parquet")
    with pytest.raises(InputError) as caught:
        list(find_inputs([tmp_path]))
    assert str(caught.value) == (
        f"nothing to do: no images in the folder {tmp_path}; 3 other files passed over (.jxl 1, .parquet 1, .zip 1); "
        "convert to JPEG or PNG: .jxl; unpack .zip first; name a .parquet file to label its rows"
    )


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


def test_a_folder_that_cannot_be_listed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "secret/b.jpg")
    (tmp_path / "empty").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may list everything
    assert found(tmp_path) == ["a.jpg", "secret"]
    with pytest.raises(InputError, match="secret is a folder that can't be listed: permission denied; name"):
        list(find_inputs([tmp_path / "secret"]))
    assert what_else(str(tmp_path / "secret")) == "is a folder that can't be listed: permission denied"
    assert what_else(str(tmp_path / "empty")) == "is a folder without images"
    assert what_else(str(tmp_path / "a.jpg")) == ""


def test_nothing_but_empty_folders_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no images in the folder .*; name image files, folders of images, or -"
    ):
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
        (b' leading.jpg \n"in quotes.jpg"\n', ["leading.jpg", "in quotes.jpg"]),
        (b" leading.jpg \0", [" leading.jpg "]),
        (b"caf\xe9.jpg\n", ["caf\udce9.jpg"]),
    ],
    ids=["lines", "Windows", "byte order mark", "NUL", "as written", "NUL: exactly", "no UTF-8"],
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
