"""``hierclass-train`` as a person or a script meets it: real processes, exit codes, one line per error."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from training_data import read_fit_options, write_folder

from hierclass.errors import InputError
from taxonomy import Taxonomy
from training.cli import main, options
from training.cli.exits import one_line_errors
from training.recipe.recipe import Recipe
from training.trainer.resume_state import save_state

ROOT = Path(__file__).resolve().parents[1]
STATE = Path("last") / "state.safetensors"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "training", *map(str, arguments)]


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: object) -> tuple[int, str, str]:
    process = start(*arguments)
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


@pytest.fixture
def data(shapes: Path) -> Path:
    return shapes


def fit_options(data: Path) -> list[object]:
    return [
        *("fit", "--data", data / "shapes.parquet", "--taxonomy", data / "tiny.json", "--dev-from", 10),
        *("--backbone", "test_resnet", "--size", 32, "--batch-size", 12, "--epochs", 2, "--warmup-epochs", 0),
        *("--workers", 0, "--threads", 1, "--lr", 0.05, "--no-graphs"),
    ]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.full
def test_a_run_killed_without_warning_continues_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    from training.cli import app

    threads = torch.get_num_threads()
    app([*map(str, fit_options(data)), "--out", str(tmp_path / "whole")], standalone_mode=False)
    torch.set_num_threads(threads)
    process = start(*fit_options(data), "--save-every", "0.000001", "--out", tmp_path / "broken")
    wait_for(tmp_path / "broken" / STATE, process)  # in the middle of an epoch
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, out, error = run("fit", "--out", tmp_path / "broken", "--resume", "--workers", 0, "--threads", 1)
    assert (code, error) == (0, "")
    assert "resumed after epoch" in out
    ours, theirs = (load_file(tmp_path / name / STATE) for name in ("broken", "whole"))
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []


def test_sigterm_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    process = start(*fit_options(data), "--epochs", 1000, "--out", tmp_path)
    wait_for(tmp_path / STATE, process)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == (
        f"hierclass-train: interrupted; continue with: hierclass-train fit --out {tmp_path} --resume "
        "--no-graphs --threads 1\n"
    )


def test_a_table_with_inner_nodes_and_splits_is_trained_on_measured_and_calibrated_with(
    data: Path, tiny_taxonomy: Taxonomy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_folder(tmp_path / "photos", tiny_taxonomy, 12)
    rows = ["path,label,split"]
    for leaf in tiny_taxonomy.leaves:
        group = tiny_taxonomy.project(leaf, 1).id
        for number, split in enumerate(["train"] * 5 + ["val"] * 5 + ["test"] * 2):
            label = group if number in (0, 5, 10) else leaf
            rows.append(f"photos/{leaf}/{leaf}_{number}.jpg,{label},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    words = [*fit_options(data), "--out", tmp_path / "run", "--no-pretrained"]
    words[words.index("--data") + 1] = tmp_path / "labels.csv"
    at = words.index("--dev-from")
    assert photos.exists()
    assert main([str(word) for word in (*words[:at], *words[at + 2 :])]) == 0
    out = capsys.readouterr().out
    assert "labels.csv: left out 24 rows for test" in out
    assert "12 of 60 training images are labelled above the finest tier" in out
    assert "60 training images, 60 dev images" in out
    model, table = str(tmp_path / "run" / "model"), str(tmp_path / "labels.csv")
    assert (
        main(["evaluate", model, "--data", table, "--workers", "0", "--report", str(tmp_path / "page")]) == 0
    )
    out = " ".join(capsys.readouterr().out.split())
    assert "labels.csv: left out 60 rows for train, 60 rows for val" in out
    assert "Images that are labelled down to tier 0 / 1 / 2: 24 / 24 / 12." in out
    with pytest.raises(SystemExit):
        main(["evaluate", model, "--data", table, "--workers", "0", "--split", "dev"])
    assert "--split dev: give val or test" in capsys.readouterr().err
    (tmp_path / "all.csv").write_text("\n".join(rows).replace(",val", ",test"), encoding="utf-8")
    assert main(["calibrate", model, "--data", str(tmp_path / "all.csv"), "--workers", "0"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "all.csv: left out 60 rows for train" in out
    assert "cross-fitted on 60 images" in out


def test_evaluate_writes_json_and_prints_tables(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: list[object] = [
        *("evaluate", tiny_checkpoint, "--data", data / "shapes.parquet", "--dev-from", 10),
        *("--json", tmp_path / "out.json", "--workers", 0),
    ]
    assert main([str(argument) for argument in arguments]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    assert out.index("answers of ") < out.index("the finest level's answer") < out.index("each level alone")
    assert "answers never do" in " ".join(out.split())
    assert "mistake severity" in out
    results = json.loads((tmp_path / "out.json").read_text())
    assert (results["images"], results["unreadable"]) == (60, [])
    assert [row["classes"] for row in results["levels"]] == [2, 5, 12]
    assert set(results["finest"]) == {
        *("top1", "mistake_severity", "mean_lca_height"),
        *("hierarchical_precision", "hierarchical_recall", "hierarchical_f1"),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--out", "{tmp}"], "give the images with --data"),
        (["fit", "--out", "{tmp}", "--resume"], "holds no run to resume"),
        (["fit", "--out", "{tmp}", "--data", "{tmp}/none"], "does not exist"),
        (["fit", "--out", "{tmp}", "--data", "{data}", "--widths", "a,b"], "--widths a,b: give numbers"),
        (
            ["fit", "--out", "{tmp}", "--data", "{data}", "--taxonomy", "tiny-imagenet"],
            "is no leaf of taxonomy 'tiny-imagenet'",
        ),
        (["evaluate", "{tmp}/none", "--data", "{data}"], "there is no model at"),
        (["evaluate", "{tmp}"], "give the labelled images with --data"),
        (
            ["evaluate", "{tmp}", "--data", "{data}", "--dev-from", "1", "--dev-share", "0.1"],
            "--dev-share has no effect beside --dev-from",
        ),
        (
            ["evaluate", "{tmp}", "--data", "{data}", "--json", "{tmp}"],
            "--json {tmp} is a folder; name a file",
        ),
        (
            ["evaluate", "{tmp}", "--data", "{data}", "--json", "{tmp}/none/x.json"],
            "--json {tmp}/none/x.json cannot be written: No such file or directory",
        ),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from training.cli import app

    values = {"tmp": str(tmp_path), "data": str(data)}
    with pytest.raises(SystemExit) as ended:
        app([argument.format(**values) for argument in arguments])
    error = capfd.readouterr().err
    assert ended.value.code == 2
    assert message.format(**values) in error
    assert error.startswith("hierclass-train: ")
    assert error.count("\n") == 1


def test_a_file_that_is_taken_for_options_is_named_otherwise(capfd: pytest.CaptureFixture[str]) -> None:
    from training.cli import main

    with pytest.raises(SystemExit):
        main(["evaluate", "-my.model", "--data", "x"])
    assert "name a file that begins with - as ./-my.model, or after --" in capfd.readouterr().err


def test_an_option_that_contradicts_the_resumed_run_is_refused(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from training.cli import app

    Recipe(data=("x",), taxonomy="tiny-imagenet", lr=0.1).save(tmp_path / "recipe.json")
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "state.safetensors").touch()
    with pytest.raises(SystemExit):
        app(["fit", "--out", str(tmp_path), "--resume", "--lr", "0.2"])
    assert "--lr 0.2 differs from the run" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        app(["fit", "--out", str(tmp_path), "--resume", "--tiers", "2,4"])
    assert f"--tiers has no effect on the run in {tmp_path}, which has its tree" in capfd.readouterr().err


def test_a_run_remembers_its_data_by_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_taxonomy: Taxonomy
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked").symlink_to(write_folder(tmp_path / "elsewhere", tiny_taxonomy, 1))
    tiny_taxonomy.save("mine.json")
    trees = {"mine.json": str(tmp_path / "mine.json"), "tiny-imagenet": "tiny-imagenet"}
    for given, stored in trees.items():
        recipe = read_fit_options("--out", "run", "--data", "linked", "--taxonomy", given)
        assert (recipe.data, recipe.taxonomy) == ((str(tmp_path / "linked"),), stored)


def test_what_stopped_the_first_epoch_can_be_changed_on_resuming(tmp_path: Path) -> None:
    Recipe(data=("x",), taxonomy="tiny-imagenet", lr=9.0, epochs=3).save(tmp_path / "recipe.json")
    recipe = read_fit_options("--out", tmp_path, "--resume", "--lr", "0.2")
    assert (recipe.lr, recipe.epochs, recipe.data) == (0.2, 3, ("x",))


def test_compiling_can_be_given_up_on_resuming(tmp_path: Path) -> None:
    Recipe(data=("x",), taxonomy="tiny-imagenet", compile=True).save(tmp_path / "recipe.json")
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "state.safetensors").touch()
    assert read_fit_options("--out", tmp_path, "--resume").compile
    assert not read_fit_options("--out", tmp_path, "--resume", "--no-compile").compile


def test_backbone_arguments_are_read_as_python_values() -> None:
    text = ["channels=32,64", "act_layer=silu", "drop_rate=0.1", "aa=true", "name=a=b"]
    assert options.arguments(text) == {
        "channels": [32, 64],
        "act_layer": "silu",
        "drop_rate": 0.1,
        "aa": True,
        "name": "a=b",
    }
    with pytest.raises(InputError, match="KEY=VALUE"):
        options.arguments(["channels"])


def test_help_needs_no_torch() -> None:
    program = "import sys; from training.cli import app; app(['fit', '--help'], standalone_mode=False); "
    check = "assert 'torch' not in sys.modules and 'nltk' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program + check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout


@pytest.mark.full
def test_training_needs_neither_nltk_nor_gradio() -> None:
    program = (
        "import sys, training.trainer.loop, training.evaluation.html_report; from taxonomy import load_taxonomy; "
        "load_taxonomy('tiny-imagenet'); assert not {'nltk', 'gradio'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_full_disk_is_one_line_that_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped, one_line_errors(lambda: "fit --resume"):
        raise OSError(errno.ENOSPC, "No space left on device", "run/last")
    assert stopped.value.code == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "run/last: No space left on device" in message
    assert "--resume" in message


def test_a_state_that_can_not_be_written_is_an_error_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("training.trainer.resume_state.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path / "state.safetensors", modules={}, optimizer={}, progress={})
