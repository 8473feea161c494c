"""Nothing of the user's is replaced in silence, whatever command writes: it says what is there and what would do it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from labelling_data import READING, make_photos

import hierclass
from hierclass.cli import main
from hierclass.cli.output_target import OutputTarget
from hierclass.cli.shared import Stopped
from hierclass.errors import InputError
from hierclass.files import check_writable
from taxonomy.cli import main as taxonomy
from training.distillation.distil_dir import DistilDir
from training.trainer.run_dir import RunDir


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", 9)


def command(photos: Path, model: Path, output: object, *more: str) -> list[str]:
    return ["label", str(photos), "--model", str(model), "--level", "0", "-o", str(output), *more]


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command which is refused prints."""
    capsys.readouterr()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_finished_table_is_replaced_only_when_told_to(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "labels.csv"
    assert main(command(photos, tiny_checkpoint, table)) == 3
    before = table.read_bytes()
    for more in ((), ("--exclude", "animal")):
        line = refused([*command(photos, tiny_checkpoint, table), *more], capsys)
        assert "labels.csv exists (9 rows, written " in line
        assert "--update labels what is new or changed, --overwrite begins anew" in line
    assert table.read_bytes() == before
    assert main(command(photos, tiny_checkpoint, table, "--overwrite")) == 3
    assert sorted(file.name for file in tmp_path.glob("labels*")) == ["labels.csv"]


@pytest.mark.parametrize("content", [b"path,label,error\na.jpg,cat,\n", b"\0" * 300_000, b"x" * 300_000])
def test_a_file_of_others_is_replaced_only_when_told_to(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    for name in ("truth.csv", "truth.jsonl", "truth.parquet"):
        (tmp_path / name).write_bytes(content)
        line = refused(command(photos, tiny_checkpoint, tmp_path / name), capsys)
        assert (
            f"{name} exists and is no table that hierclass wrote; name another file, or add --overwrite"
            in line
        )
        assert (tmp_path / name).read_bytes() == content


def test_an_empty_file_and_a_link_to_nothing_are_no_obstacle(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.csv").touch()
    (tmp_path / "link.csv").symlink_to(tmp_path / "new.csv")
    for name in ("empty.csv", "link.csv"):
        assert main(command(photos, tiny_checkpoint, tmp_path / name)) == 3
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "new.csv").read_bytes() == (tmp_path / "empty.csv").read_bytes()


def test_what_is_to_be_labelled_is_no_output(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.parquet"
    data.write_bytes(b"PAR1")
    line = refused(command(data, tiny_checkpoint, data, "--overwrite"), capsys)
    assert "is one of the inputs; name another file" in line


def test_a_table_that_came_while_a_run_was_at_work_stays(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, run = tmp_path / "labels.csv", tmp_path / "labels.csv.run"
    words = command(photos, tiny_checkpoint, f"{run}/")
    assert main(words) == 3  # as a run beside a table that was stopped before the table was written
    (run / "labels.parquet").unlink()
    table.write_text("path,error,chosen_level\nmine,,\n")
    line = refused(command(photos, tiny_checkpoint, table), capsys)
    assert "was changed since its run wrote it, or comes from elsewhere; move it away" in line
    table.rename(tmp_path / "away.csv")
    assert main(command(photos, tiny_checkpoint, table)) == 3
    assert sorted(file.name for file in tmp_path.glob("labels*")) == ["labels.csv"]


def test_the_table_of_a_run_that_somebody_changed_is_not_written_anew(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(photos, tiny_checkpoint, f"{tmp_path}/run/", "--format", "csv")
    table = tmp_path / "run" / "labels.csv"
    assert [main(words), main(words)] == [3, 3]
    shutil.copy(table, tmp_path / "copy.csv")
    shutil.copy(tmp_path / "copy.csv", table)  # of another time, the same
    assert main(words) == 3
    table.write_text(table.read_text().replace("00.png", "mine"))
    assert "was changed since its run wrote it" in refused(words, capsys)
    assert "was changed since" in refused(
        ["refine", str(tmp_path / "run"), "--where", "1", "--model", str(tiny_checkpoint)], capsys
    )
    assert "mine" in table.read_text()
    table.unlink()
    assert main(words) == 3


def test_who_stops_a_command_that_begins_anew_is_told_how_it_goes_on(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    target = OutputTarget.parse(str(tmp_path / "labels.csv"), None)
    classifier = hierclass.load(tiny_checkpoint, device="cpu")
    for overwrite, how in (
        (False, "same command goes on"),
        (True, "same command without --overwrite goes on"),
    ):
        with (
            pytest.raises(Stopped, match=how),
            target.run(classifier, READING, None, overwrite=overwrite),
        ):
            raise Stopped(130)


def test_features_are_replaced_only_when_told_to(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["embed", str(photos), "--model", str(tiny_checkpoint), "-o", str(tmp_path / "f.parquet")]
    assert main(words) == 3
    line = refused(words, capsys)
    assert "f.parquet exists (9 rows, written " in line
    assert "--update" not in line
    assert main([*words, "--overwrite"]) == 3
    assert pq.read_metadata(tmp_path / "f.parquet").num_rows == 9


@pytest.mark.parametrize("more", [[], ["--update"]])
def test_a_table_of_another_command_is_not_replaced(
    photos: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
) -> None:
    table = tmp_path / "table.parquet"
    label = command(photos, tiny_checkpoint, table)
    embed = ["embed", *label[1:]]
    for made, other in ((embed, label), (label, embed)):
        assert main([*made, "--overwrite", *more]) == 3
        line = refused(other, capsys)
        assert f" by hierclass {made[0]}); name another file, --overwrite begins anew" in line
        assert made[0] in refused([*other, "--update"], capsys)


def test_a_file_of_results_is_replaced_only_when_told_to(tmp_path: Path) -> None:
    file, link = tmp_path / "results.json", tmp_path / "link.json"
    file.write_text("{}")
    link.symlink_to(file)
    for each in (file, link):
        with pytest.raises(
            InputError, match=r"exists \(written .*\); add --overwrite to replace it, or name another"
        ):
            check_writable(each, "--json", overwrite=False)
        assert check_writable(each, "--json", overwrite=True) == file
    with pytest.raises(InputError, match="is no file; name one that may be replaced"):
        check_writable(Path(os.devnull), "--json", overwrite=True)


def test_a_taxonomy_is_replaced_only_when_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def build(*more: str) -> int | str | None:
        with pytest.raises(SystemExit) as ended:
            taxonomy(["build", "--folder", str(tmp_path / "pets"), "-o", str(tmp_path / "link.json"), *more])
        return ended.value.code

    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
    (tmp_path / "mine.json").write_text("mine")
    (tmp_path / "link.json").symlink_to(tmp_path / "mine.json")
    assert build() == 2
    assert "link.json exists; add --overwrite to replace it, or name another file" in capsys.readouterr().err
    assert (tmp_path / "mine.json").read_text() == "mine"
    assert build("--overwrite") == 0
    assert (tmp_path / "link.json").is_symlink()
    assert "hierclass-taxonomy" in (tmp_path / "mine.json").read_text()


@pytest.mark.parametrize("name", ["model/config.json", "recipe.json", "taxonomy.csv", "unreadable.csv"])
def test_a_run_is_not_trained_into_a_folder_of_other_things(tmp_path: Path, name: str) -> None:
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    first = name.split("/", maxsplit=1)[0]
    with pytest.raises(InputError, match=f"holds {first}, which is no part of a run; choose a new or empty"):
        RunDir(tmp_path).refuse_to_replace(resume=False, overwrite=True)
    (tmp_path / ".lock").touch()  # a run that ended before its first state
    RunDir(tmp_path).refuse_to_replace(resume=False)


def test_a_trained_run_is_replaced_only_when_told_to(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.done.parent.mkdir()
    run.done.write_text("{}")
    with pytest.raises(InputError, match="`resume` to continue it or `overwrite` to begin anew"):
        run.refuse_to_replace(resume=False)
    run.refuse_to_replace(resume=False, overwrite=True)
    run.forget()
    assert not run.begun


def test_a_distillation_leaves_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "unreadable.csv").write_text("mine")
    with pytest.raises(InputError, match=r"holds unreadable\.csv, which is no part of a run"):
        DistilDir(tmp_path).refuse_others()


def test_a_table_of_others_in_the_folder_of_a_run_stays(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(command(photos, tiny_checkpoint, f"{run}/", "--format", "csv")) == 3
    mine = run / "labels.jsonl"
    mine.write_text('{"path": "a.jpg", "label": "cat"}\n')
    again = command(photos, tiny_checkpoint, f"{run}/", "--format", "parquet", "--overwrite")
    assert main(again) == 3
    assert f"{mine} is no table of this run; it stays as it is" in capsys.readouterr().err
    assert sorted(file.name for file in run.glob("labels.*")) == ["labels.jsonl", "labels.parquet"]


def test_what_a_taxonomy_is_made_of_is_no_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = tmp_path / "names.txt"
    names.write_text("tabby cat\n")
    with pytest.raises(SystemExit):
        taxonomy(["build", "--names", str(names), "-o", str(names), "--overwrite"])
    assert "is what the tree is made of; name another file" in capsys.readouterr().err
    assert names.read_text() == "tabby cat\n"
