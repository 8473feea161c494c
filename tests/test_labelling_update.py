"""An update labels what is new or changed and keeps the other rows, whatever ends it, in a run and in a table."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelling_data import READING, BreakingEngine, RunListener, job, label, make_photos, rows, run_in
from test_labelling_mistakes import pack

import hierclass
from hierclass.classifier import Classifier
from hierclass.cli import main
from hierclass.decisions.exit_policy import Request
from hierclass.errors import InputError
from hierclass.labelling import run_update
from hierclass.labelling.rows import columns
from hierclass.labelling.run import LabelRun
from hierclass.labelling.run_folder import RunFolder
from hierclass.labelling.run_manifest import LabelJob
from hierclass.labelling.table_files import AddedColumns


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Path) -> Classifier:
    return hierclass.load(tiny_checkpoint, device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


def change(photos: Path) -> None:
    """One photograph goes, two come (one of them before all others), one changes, and one is mended."""
    (photos / "03.png").unlink()
    shutil.copy(photos / "04.png", photos / "000.png")
    shutil.copy(photos / "05.png", photos / "99.png")
    (photos / "12.png").write_bytes((photos / "13.png").read_bytes())
    (photos / "07.png").write_bytes((photos / "08.png").read_bytes())


SUMMARY = "2 new, 2 changed, 17 kept, 1 gone (the first: {photos}/03.png)"


def expected(photos: Path, classifier: Classifier, tmp_path: Path) -> list[dict[str, Any]]:
    """The table of a run that was begun with the photographs as they are now."""
    label(tmp_path / "anew", classifier, job(photos))
    return rows(tmp_path / "anew")


def test_an_update_labels_what_is_new_or_changed_and_ends_in_the_order_of_the_inputs(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    label(run, classifier, job(photos))
    change(photos)
    (photos / "film.mov").touch()
    listener = label(run, classifier, job(photos), update=True)
    assert listener.lines == ["1 other file passed over (.mov 1)", SUMMARY.format(photos=photos)]
    assert listener.passes == [(4, 0)]
    assert rows(run) == expected(photos, classifier, tmp_path)
    assert sorted(each.name for each in run.iterdir()) == [
        *(".lock", "inputs-1.parquet", "labels.parquet", "parts-1", "run.json"),
    ]
    again = label(run, classifier, job(photos), update=True)
    assert (again.lines, again.passes) == (
        ["1 other file passed over (.mov 1)", "0 new, 0 changed, 21 kept, 0 gone"],
        [],
    )
    assert RunFolder(run).edition == 1
    (photos / "99.png").unlink()  # and the run is one as any other
    os.utime(photos / "000.png", (1, 1))
    assert label(run, classifier, job(photos)).passes == [(1, 0)]
    assert label(run, classifier, job(photos), update=True).passes == []
    assert len(rows(run)) == 20


def test_where_there_is_nothing_yet_an_update_labels_all(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    assert label(tmp_path / "run", classifier, job(photos), update=True).passes == [(20, 0)]


@pytest.mark.parametrize("after", [1, 3])
def test_an_update_that_ended_early_goes_on(
    classifier: Classifier, photos: Path, tmp_path: Path, after: int
) -> None:
    run = tmp_path / "run"
    label(run, classifier, job(photos))
    change(photos)
    for number in range(10):
        shutil.copy(photos / "00.png", photos / f"0a{number}.png")
    with pytest.raises(KeyboardInterrupt):
        label(
            run,
            classifier,
            job(photos),
            update=True,
            engine=BreakingEngine(classifier, after, KeyboardInterrupt()),
        )
    (photos / "50.png").write_bytes((photos / "00.png").read_bytes())  # one more meanwhile
    label(run, classifier, job(photos), update=True)
    assert rows(run) == expected(photos, classifier, tmp_path)


class Killed(BaseException):
    """In place of a kill."""


@contextlib.contextmanager
def dies_at(step: int) -> Iterator[None]:
    """Let no file be renamed or removed any more from a rename on, counted from 0, as if the process were dead."""
    renamed, replace, unlink, rmdir = itertools.count(), os.replace, os.unlink, os.rmdir
    dead = False

    def rename(*given: Any, **more: Any) -> None:
        nonlocal dead
        dead = dead or next(renamed) == step
        alive(replace)(*given, **more)

    def alive(real: Callable[..., None]) -> Callable[..., None]:
        def call(*given: Any, **more: Any) -> None:
            if dead:
                raise Killed
            real(*given, **more)

        return call

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "replace", rename)
        patched.setattr(os, "unlink", alive(unlink))
        patched.setattr(os, "rmdir", alive(rmdir))
        yield


@pytest.mark.parametrize("step", range(7))
def test_a_kill_at_any_moment_leaves_the_old_run_or_a_new_one_that_the_same_command_finishes(
    classifier: Classifier, tmp_path: Path, step: int
) -> None:
    photos, run = make_photos(tmp_path / "photos", 14), tmp_path / "run"
    label(run, classifier, job(photos))
    before = rows(run)
    change(photos)
    with dies_at(step), pytest.raises(Killed):
        label(run, classifier, job(photos), update=True)
    assert rows(run) == before  # until the last rename the table is the old one
    label(run, classifier, job(photos), update=True)
    assert rows(run) == expected(photos, classifier, tmp_path)
    assert not [each.name for each in run.iterdir() if each.name in ("parts", "inputs.parquet")]


def test_rows_that_were_refined_stay_and_only_what_is_new_is_refined_by_the_same_command(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    def refine() -> RunListener:
        run, listener = run_in(folder, classifier)
        run.refine("path not like '%9.png'", Request(level=2))
        run.assemble(folder / "labels.parquet")
        return listener

    label(folder, classifier, job(photos))
    refine()
    before = {row["path"]: row for row in rows(folder)}
    change(photos)
    label(folder, classifier, job(photos), update=True)
    kept = [
        row for row in rows(folder) if row["path"] in before and row["path"][-6:] not in ("12.png", "07.png")
    ]
    assert kept == [before[row["path"]] for row in kept]
    assert {row["chosen_level"] for row in kept} == {0, 2}
    assert refine().passes == [(3, 0)]  # 000.png, 07.png and 12.png
    assert {row["chosen_level"] for row in rows(folder) if not row["path"].endswith("9.png")} == {2}


def test_inputs_in_another_order_take_their_rows_along(
    classifier: Classifier, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_update, "_CARRIED_ROWS", 6)
    names = [str(photos / f"{number:02}.png") for number in (*range(20), 4, 4)]
    run = tmp_path / "run"
    wanted = LabelJob(names=tuple(names), request=Request(level=0), reading=READING)
    label(run, classifier, wanted)
    before = {row["path"]: row for row in rows(run)}
    turned = dataclasses.replace(wanted, names=tuple(reversed(names)))
    listener = label(run, classifier, turned, update=True)
    assert (listener.lines, listener.passes) == (["0 new, 0 changed, 22 kept, 0 gone"], [])
    assert rows(run) == [before[name] for name in reversed(names)]


def test_an_archive_that_changed_is_labelled_anew_and_others_keep_their_rows(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    files = sorted(photos.iterdir())
    first, second = pack(tmp_path / "a.tar", files[:6]), pack(tmp_path / "b.tar", files[8:])
    wanted = LabelJob(names=(str(first), str(second)), request=Request(level=0), reading=READING)
    run = tmp_path / "run"
    label(run, classifier, wanted)
    before = rows(run)
    pack(first, [files[9], *files[:5]])
    listener = label(run, classifier, wanted, update=True)
    assert listener.lines == [f"1 new, 5 changed, 12 kept, 1 gone (the first: {first}/05.png)"]
    assert rows(run)[6:] == before[6:]
    assert [row["path"] for row in rows(run)[:2]] == [f"{first}/09.png", f"{first}/00.png"]
    assert rows(run)[0]["score"] == before[7]["score"]


@pytest.mark.parametrize("left", [b"", b"half of it", b"\0" * 1024, None])
def test_an_archive_that_was_copied_in_part_costs_no_row(
    classifier: Classifier, photos: Path, tmp_path: Path, left: bytes | None
) -> None:
    files = sorted(photos.iterdir())
    box = tmp_path / "box"
    box.mkdir()
    shutil.copy2(files[9], box)
    archive, whole = pack(box / "a.tar", files[:6]), tmp_path / "whole.tar"
    named = LabelJob(names=(str(archive), str(files[8])), request=Request(level=0), reading=READING)
    found = dataclasses.replace(named, names=(str(box), str(files[8])))
    for run, wanted in ((tmp_path / "named", named), (tmp_path / "found", found)):
        label(run, classifier, wanted)
        before = rows(run)
        shutil.copy2(archive, whole)
        with archive.open("r+b") as file:
            file.truncate(archive.stat().st_size // 3 if left is None else 0)
            file.write(left or b"") if left is not None else None
        with pytest.raises(InputError, match=r"a\.tar lacks \d images? with rows, and can't be read"):
            label(run, classifier, wanted, update=True)
        assert rows(run) == before
        shutil.copy2(whole, archive)
        assert label(run, classifier, wanted, update=True).passes == []
    archive.unlink()
    with pytest.raises(InputError, match=r"no image in .*a\.tar, of which 6 have rows; if its disk is away"):
        label(tmp_path / "named", classifier, named, update=True)
    gone = label(tmp_path / "found", classifier, found, update=True)  # as any file of a folder
    assert gone.lines == [f"0 new, 0 changed, 2 kept, 6 gone (the first: {archive}/00.png)"]


def test_a_list_that_names_images_once_that_had_several_rows_drops_the_others(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    names = tuple(str(photos / f"{number:02}.png") for number in range(4))
    twice = LabelJob(names=names * 2, request=Request(level=0), reading=READING)
    label(tmp_path / "run", classifier, twice)
    before = rows(tmp_path / "run")
    once = dataclasses.replace(twice, names=names)
    listener = label(tmp_path / "run", classifier, once, update=True)
    assert (listener.lines, listener.passes) == (
        ["0 new, 0 changed, 4 kept, 0 gone, 4 repeated rows dropped"],
        [],
    )
    assert rows(tmp_path / "run") == before[:4]


@pytest.mark.parametrize("update", [True, False])
def test_rows_that_told_what_to_install_are_read_again_once_it_is_there(
    classifier: Classifier, photos: Path, tmp_path: Path, update: bool
) -> None:
    pytest.importorskip("pillow_heif")
    (photos / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        label(tmp_path / "run", classifier, job(photos))
        assert "hierclass[heic]" in str(rows(tmp_path / "run")[-1]["error"])
        assert label(tmp_path / "run", classifier, job(photos), update=update).passes == []
    listener = label(tmp_path / "run", classifier, job(photos), update=update)
    said = (
        "0 new, 0 changed, 20 kept, 0 gone, 1 with an error read again"
        if update
        else "had an error, read again: 1 image"
    )
    assert (listener.lines, listener.passes) == ([said], [(1, 0)])


def test_errors_are_read_again_when_told_to(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    label(run, classifier, job(photos))
    assert label(run, classifier, job(photos), update=True).passes == []
    again = label(run, classifier, job(photos), update=True, retry_errors=True)
    assert (again.lines, again.passes) == (
        ["0 new, 0 changed, 19 kept, 0 gone, 1 with an error read again"],
        [(1, 0)],
    )


def test_a_disk_that_is_away_costs_no_row(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    other = make_photos(tmp_path / "other", 9)
    wanted = LabelJob(names=(str(photos), str(other)), request=Request(level=0), reading=READING)
    run = tmp_path / "run"
    label(run, classifier, wanted)
    before = rows(run)
    other.rename(tmp_path / "away")
    for _ in range(2):  # without and with the folder that it is mounted on
        with pytest.raises(
            InputError, match=r"no image in .*other, of which 9 have rows; if its disk is away"
        ):
            label(run, classifier, wanted, update=True)
        other.mkdir(exist_ok=True)
    assert rows(run) == before
    other.rmdir()
    left_out = dataclasses.replace(wanted, names=(str(photos),))
    assert label(run, classifier, left_out, update=True).passes == []
    assert len(rows(run)) == 20


def test_files_of_a_list_that_are_away_keep_their_rows(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    names = tuple(map(str, sorted(photos.iterdir())))
    wanted = LabelJob(names=names, request=Request(level=0), reading=READING)
    label(tmp_path / "run", classifier, wanted)
    before = rows(tmp_path / "run")
    photos.rename(tmp_path / "away")
    photos.mkdir()
    listener = label(tmp_path / "run", classifier, wanted, update=True)
    assert listener.lines == ["0 new, 0 changed, 20 kept, 0 gone, 19 of the kept not there any more"]
    assert rows(tmp_path / "run") == before


def test_images_that_are_there_but_not_named_any_more_are_not_dropped_in_silence(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    label(tmp_path / "run", classifier, job(photos))
    new = make_photos(tmp_path / "new", 9)
    with pytest.raises(InputError, match="20 images that have rows are there but not among these inputs"):
        label(tmp_path / "run", classifier, job(new), update=True)
    both = LabelJob(names=(str(new), str(photos)), request=Request(level=0), reading=READING)
    assert label(tmp_path / "run", classifier, both, update=True).passes == [(9, 0)]


def test_another_request_is_refused_with_the_difference(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    label(tmp_path / "run", classifier, job(photos))
    with pytest.raises(InputError, match="was begun with --level 0, not 1"):
        label(tmp_path / "run", classifier, job(photos, 1), update=True)


def test_the_features_of_a_run_are_updated(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    run, wanted = tmp_path / "run", job(photos, features=True)
    label(run, classifier, wanted)
    change(photos)
    assert label(run, classifier, wanted, update=True).passes == [(4, 0)]
    found = rows(run)
    label(tmp_path / "anew", classifier, wanted)
    assert found == rows(tmp_path / "anew")


# -- tables that are one file


def command(photos: Path, model: Path, table: Path, *more: str) -> list[str]:
    return ["label", str(photos), "--model", str(model), "--level", "0", "-o", str(table), *more]


def read(table: Path) -> list[dict[str, Any]]:
    if table.suffix == ".parquet":
        found: list[dict[str, Any]] = pq.read_table(table).to_pylist()
        return found
    if table.suffix == ".jsonl":
        return [json.loads(line) for line in table.read_text("utf-8").splitlines()]
    with table.open(encoding="utf-8-sig", newline="") as file:
        return [{name: value or None for name, value in row.items()} for row in csv.DictReader(file)]


def correct(table: Path) -> None:
    """Add columns to a table as people and programs do."""
    if table.suffix == ".parquet":
        whole = pq.read_table(table)
        pq.write_table(whole.append_column("corrected", [["cat", *[None] * (len(whole) - 1)]]), table)
        return
    rows_ = read(table)
    rows_[0]["corrected"] = "cat"
    if table.suffix == ".jsonl":
        rows_[0]["sure"] = 0.123456
        table.write_text("".join(f"{json.dumps(row)}\n" for row in rows_), "utf-8")
        return
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows_[0])
        writer.writeheader()
        writer.writerows(rows_)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_finished_table_is_updated_and_keeps_what_people_added(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / f"labels.{ending}"
    assert main(command(photos, tiny_checkpoint, table)) == 3
    (photos / 'odd, "name"\n.png').write_bytes((photos / "05.png").read_bytes())
    for file in photos.iterdir():
        os.utime(file, ns=(1, table.stat().st_mtime_ns))
    correct(table)
    change(photos)
    for file in ("12.png", "07.png"):
        os.utime(photos / file, ns=(1, table.stat().st_mtime_ns + 1))
    capsys.readouterr()
    assert main(command(photos, tiny_checkpoint, table, "--update")) == 0
    first, second, third = capsys.readouterr().err.splitlines()
    assert "has no run beside it: its rows are taken as they are, and files newer than it (" in first
    assert second == "3 new, 2 changed, 17 kept, 1 gone (the first: " + f"{photos}/03.png)"
    assert third.startswith("5 images labelled in ")
    found = read(table)
    assert [row.pop("corrected") for row in found] == ["cat", *[None] * 21]
    if ending == "jsonl":
        assert [row.pop("sure") for row in found] == [0.123456, *[None] * 21]
    anew = tmp_path / f"anew.{ending}"
    assert main(command(photos, tiny_checkpoint, anew)) == 0
    assert found == read(anew)
    capsys.readouterr()
    os.utime(photos / "01.png", (1, 1))
    assert main(command(photos, tiny_checkpoint, table, "--update")) == 0  # stamps are known now
    assert capsys.readouterr().err.startswith("0 new, 1 changed, 21 kept, 0 gone\n1 image labelled in ")
    assert main(command(photos, tiny_checkpoint, table)) == 2
    assert (
        "--update labels what is new or changed and keeps your column 'corrected'" in capsys.readouterr().err
    )
    assert read(table)[0]["corrected"] == "cat"


@pytest.mark.parametrize("verb", ["label", "embed"])
def test_an_update_that_begins_anew_keeps_what_later_updates_need(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    table = tmp_path / "table.parquet"
    words = [verb, *command(photos, tiny_checkpoint, table)[1:]]
    assert main(words) == 3
    if verb == "embed":
        assert main([*words, "--update"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.endswith("; --update --overwrite begins anew and keeps what later updates need")
    correct(table)
    assert main([*words, "--update", "--overwrite"]) == 3
    assert "corrected" not in read(table)[0]
    correct(table)
    os.utime(photos / "12.png", (1, 1))
    capsys.readouterr()
    if verb == "label":  # what is added from then on stays
        assert main([*words, "--update"]) == 3
        assert "\n0 new, 1 changed, 19 kept, 0 gone\n" in capsys.readouterr().err
        assert read(table)[0]["corrected"] == "cat"
        return
    assert main([*words, "--update", "--overwrite"]) == 3
    os.utime(photos / "12.png", (2, 2))
    capsys.readouterr()
    assert main([*words, "--update"]) == 3
    assert capsys.readouterr().err.startswith("0 new, 1 changed, 19 kept, 0 gone\n")


def test_an_update_that_begins_anew_and_was_stopped_goes_on_without_overwrite(
    photos: Path, tiny_checkpoint: Path, classifier: Classifier, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,note\nof,others\n")
    engine = BreakingEngine(classifier, 3, KeyboardInterrupt())
    run, _ = run_in(tmp_path / "labels.csv.run", classifier, engine)
    with run.folder.lock(), pytest.raises(KeyboardInterrupt):
        run.label(job(photos), update=True, overwrite=True)
    (photos / "03.png").unlink()
    assert main(command(photos, tiny_checkpoint, table, "--update")) == 3
    assert len(read(table)) == 19
    assert "note" not in read(table)[0]


def test_answers_that_people_changed_in_a_table_stay(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "labels.csv"
    assert main(command(photos, tiny_checkpoint, table, "--update", "--csv-excel")) == 3
    table.write_bytes(table.read_bytes().replace(b"no picture", b"=a note"))
    mine = [line for line in table.read_text().splitlines() if not line.startswith(str(photos / "03.png"))]
    table.write_text("\n".join(mine))
    os.utime(photos / "12.png", (1, 1))
    capsys.readouterr()
    assert main(command(photos, tiny_checkpoint, table, "--update")) == 3
    assert "was changed since its run wrote it: its rows are taken as they are now" in capsys.readouterr().err
    assert table.read_bytes().startswith(b"\xef\xbb\xbfpath,")  # in the form that it had
    assert len(read(table)) == 20


@pytest.mark.parametrize(
    ("more", "spoil", "message"),
    [
        (["--level", "1"], None, "it has 1 of the tiers of answers, of which this --level has 2"),
        ([], ("tier0_label,", ""), "it has no column 'tier0_label'"),
        ([], (",asked,", ",sure,"), "it was written with --level auto"),
        ([], (",0,asked,", ",2,asked,"), "it was written with --level 2, not 0"),
        (
            [],
            (",asked,False,animal", ",asked,False,beast"),
            "it has 'beast' in tier0_synset, where this model has no such class",
        ),
        ([], (",asked,False,", ",asked,True,"), "it was written with --previews"),
        ([], (",asked,", ","), "can't be taken up: "),
    ],
)
def test_a_table_of_another_request_is_not_taken_up(
    photos: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    finished: Path,
    more: list[str],
    spoil: tuple[str, str] | None,
    message: str,
) -> None:
    table = Path(shutil.copy(finished, tmp_path / "labels.csv"))
    if spoil:
        assert spoil[0] in table.read_text()
        table.write_text(table.read_text().replace(*spoil))
    before = table.read_bytes()
    assert main([*command(photos, tiny_checkpoint, table, "--update"), *more]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert "; --update --overwrite begins anew and keeps what later updates need" in error
    assert table.read_bytes() == before
    assert not (tmp_path / "labels.csv.run").exists()


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of labels whose run is gone."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(command(make_photos(folder / "photos", 9), tiny_checkpoint, folder / "labels.csv")) == 3
    return folder / "labels.csv"


def saved_again(finished: Path, table: Path, delimiter: str, decimal: str, encoding: str) -> Path:
    """A table with a column `corrected` as a spreadsheet saves it in a language, TRUE and FALSE in capitals."""
    found = read(finished)
    with table.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow([*found[0], "corrected"])
        for row in found:
            cells = {name: value or "" for name, value in row.items()}
            for name in cells:
                if name.endswith("score"):
                    cells[name] = cells[name].replace(".", decimal)
            writer.writerow([*{**cells, "preview": cells["preview"].upper()}.values(), "K\xe4se 1.5; 2,5"])
    return table


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(
    ("delimiter", "decimal"), [(";", ","), (";", "."), (",", ","), (",", "."), ("\t", ",")]
)
def test_a_table_that_a_spreadsheet_saved_in_its_own_form_is_updated(
    tiny_checkpoint: Path, tmp_path: Path, finished: Path, delimiter: str, decimal: str, encoding: str
) -> None:
    photos = finished.parent / "photos"
    table = saved_again(finished, tmp_path / "labels.csv", delimiter, decimal, encoding)
    assert main(command(photos, tiny_checkpoint, table, "--update")) == 3
    excel = delimiter != "," or encoding == "utf-8-sig"
    assert table.read_bytes().startswith(b"\xef\xbb\xbfpath" if excel else b"path")
    with table.open(encoding="utf-8-sig", newline="") as file:
        found = list(csv.DictReader(file, delimiter=delimiter))
    assert {row.pop("corrected") for row in found} == {"K\xe4se 1.5; 2,5"}
    kept = decimal if delimiter != "," else "."
    assert [row["score"].replace(kept, ".") or None for row in found] == [
        row["score"] for row in read(finished)
    ]
    assert {row["preview"] for row in found} == {"False", ""}


@pytest.mark.parametrize(
    ("old", "new", "encoding", "message"),
    [
        (
            "FALSE",
            "FALSCH",
            "utf-8",
            "its column 'preview' has 'FALSCH', which is neither TRUE nor FALSE; mend",
        ),
        (";0,", ";about 0,", "utf-8", "its column 'score' has 'about 0,"),
        ("", "", "cp1252", 'can\'t be read: its encoding is not UTF-8; save it as "CSV UTF-8"'),
        ("", "", "utf-16", 'can\'t be read: its encoding is not UTF-8; save it as "CSV UTF-8"'),
        ("path", "path", "late", 'can\'t be taken up: its encoding is not UTF-8; save it as "CSV UTF-8"'),
        (";corrected", ";corrected;corrected", "utf-8", "it has more than one column 'corrected'; mend that"),
    ],
)
def test_a_table_of_a_spreadsheet_that_can_not_be_read_is_refused_in_words(
    tiny_checkpoint: Path,
    tmp_path: Path,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    encoding: str,
    message: str,
) -> None:
    table = saved_again(finished, tmp_path / "labels.csv", ";", ",", "utf-8")
    text = table.read_text("utf-8").replace(old, new)
    if encoding == "late":
        head, rows_ = text.split("\n", 1)
        table.write_bytes(f"{head}\n{rows_.replace(chr(228), 'ae') * 20}".encode() + rows_.encode("cp1252"))
    else:
        table.write_text(text, encoding)
    before = table.read_bytes()
    assert main(command(finished.parent / "photos", tiny_checkpoint, table, "--update")) == 2
    (error,) = capsys.readouterr().err.splitlines()[-1:]
    assert message in error
    assert "begins anew" not in error
    assert table.read_bytes() == before


@pytest.mark.parametrize(
    ("ending", "values", "message"),
    [
        ("parquet", [["a", "b"]], "it holds lists in column 'tags', which are not read"),
        ("jsonl", [[1, "a"]], "its column 'tags' has values of several kinds, or too large numbers"),
        ("jsonl", ["a", 1], "its column 'tags' has values of several kinds, or too large numbers"),
        ("jsonl", [2**70], "its column 'tags' has values of several kinds, or too large numbers"),
    ],
)
def test_an_added_column_that_can_not_stay_is_refused_before_anything_is_labelled(
    photos: Path,
    classifier: Classifier,
    tmp_path: Path,
    ending: str,
    values: list[Any],
    message: str,
) -> None:
    table, listener = unlabelled(tmp_path / f"labels.{ending}", values), RunListener()
    run = LabelRun(RunFolder.beside(table), classifier, READING, listener)
    with pytest.raises(InputError) as caught:
        run.label(job(photos), update=True, earlier=table)
    assert str(caught.value) == (
        f"the rows of {table} can't be taken up: {message}; mend that, or name another file "
        "(--overwrite would lose your column 'tags')"
    )
    assert (listener.lines, listener.passes) == ([], [])


def test_an_added_column_that_is_empty_stays(tmp_path: Path) -> None:
    added = AddedColumns(unlabelled(tmp_path / "labels.jsonl", [None, None]))
    assert [field.name for field in added.fields] == ["tags"]
    assert added.add_to(pa.table({"path": ["0.png"]})).to_pylist() == [{"path": "0.png", "tags": None}]


def unlabelled(table: Path, values: list[Any]) -> Path:
    """A table of rows without an answer, and a column `tags` that somebody added."""
    whole = [
        {**dict.fromkeys(columns(1)), "path": f"{number}.png", "tags": value}
        for number, value in enumerate(values)
    ]
    if table.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(whole), table)
    else:
        table.write_text("".join(f"{json.dumps(row)}\n" for row in whole), "utf-8")
    return table


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-o", "x.csv", "--update", "--shard", "1/2"], "--update can't go with --shard"),
        (["--update"], "--update and --retry-errors belong to a run on disk; give --output"),
    ],
)
def test_an_update_that_can_not_be_right_is_refused(
    more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label", "photos", *more]) == 2
    assert message in capsys.readouterr().err
