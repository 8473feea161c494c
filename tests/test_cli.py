"""The command line: what it prints, where, and with which exit code; an error is one line."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import hierclass
from hierclass.cli import main
from hierclass.cli.terminal import draw_classes
from hierclass.errors import CheckpointError
from hierclass.labelling.rows import columns
from taxonomy import Node, Taxonomy
from taxonomy.terminal import PlainConsole

ROOT = Path(__file__).parent.parent
PATIENCE = 300  # seconds; on a busy machine torch alone takes many


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(random.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "hierclass", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error, and nothing on standard output."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_labels_go_to_a_file_and_a_summary_to_standard_error(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.csv"
    assert main(["label", str(photos), "-o", str(target), "--model", str(tiny_checkpoint)]) == 0
    rows = rows_of(target.read_text())
    assert [Path(row["path"]).name for row in rows] == ["0.png", "1.png", "2.png", "3.png"]
    assert tuple(rows[0]) == columns(3)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("4 images labelled in ")
    assert err.endswith(f"-> {target}\n")


def test_without_a_file_csv_goes_to_standard_output(
    photos: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label", str(photos), "--model", str(tiny_checkpoint), "--level", "0"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert len(rows) == 4
    assert tuple(rows[0]) == columns(1)


def test_csv_for_a_spreadsheet_goes_wherever_csv_goes_and_is_a_matter_of_the_table_alone(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "0.png").rename(tmp_path / "=0.png")
    run, names = tmp_path / "run", [str(photos), str(tmp_path / "=0.png")]
    command = ["label", *names, "--model", str(tiny_checkpoint), "--level", "0"]
    assert main([*command, "--csv-excel"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("\ufeffpath,error,level,")
    assert out.endswith("\r\n")
    assert main([*command, "--csv-excel-semicolon", "-o", str(tmp_path / "out.csv")]) == 0
    assert (tmp_path / "out.csv").read_bytes().startswith(b"\xef\xbb\xbfpath;error;level;")
    plain = [*command, "-o", f"{run}/"]
    for more, start in (
        (["--format", "csv"], b"path,"),
        (["--csv-excel"], b"\xef\xbb\xbfpath,"),
        ([], b"\xef\xbb\xbfpath,"),  # as it is
        (["--csv-excel-semicolon"], b"\xef\xbb\xbfpath;"),
        (["--format", "csv"], b"path,"),
    ):
        assert main([*plain, *more]) == 0
        assert (run / "labels.csv").read_bytes().startswith(start)
    capsys.readouterr()
    for more, what in (
        (["-o", str(tmp_path / "out.parquet")], "out.parquet; name a .csv file"),
        (["-o", f"{tmp_path}/new/"], "labels.parquet; add --format csv"),
        (["--format", "jsonl"], "--format jsonl"),
    ):
        assert main([*command, "--csv-excel", *more]) == 2
        assert one_error(capsys) == f"error: --csv-excel is for CSV, not for {what}\n"
    assert main([*command, "--csv-excel", "--csv-excel-semicolon"]) == 2
    assert one_error(capsys).endswith("; give one of them\n")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_column_that_was_added_by_hand_is_not_overwritten(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / f"out{ending}"
    command = ["label", str(photos), "-o", str(target), "--model", str(tiny_checkpoint)]
    assert main(command) == 0
    if ending == ".csv":
        head, *rows = target.read_text().splitlines()
        target.write_text("\n".join([f"{head},corrected", *(f"{row},cat" for row in rows)]))
    elif ending == ".jsonl":
        rows = [json.loads(line) | {"corrected": "cat"} for line in target.read_text().splitlines()]
        target.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        table = pq.read_table(target)
        pq.write_table(table.append_column("corrected", [["cat"] * len(table)]), target)
    before = target.read_bytes()
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "exists (4 rows, written " in error
    assert "--update labels what is new or changed and keeps your column 'corrected'" in error
    assert "--overwrite begins anew, without it" in error
    assert target.read_bytes() == before
    target.write_text("mine")
    assert main(command) == 2
    assert "is no table that hierclass wrote; name another file" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main([*command, "--overwrite"]) == 0


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_the_ending_chooses_the_format(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, ending: str
) -> None:
    target = tmp_path / f"out{ending}"
    assert main(["label", str(photos), "-o", str(target), "--model", str(tiny_checkpoint)]) == 0
    assert target.read_bytes()[:4] == {".jsonl": b'{"pa', ".parquet": b"PAR1"}[ending]


def test_inputs_that_cannot_be_read_have_rows_and_exit_code_3(
    photos: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "bad.jpg").write_text("no picture")
    missing = str(photos / "missing.jpg")
    assert main(["label", str(photos), missing, "--model", str(tiny_checkpoint)]) == 3
    out, err = capsys.readouterr()
    rows = rows_of(out)
    assert [bool(row["error"]) for row in rows] == [False, False, False, False, True, True]
    assert err.startswith("4 images labelled in ")
    assert err.endswith(", 2 errors (see the column error)\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label"], "Missing argument 'PATH"),
        (["label", "x.jpg", "--frobnicate"], "No such option: --frobnicate"),
        (["label", "x.jpg", "--level", "-1"], "--level -1: give a number from 0, or auto"),
        (["label", "x.jpg", "--level", "fine"], "--level fine: give a number from 0, or auto"),
        (
            ["label", "x.jpg", "--precision", "2"],
            "--precision 2: give the share of answers that are to be right, from",
        ),
        (["label", "x.jpg", "--precision", "nan"], "--precision nan: give the share"),
        (
            ["label", "x.jpg", "--prior", "nowhere.csv"],
            "nowhere.csv can't be read: No such file or directory",
        ),
        (["label", "x.jpg", "--overwrite"], "give --output"),
        (["label", "x.jpg", "-o", "run/", "--format", "xls"], "--format xls: give csv, jsonl or parquet"),
        (["label", "x.jpg", "--shard", "9/8"], "--shard 9/8: give which of how many"),
        (["refine", "nowhere", "--where", "1"], "there is no run in nowhere"),
        (["label", "x.jpg", "--batch-size", "0"], "Invalid value for '--batch-size'"),
        (["label", "x.jpg", "-o", "out.xlsx"], "must end in .csv, .jsonl or .parquet, or be a folder"),
        (["label", "x.jpg", "-o", "missing/folder/out.csv"], "cannot write missing/folder/out.csv"),
        (["label", "x.jpg", "--model", "missing"], "there is no model at missing"),
        (
            ["label", "x.jpg", "--", "-dash.jpg", "--level", "0"],
            "error: --level is taken for a file after --; options are given before it",
        ),
        (["embed", "-o", "x.parquet", "--", "x.jpg", "-o"], "-o is taken for a file after --; options"),
        (["predict", "--", "-dash.jpg", "--json"], "--json is taken for a file after --; options"),
        (["predict", "x.jpg", "--level", "x"], "--level x: give a number from 0, or auto"),
        (["predict", "x.jpg", "--precision", "0.9"], "--precision belongs to --level auto"),
        (["predict", "x.jpg", "--model", "missing"], "there is no model at missing"),
        (["levels", "--model", "missing"], "there is no model at missing"),
        (["lable", "x.jpg"], "No such command 'lable'"),
        (
            ["label", "-dash.jpg"],
            "-dash.jpg is taken for options: name a file that begins with - as ./-dash.jpg",
        ),
        (["predict", "-dash.jpg"], "No such option: -d; -dash.jpg is taken for options"),
        (["embed", "-dash.jpg", "-o", "x.parquet"], "No such option: -d; -dash.jpg is taken for options"),
        (["label", "x.jpg", "-old.jpg"], "not 'ld.jpg'; -old.jpg is taken for options"),
        (["label", "x.jpg", "-dsh"], "No such option: -d\n"),
        (["label", "x.jpg", "--outpt", "x.csv"], "(Possible options: --output, --update)\n"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in one_error(capsys)


@pytest.mark.parametrize("verb", ["label", "predict", "embed"])
def test_a_table_is_refused_and_nothing_is_written(
    verb: str, photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, target = tmp_path / "t.csv", tmp_path / "out.parquet"
    table.write_text(f"path,label\n{photos / '0.png'},dog\n")
    output = ["-o", str(target)] if verb != "predict" else []
    assert main([verb, str(photos / "0.png"), str(table), *output, "--model", str(tiny_checkpoint)]) == 2
    assert (
        f"t.csv is a list or a table, not an image; leave it out, or give it as a list: hierclass label - < {table}"
        in one_error(capsys)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "t.csv"]


def test_what_was_passed_over_is_counted_where_rows_go_to_standard_output(
    photos: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jxl", "b.jxl", "c.mov", "@eaDir/d.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).touch()
    ignore = ["--ignore", "[12].png", "--ignore", "photos/3.png"]
    assert main(["label", str(photos), *ignore, "--model", str(tiny_checkpoint), "--level", "0"]) == 0
    out, err = capsys.readouterr()
    assert [row["path"] for row in rows_of(out)] == [str(photos / "0.png"), str(photos / "3.png")]
    first, _ = err.splitlines()
    assert first == "3 other files passed over (.jxl 2, .mov 1); convert to JPEG or PNG: .jxl"


def test_an_empty_pattern_takes_what_is_ignored_otherwise(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (photos / "0.png").rename(photos / ".hidden.png")
    target = tmp_path / "out.csv"
    command = ["label", str(photos), "-o", str(target), "--level", "0", "--model", str(tiny_checkpoint)]
    assert main([*command, "--ignore", "", "--ignore", "[12].png"]) == 0
    assert [Path(row["path"]).name for row in rows_of(target.read_text())] == [".hidden.png", "3.png"]


def test_an_empty_folder_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", str(tmp_path)]) == 2
    assert "nothing to do: no images in the folder" in one_error(capsys)


@pytest.mark.parametrize("verb", ["label", "predict"])
def test_an_unknown_level_is_one_line(
    verb: str, photos: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, str(photos / "0.png"), "--level", "7", "--model", str(tiny_checkpoint)]) == 2
    assert "level 7 does not exist; this model has levels 0 to 2" in one_error(capsys)


def test_a_checkpoint_of_another_version_is_one_line(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "version": 99}))
    assert main(["label", str(photos), "--model", str(model)]) == 2
    assert "99" in one_error(capsys)


def test_a_wrong_device_is_one_line(
    photos: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label", str(photos), "--model", str(tiny_checkpoint), "--device", "toaster"]) == 2
    assert "toaster" in one_error(capsys)


def test_predict_draws_the_path_with_scores_and_costs(
    photos: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(photos / "0.png"), "--model", str(tiny_checkpoint)]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("tier")]
    assert [line.split()[1] for line in lines] == ["0", "1", "2"]
    assert all("of the cost" in line for line in lines)
    last = hierclass.load(tiny_checkpoint, device="cpu").predict(photos / "0.png").path
    assert all(
        step.label in line and f"{step.score:.2f}" in line for step, line in zip(last, lines, strict=True)
    )


def test_predict_takes_paths_as_people_write_them(
    photos: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(photos))
    names = ["~/0.png", f" file://{photos}/1.png"]
    assert main(["predict", *names, "--json", "--level", "0", "--model", str(tiny_checkpoint)]) == 0
    found = [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()]
    assert found == [str(photos / "0.png"), str(photos / "1.png")]


def test_predict_stops_at_the_level(
    photos: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(photos / "0.png"), "--level", "1", "--model", str(tiny_checkpoint)]) == 0
    assert capsys.readouterr().out.count("tier") == 2


def test_predict_goes_as_far_as_the_image_needs(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    del config["digest"]
    shutil.copytree(tiny_checkpoint, model := tmp_path / "sure")
    for score, level, reason in (
        (0.0, 0, "sure at level 0\n"),
        (1.0, 2, "not sure at level 2, so that this is a"),
    ):
        thresholds = [
            {"level": k, "tier": t, "precision": 0.9, "score": score, "coverage": 1.0}
            for k in range(3)
            for t in range(k + 1)
        ]
        config["decision"] = {**config["decision"], "thresholds": thresholds}
        (model / "config.json").write_text(json.dumps(config))
        command = [
            "predict",
            str(photos / "0.png"),
            "--level",
            "auto",
            "--precision",
            "0.9",
            "--model",
            str(model),
        ]
        assert main(command) == 0
        out = capsys.readouterr().out
        assert reason in out
        assert out.count("\ntier ") == 1
        assert main([*command, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["level"], found["stop_reason"]) == (level, reason.split(" at")[0])


def test_predict_prints_a_line_of_json_for_each_image(
    photos: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(photos / "0.png"), str(photos / "none.png"), str(photos / "1.png")]
    assert main(["predict", *images, "--json", "--model", str(tiny_checkpoint)]) == 3
    first, second, third = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [first["image"][-5:], third["image"][-5:]] == ["0.png", "1.png"]
    assert first["level"] == 2
    assert len(first["path"]) == 3
    assert second == {"image": images[1], "error": "no such file"}


def test_predict_says_which_image_cannot_be_read_and_draws_the_others(
    photos: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(photos / "none.png"), str(photos / "1.png")]
    assert main(["predict", *images, "--model", str(tiny_checkpoint)]) == 3
    out, err = capsys.readouterr()
    assert err == f"error: {images[0]}: no such file\n"
    assert "tier 2" in out


def test_levels_are_a_table(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["levels", "--model", str(tiny_checkpoint)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert [row[2] for row in rows] == ["2", "5", "12"]
    assert [row[-1] for row in rows] == ["50.0%", "25.0%", "12.5%"]
    assert rows[2][4] == "100.0%"


def test_classes_are_listed_with_what_they_are_in(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taxonomy = hierclass.load(tiny_checkpoint, device="cpu").taxonomy
    assert main(["classes", "--model", str(tiny_checkpoint)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.strip()[:1].isdigit() for line in lines) == sum(taxonomy.num_classes)
    leaf = taxonomy.node(taxonomy.leaves[4])
    assert main(["classes", leaf.id.upper(), "--model", str(tiny_checkpoint)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip()[:1].isdigit()]
    assert line.split()[:2] == ["2", leaf.id]
    assert f"{taxonomy.project(leaf.id, 0).name} › {taxonomy.project(leaf.id, 1).name}" in line


def test_ids_that_look_like_markup_are_shown_as_they_are() -> None:
    nodes = [Node("[red]fox", "[red]fox"), Node("[/]", "[/]")]
    ids = ["[red]fox", "[/]"]
    tree = Taxonomy(name="t", nodes=[Node("t", "t"), *nodes], parents=[-1, 0, 0], leaves=ids, tiers=[ids])
    text = io.StringIO()
    PlainConsole(file=text, width=80).print(draw_classes(tree, ""))
    assert text.getvalue().count("[red]fox") == text.getvalue().count("[/]") == 2


def test_a_run_named_as_a_model_is_told_where_its_model_is(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "run" / "model")
    assert main(["levels", "--model", str(tmp_path / "run")]) == 2
    told = f"{tmp_path / 'run'} is a run, whose model is in a folder of its own: name {tmp_path / 'run' / 'model'}"
    assert told in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="is a run, whose model"):
        hierclass.load(tmp_path / "run")


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hierclass {hierclass.__version__}\n"
    for arguments in (["--help"], ["label", "-h"]):
        assert main(arguments) == 0
        assert "Usage: hierclass" in capsys.readouterr().out


def test_without_arguments_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert "Usage: hierclass" in out + err
    assert "error:" not in out + err


def test_a_mistake_of_ours_is_one_line_that_asks_to_report_it(
    photos: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Odd(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, _: object, /) -> int:
            raise RuntimeError("two\nlines")

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(Odd(), write_through=True))
    arguments = ["label", str(photos), "--model", str(tiny_checkpoint)]
    assert main(arguments) == 1
    line = one_error(capsys)
    assert "RuntimeError: two" in line
    assert "HIERCLASS_DEBUG=1" in line
    monkeypatch.setenv("HIERCLASS_DEBUG", "1")
    assert main(arguments) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["label", "--help"],
        ["label", "x", "-o", "y.xls"],
        ["label", "x", "--model", "nowhere"],
        ["label"],
    ],
)
def test_help_and_wrong_use_do_not_wait_for_torch(arguments: list[str]) -> None:
    script = (
        "import sys; from hierclass.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        cwd=ROOT,
        env=environment(),
        timeout=PATIENCE,
    )
    assert ran.returncode == 0


def test_a_folder_as_output_is_a_run_that_can_be_refined(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, model = f"{tmp_path / 'run'}/", ["--model", str(tiny_checkpoint)]
    first = ["label", str(photos), "-o", run, "--level", "0", *model]
    assert main(first) == 0
    assert main([*first, "--format", "csv"]) == 0
    assert (
        capsys.readouterr().err.splitlines()[1]
        == f"no image was left to label -> {tmp_path / 'run' / 'labels.csv'}"
    )
    assert (
        main(["refine", run, "--where", "path like '%/1.png'", "--level", "2", "--format", "csv", *model])
        == 0
    )
    rows = rows_of((tmp_path / "run" / "labels.csv").read_text())
    assert [row["chosen_level"] for row in rows] == ["0", "2", "0", "0"]
    assert not (tmp_path / "run" / "labels.parquet").exists()
    assert main([*first[:-4], "--level", "1", *model]) == 2
    assert "was begun with --level 0, not 1; give the same" in capsys.readouterr().err


def test_only_and_exclude_keep_to_classes(
    photos: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaves = hierclass.load(tiny_checkpoint, device="cpu").taxonomy.classes(2)
    arguments = ["label", str(photos), "--model", str(tiny_checkpoint)]
    assert (
        main([*arguments, "--only", leaves[3].id, "--only", leaves[5].name, "--exclude", leaves[5].id]) == 0
    )
    assert {row["synset"] for row in rows_of(capsys.readouterr().out)} == {leaves[3].id}
    assert main([*arguments, "--only", "unicorn"]) == 2
    assert "no class 'unicorn'" in one_error(capsys)


def test_a_list_on_standard_input_with_odd_names(photos: Path, tiny_checkpoint: Path) -> None:
    odd = os.fsencode(photos) + b'/caf\xe9, "a"\nb.png'
    (photos / "0.png").rename(os.fsdecode(odd))
    listed = odd + b"\0" + os.fsencode(photos / "1.png")
    ran = subprocess.run(
        command("label", "-", "--model", tiny_checkpoint),
        input=listed,
        capture_output=True,
        env=environment(),
    )
    assert ran.returncode == 0, ran.stderr
    rows = list(csv.DictReader(ran.stdout.decode().splitlines(keepends=True)))
    assert [row["path"].rpartition("/")[2] for row in rows] == ['caf\\xe9, "a"\nb.png', "1.png"]
    assert not any(row["error"] for row in rows)


@pytest.mark.full
def test_a_reader_that_goes_away_is_no_error(photos: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{photos / '0.png'}\n" * 3000)
    arguments = command("label", "-", "--model", tiny_checkpoint, "--batch-size", "8")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with open(tmp_path / "list.txt", "rb") as listed:
        process = subprocess.Popen(arguments, env=environment(), stdin=listed, **pipes)  # type: ignore[call-overload]
    try:
        header = process.stdout.readline()
        assert header.startswith(b"path,"), process.stderr.read()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=PATIENCE) == -signal.SIGPIPE
    finally:
        process.kill()


class Stopped:
    """A run of ``hierclass label`` in a process of its own that a signal stopped after some parts."""

    def __init__(self, photos: Path, model: Path, folder: Path, number: signal.Signals) -> None:
        self.target = folder / "out.csv"
        self.listed = folder / "list.txt"
        self.listed.write_text(f"{photos / '0.png'}\n" * 1_200)
        script = (
            "import sys\nfrom hierclass.labelling import run_pass as passes\nfrom hierclass.cli import main\n"
            "passes.PART_ROWS = 8\nsys.exit(main(sys.argv[1:]))\n"
        )
        self.arguments = [sys.executable, "-c", script, "label", "-", "-o", str(self.target)]
        self.arguments += ["--batch-size", "4", "--model", str(model), "--device", "cpu"]
        with open(self.listed, "rb") as stdin:
            process = subprocess.Popen(
                self.arguments, env=environment(), stdin=stdin, stderr=subprocess.PIPE, text=True
            )
        try:
            deadline = time.monotonic() + PATIENCE
            while len(list(folder.glob("out.csv.run/parts/*.parquet"))) < 3:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(number)
            self.error = process.communicate(timeout=PATIENCE)[1]
        finally:
            process.kill()
        self.code = process.returncode

    def check(self, code: int) -> None:
        assert self.code == code
        assert self.error.startswith("error: stopped after ")
        assert self.error.endswith(" of 1,200 images; the same command goes on from there\n")
        assert self.error.count("\n") == 1
        assert not self.target.exists()


def test_ctrl_c_says_how_far_the_run_came(photos: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    Stopped(photos, tiny_checkpoint, tmp_path, signal.SIGINT).check(130)


@pytest.mark.full
def test_a_stopped_run_says_how_far_it_came_and_goes_on(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    stopped = Stopped(photos, tiny_checkpoint, tmp_path, signal.SIGTERM)
    stopped.check(143)
    with open(stopped.listed, "rb") as stdin:
        ran = subprocess.run(
            stopped.arguments, env=environment(), stdin=stdin, capture_output=True, text=True
        )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.startswith("going on after ")
    assert len(stopped.target.read_text().splitlines()) == 1_201
    assert not (tmp_path / "out.csv.run").exists()


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files, as Unix can")
def test_a_full_disk_is_one_line_and_exit_code_1(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import resource

    target = tmp_path / "out.csv"
    arguments = ["label", *[str(photos)] * 50, "-o", str(target)]
    arguments += ["--model", str(tiny_checkpoint), "--batch-size", "4", "--device", "cpu"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        assert main(arguments) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = one_error(capsys)
    assert error.startswith("error: writing failed after 200 of 200 images: ")
    assert "File too large" in error
    assert error.endswith("; make room, then the same command goes on from there\n")
    assert not target.exists()
    assert main(arguments) == 0
    assert len(target.read_text().splitlines()) == 201


@pytest.mark.full
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")
def test_a_folder_of_bad_files_gives_an_error_for_each_in_bounded_memory(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from test_images import png_of_one_colour

    good = (photos / "0.png").read_bytes()
    (photos / "text.jpg").write_text("no picture")
    Image.open(photos / "0.png").save(photos / "cut.jpg")
    (photos / "cut.jpg").write_bytes((photos / "cut.jpg").read_bytes()[:-300])
    (photos / "zero.jpg").touch()
    (photos / "bomb.png").write_bytes(png_of_one_colour(30_000, 30_000))
    (photos / "folder.jpg").mkdir()
    (photos / "dangling.jpg").symlink_to(photos / "nowhere")
    os.mkfifo(photos / "pipe.jpg")
    (photos / "last.png").write_bytes(good)
    script = (
        "import sys\n"
        "from hierclass.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
        "sys.exit(code)\n"
    )
    target = tmp_path / "out.csv"
    arguments = ["label", str(photos), "-o", str(target), "--model", str(tiny_checkpoint), "--device", "cpu"]
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=PATIENCE,
    )
    assert ran.returncode == 3, ran.stderr
    rows = {Path(row["path"]).name: row for row in rows_of(target.read_text())}
    broken = {"text.jpg", "cut.jpg", "zero.jpg", "bomb.png", "folder.jpg", "dangling.jpg", "pipe.jpg"}
    assert {name for name, row in rows.items() if row["error"]} == broken
    assert len(rows) == len(broken) + 5
    assert rows["last.png"]["synset"] == rows["0.png"]["synset"]
    assert int(ran.stdout) < 1_500_000
