"""Answers go as keywords into .xmp files beside images."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from labelling_data import make_photos
from xmp_data import (
    CAT,
    FLAT,
    LIGHTROOM,
    PATHS,
    PUG,
    answers,
    lists,
    merged,
    photo,
    sidecars,
    whole_photos,
    write,
)

from hierclass.cli import main
from hierclass.cli.label import say_keywords
from hierclass.cli.output_target import OutputTarget
from hierclass.labelling.inputs import Input
from hierclass.labelling.sidecars import SidecarWriter
from hierclass.labelling.xmp_document import EMPTY, MAX_BYTES

# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("there", "name", "wanted"),
    [
        ([], "a.jpg", ["a.jpg.xmp"]),
        ([], "a", ["a.xmp"]),
        ([], "a.b.JPG", ["a.b.JPG.xmp"]),
        ([], "a.nef", ["a.xmp"]),  # Lightroom's
        ([], "a.dng", ["a.dng.xmp"]),  # programs write into DNG files
        (["a.jpg"], "a.nef", ["a.xmp"]),
        (["a.nef"], "a.jpg", ["a.jpg.xmp"]),
        (["a.nef", "a.xmp"], "a.jpg", ["a.jpg.xmp"]),  # the sidecar is that of the RAW file
        (["a.mov", "a.xmp"], "a.jpg", ["a.jpg.xmp"]),
        (["a.jpg", "a.xmp"], "a.nef", ["a.xmp"]),
        (["a.xmp"], "a.jpg", ["a.xmp"]),  # as digiKam may be set to write
        (["A.XMP"], "A.JPG", ["A.XMP"]),
        (["a.nef.xmp"], "a.nef", ["a.nef.xmp"]),
        (["a.xmp", "a.nef.xmp"], "a.nef", ["a.nef.xmp", "a.xmp"]),  # two programs, each with its own
        (["a.cr3"], "a.nef", ["a.nef.xmp"]),
        (["a.cr3", "a.xmp"], "a.nef", ["a.nef.xmp"]),
    ],
)
def test_the_sidecar_is_the_one_that_is_there_or_is_named_by_the_kind_of_image(
    there: list[str], name: str, wanted: list[str], tmp_path: Path
) -> None:
    photo(tmp_path, *there)
    for each in sidecars(tmp_path):
        (tmp_path / each).write_text(LIGHTROOM)
    write(*photo(tmp_path, name))
    changed = [each for each in sidecars(tmp_path) if "pug" in (tmp_path / each).read_text()]
    assert changed == wanted
    assert (tmp_path / name).read_bytes() == b"picture"


def test_long_names_are_for_raw_files_too_where_that_is_asked(tmp_path: Path) -> None:
    write(*photo(tmp_path, "a.nef", "b.jpg"), long_names=True)
    assert sidecars(tmp_path) == ["a.nef.xmp", "b.jpg.xmp"]


def test_a_summary_counts_what_was_written_and_what_was_not(tmp_path: Path) -> None:
    photos = photo(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg", f"{'e' * 251}.jpg", "f.jpg")
    assert write(*photos[:2]).summary() == "keywords: 2 .xmp files written"
    assert write(*photos[:2]).summary() == "keywords: 0 .xmp files written, 2 had them"
    (tmp_path / "c.jpg.xmp").symlink_to("a.jpg.xmp")
    (tmp_path / "d.jpg.xmp").mkdir()
    (tmp_path / "f.jpg.xmp").touch()  # an empty one is as good as none
    writer = SidecarWriter()
    writer.write(
        [
            *(Input(str(each)) for each in photos),
            Input(str(tmp_path / "g.jpg")),
            Input("a.tar", "h.jpg", 512, 9),
        ],
        answers(None, *[CAT] * 7),
    )
    writer.write([Input(str(photos[0]))], answers(PUG, error="is truncated"))
    says = writer.summary()
    assert says.startswith(
        "keywords: 2 .xmp files written; removed from 1 .xmp file of images without an answer; 1 image without an "
        "answer; 1 image in archives, where there are no .xmp files; 1 image gone since; "
    )
    assert says.endswith(
        "; 3 .xmp files not written, see above; once that is mended, the same command writes them"
    )
    link, folder, long = writer.failures
    assert "c.jpg.xmp is a link, which is not followed; put the file itself in its place" in link
    assert "d.jpg.xmp: it is no regular file" in folder
    assert "jpg.xmp: File name too long" in long
    assert writer.num_failed == 3
    assert lists((tmp_path / "a.jpg.xmp").read_bytes()) == {}
    assert lists((tmp_path / "b.jpg.xmp").read_bytes())[FLAT] == ["animal", "cat"]
    assert "Rome" not in str(sidecars(tmp_path))


def test_every_file_of_a_failure_is_named_with_what_to_do(tmp_path: Path) -> None:
    photos = photo(tmp_path, *(f"{number}.jpg" for number in range(5)))
    for each in photos:
        each.with_name(f"{each.name}.xmp").write_text("<!DOCTYPE a>" + LIGHTROOM)
    writer = write(*photos)
    assert writer.failures == [
        f"left as it is: {each}.xmp declares a document type; take its <!DOCTYPE …> out, or move it away"
        for each in photos
    ]
    assert writer.summary("that").endswith(
        "5 .xmp files not written, see above; once that is mended, that writes them"
    )


def test_an_image_without_an_answer_is_no_failure_where_nothing_was_to_be_taken_away(tmp_path: Path) -> None:
    photos = photo(tmp_path, "link.jpg", "folder.jpg", "big.jpg", "broken.jpg", "ours.jpg")
    link, folder, big, broken, ours = (each.with_name(f"{each.name}.xmp") for each in photos)
    link.symlink_to("nowhere")
    folder.mkdir()
    with big.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    broken.write_text("mine")
    ours.write_bytes(merged(EMPTY, *PUG)[:-100])  # something was to be taken away
    writer = write(*photos, path=None)
    assert [Path(line.split()[4]) for line in writer.failures] == [ours]
    assert "no whole XML (" in writer.failures[0]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (image,) = photo(tmp_path, "a.jpg")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f".a.jpg.xmp.{dead.pid}.tmp", f".B.XMP.{dead.pid}.tmp", f".a.xmp.{os.getppid()}.tmp"]
    names += [f".a.jpg.{dead.pid}.tmp", ".a.jpg.xmp.tmp", f"a.jpg.xmp.{dead.pid}.tmp"]
    photo(tmp_path, *names)
    write(image, path=None)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(["a.jpg", *names[2:]])
    os.utime(tmp_path / names[2], (0, 0))  # the number is that of another process by now
    write(image)
    assert not (tmp_path / names[2]).exists()


def test_a_sidecar_keeps_its_rights_and_one_that_may_not_be_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image,) = photo(tmp_path, "a.jpg")
    sidecar = tmp_path / "a.jpg.xmp"
    sidecar.write_text(LIGHTROOM)
    sidecar.chmod(0o640)
    write(image)
    assert sidecar.stat().st_mode & 0o777 == 0o640
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for another user than root
    writer = write(image, path=CAT)
    (line,) = writer.failures
    assert line == f"not written: {sidecar}: Permission denied; make the file and its folder writable"
    assert "pug" in sidecar.read_text()


def test_classes_that_stand_on_two_tiers_are_one_keyword(tmp_path: Path) -> None:
    write(*photo(tmp_path, "a.jpg"), path=("boat", "boat", "ferry"))
    assert lists((tmp_path / "a.jpg.xmp").read_bytes())[PATHS] == ["boat|ferry"]


# ---------------------------------------------------------------- the command


def test_label_writes_keywords_beside_images_and_again_only_what_changed(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = make_photos(tmp_path / "photos", 9)
    command = ["label", str(photos), "--model", str(tiny_checkpoint), "--keywords", "xmp"]
    assert main([*command, "-o", str(tmp_path / "out.csv"), "--level", "1"]) == 3  # 07.png is none
    assert "keywords: 8 .xmp files written\n" in capsys.readouterr().err
    assert sidecars(photos) == [f"{number:02}.png.xmp" for number in range(9) if number != 7]
    (path,) = lists((photos / "00.png.xmp").read_bytes())[PATHS]
    assert str(path).count("|") == 1
    # to standard output, and one level further
    assert main(command) == 3
    assert "keywords: 8 .xmp files written\n" in capsys.readouterr().err
    (path,) = lists((photos / "00.png.xmp").read_bytes())[PATHS]
    assert str(path).count("|") == 2


def test_a_complete_run_gets_its_keywords_when_they_are_asked_for(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, run = whole_photos(tmp_path / "photos", 6), str(tmp_path / "run") + "/"
    model = ["--model", str(tiny_checkpoint)]
    assert main(["label", str(photos), "-o", run, "--level", "0", *model]) == 0
    assert sidecars(photos) == []
    assert main(["label", str(photos), "-o", run, "--level", "0", *model, "--keywords", "xmp"]) == 0
    assert capsys.readouterr().err.endswith(
        f"keywords: 6 .xmp files written\nno image was left to label -> {run}labels.parquet\n"
    )
    (photos / "02.png.xmp").unlink()
    refine = ["refine", run, "--where", "path like '%03.png'", "--level", "2", *model, "--keywords", "xmp"]
    assert main(refine) == 0
    assert "keywords: 2 .xmp files written, 4 had them\n" in capsys.readouterr().err
    paths = [lists((photos / f"0{number}.png.xmp").read_bytes())[PATHS][0] for number in (2, 3)]
    assert [str(path).count("|") for path in paths] == [0, 2]


def test_images_in_archives_have_no_sidecars_and_another_word_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = whole_photos(tmp_path / "photos", 3)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(photos, "photos")
    command = ["label", str(tmp_path / "a.tar"), "--model", str(tiny_checkpoint), "--keywords"]
    assert main([*command, "xmp"]) == 0
    err = capsys.readouterr().err
    assert "keywords: 0 .xmp files written; 3 images in archives, where there are no .xmp files\n" in err
    assert main([*command, "iptc"]) == 2
    assert capsys.readouterr().err == "error: --keywords iptc: give xmp or xmp-long\n"


def test_a_sidecar_that_is_left_as_it_is_makes_the_exit_code_3(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = whole_photos(tmp_path / "photos", 2)
    (photos / "00.png.xmp").write_text("mine")
    command = [
        "label",
        str(photos),
        "--model",
        str(tiny_checkpoint),
        "-o",
        str(tmp_path / "out.csv"),
        "--keywords",
        "xmp",
    ]
    assert main(command) == 3
    named, summary, _ = capsys.readouterr().err.splitlines()[-3:]
    assert named.startswith(f"left as it is: {photos / '00.png.xmp'} is no whole XML (")
    assert summary.endswith(
        "1 .xmp file written; 1 .xmp file not written, see above; once that is mended, the same command with --update "
        "writes it"
    )
    assert (photos / "00.png.xmp").read_text() == "mine"
    (photos / "00.png.xmp").unlink()
    assert main([*command, "--update"]) == 0
    assert (
        "keywords: 1 .xmp file written, 1 had them\nno image was left to label ->" in capsys.readouterr().err
    )


def test_a_terminal_shows_the_first_twenty_files_that_were_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = photo(tmp_path, *(f"{number}.jpg" for number in range(30)))
    for each in photos:
        each.with_name(f"{each.name}.xmp").write_text("mine")
    writer = write(*photos)
    say_keywords(writer)
    assert len(capsys.readouterr().err.splitlines()) == 31
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    say_keywords(writer)
    *shown, more, _ = capsys.readouterr().err.splitlines()
    assert len(shown) == 20
    assert more.startswith("10 more were not written; 2> FILE ")


def test_what_is_given_for_keywords_that_are_missing_is_what_the_command_takes(tmp_path: Path) -> None:
    file, folder = (
        OutputTarget.parse(str(tmp_path / "a.csv"), None),
        OutputTarget.parse(f"{tmp_path}/r/", None),
    )
    says = [
        target.same_command(overwrite=overwrite, update=False, shard=shard)
        for target, overwrite, shard in (
            (file, False, False),
            (file, True, False),
            (file, False, True),
            (file, True, True),
            (folder, False, True),
            (folder, True, False),
        )
    ]
    assert [each.removeprefix("the same command").lstrip() for each in says] == [
        "with --update",
        "with --update in place of --overwrite",
        "with --overwrite",
        "",
        "",
        "without --overwrite",
    ]
    assert file.same_command(overwrite=False, update=True, shard=False) == "the same command"


@pytest.mark.full
def test_ctrl_c_leaves_whole_sidecars_and_the_same_command_writes_the_rest(tmp_path: Path) -> None:
    photos = whole_photos(tmp_path / "photos", 1000)
    words = ["label", str(photos), "-o", str(tmp_path / "out.csv"), "--level", "0", "--keywords", "xmp"]
    command = [sys.executable, "-m", "hierclass", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not sidecars(photos) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == "error: stopped while writing keywords; the same command goes on from there\n"
    written = sidecars(photos)
    assert 0 < len(written) < 999
    assert all(PATHS in lists((photos / name).read_bytes()) for name in written)
    assert not [each.name for each in photos.iterdir() if each.name.endswith(".tmp")]
    again = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True)
    assert f"keywords: {999 - len(written):,} .xmp files written, {len(written):,} had them\n" in again.stderr
    assert len(sidecars(photos)) == 999
