"""The benchmarks run and report what they measured; how fast it was is nobody's business here."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from click.testing import Result
from page_data import calibrated
from PIL import Image
from training_data import write_folder, write_parquet
from typer.testing import CliRunner

import hierclass
from hierclass.checkpoints.checkpoint import save_checkpoint
from taxonomy import Taxonomy

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "latency.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def command(name: str, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """A benchmark as a command in this process."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    app = typer.Typer()
    app.command()(importlib.import_module(name).main)
    return app


def test_latency_reports_every_level_refining_and_the_dense_network_by_every_runtime(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, threads = command("latency", monkeypatch), torch.get_num_threads()
    out = tmp_path / "latency.json"
    options = ["--rounds", 2, "--threads", 1, "--batch", 1, "--batch", 2, "--busy", 1]
    arguments = ["--model", tiny_checkpoint, *options, "--json", out]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text(encoding="utf-8"))
    rows = report["timings"]
    names = ["level 0", "level 1", "level 2", "refine 0→1→2"]
    runtimes = ["torch", "onnx"] if (tiny_checkpoint / "level0.onnx").exists() else ["torch"]
    expected = [*((name, runtime) for name in names for runtime in runtimes), ("dense", "torch")]
    assert [(row["busy"], row["batch"], row["what"], row["runtime"]) for row in rows] == [
        (busy, batch, *each) for busy in (0, 1) for batch in (1, 2) for each in expected
    ]
    assert all(0 < row["low"] <= row["milliseconds"] <= row["high"] for row in rows)
    assert all(row["of_last"] == 1 for row in rows if row["what"] == "level 2")
    assert all(row["of_torch"] == 1 for row in rows if row["runtime"] == "torch")
    assert all((row["of_quiet"] == 1) == (row["busy"] == 0) for row in rows)
    macs = {row["what"]: row["macs"] for row in rows}
    assert macs["level 0"] < macs["level 1"] < macs["level 2"] <= macs["refine 0→1→2"] < macs["dense"]
    assert report["machine"]["threads"] == 1
    assert report["rounds"] == 2
    assert "Medians of 2 interleaved rounds" in " ".join(done.output.split())


@pytest.mark.full
def test_latency_of_a_missing_model_is_one_line(tmp_path: Path) -> None:
    done = run("--model", tmp_path / "none")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("there is no model at")


@pytest.mark.full
def test_startup_reports_every_command(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "startup.json"
    options = ["--rounds", "1", "--no-page", "--model", str(tiny_checkpoint), "--json", str(out)]
    done = CliRunner().invoke(command("startup", monkeypatch), options)
    assert done.exit_code == 0, done.output
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [row["what"] for row in rows][-2:] == ["hierclass predict", "hierclass label, one photograph"]
    assert all(0 < row["low"] <= row["seconds"] <= row["high"] for row in rows)


def test_loading_reports_every_size_augmentation_and_number_of_workers(
    tiny_taxonomy: Taxonomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = command("loading", monkeypatch)
    write_parquet(tmp_path / "shapes.parquet", tiny_taxonomy, 2)
    folder = write_folder(tmp_path / "folder", tiny_taxonomy, 1)
    out = tmp_path / "loading.json"
    options = ["--size", 16, "--size", 8, "--workers", 0, "--workers", 1, "--rounds", 1, "--seconds", 0]
    arguments = [tmp_path / "shapes.parquet", folder, *options, "--batch-size", 8, "--json", out]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [(row["data"], row["size"], row["auto_augment"] is None, row["workers"]) for row in rows] == [
        (name, size, plain, workers)
        for name in ("shapes.parquet", "folder")
        for size in (16, 8)
        for plain in (True, False)
        for workers in (0, 1)
    ]
    assert [row["decoded_before"] for row in rows] == [24] * 4 + [0] * 4 + [12] * 4 + [0] * 4
    assert all(0 < row["low"] <= row["images_per_second"] <= row["high"] for row in rows)
    (tmp_path / "empty").mkdir()
    refused = CliRunner().invoke(app, [str(tmp_path / "empty")])
    assert refused.exit_code == 2
    assert "holds no images" in refused.output


@pytest.mark.full
def test_labelling_reports_every_level_what_bounds_it_and_lists_of_paths(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = command("labelling", monkeypatch)
    out = tmp_path / "labelling.json"
    common = ["--model", str(tiny_checkpoint), "--count", "4", "--rounds", "1", "--json", str(out)]
    done = CliRunner().invoke(app, common)
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text(encoding="utf-8"))
    assert {name: size["images"] for name, size in report["sizes"].items()} == {"web": 4, "phone": 1}
    for size in report["sizes"].values():
        rows = {row["what"]: row for row in size["rows"]}
        assert {f"level {level}: label" for level in range(3)} < rows.keys()
        assert {"timm's loop, dense", "ONNX Runtime's loop, dense"} < rows.keys()
        assert all(0 < row["low"] <= row["rate"] <= row["high"] for row in rows.values())
        for name in (name for name in rows if ": label" in name):
            assert all(rows[name][f"of_{what}"] > 0 for what in ("both", "timm", "onnx", "last"))
    assert [0 <= share <= 1 for share in report["sizes"]["phone"]["previews_agree"]] == [True] * 3
    done = CliRunner().invoke(app, [*common, "--paths", "30", "--paths", "20", "--small"])
    assert done.exit_code == 0, done.output
    lists = json.loads(out.read_text(encoding="utf-8"))["lists"]
    assert [row["paths"] for row in lists] == [20, 30]
    assert all(row["peak_mib"] > 10 for row in lists)


def test_photographs_report_right_answers_per_level_and_tier_and_what_the_size_of_reading_changes(
    tiny_checkpoint: Path, tiny_taxonomy: Taxonomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, folder, out = command("photographs", monkeypatch), tmp_path / "photos", tmp_path / "out.json"
    folder.mkdir()
    expected = [[0], [0, 0], [0, 0, 0]]
    classifier = hierclass.load(tiny_checkpoint, device="cpu")
    for number, leaf in enumerate(["beagle", "owl", "taxi", "unheard"]):
        file = folder / f"{leaf}_{number}.png"
        Image.new("RGB", (40, 40), (60 * number, 200, 90)).save(file)
        if leaf != "unheard":
            for level in range(3):
                for tier, step in enumerate(classifier.predict(file, level).path):
                    expected[level][tier] += step.synset == tiny_taxonomy.project(leaf, tier).id
    done = CliRunner().invoke(app, [str(folder), "--model", str(tiny_checkpoint), "--json", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text(encoding="utf-8"))
    assert (report["photographs"], report["left_out"]) == (3, 1)
    assert [row["right"] for row in report["levels"]] == expected
    assert [row["same"] for row in report["levels"]] == [[3], [3, 3], [3, 3, 3]]  # all levels see 32 pixels
    assert "1 files are not called after a class" in done.output
    (tmp_path / "none").mkdir()
    shutil.copy(folder / "unheard_3.png", tmp_path / "none")
    refused = CliRunner().invoke(app, [str(tmp_path / "none"), "--model", str(tiny_checkpoint)])
    assert refused.exit_code == 2


def test_pictures_of_no_class_are_counted_where_they_are_answered_as_sure(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, out, model = command("outside", monkeypatch), tmp_path / "out.json", tmp_path / "model"
    done = CliRunner().invoke(app, ["--model", str(tiny_checkpoint), "--keep", str(tmp_path / "kept")])
    assert done.exit_code == 0, done.output
    assert "This model has no thresholds for 90 or 95%" in " ".join(done.output.split())
    kept = list((tmp_path / "kept").iterdir())
    assert len(kept) >= 36
    sure = calibrated(tiny_checkpoint, {0.9: 0.0, 0.95: None})
    save_checkpoint(model, sure.checkpoint)
    done = CliRunner().invoke(app, ["--model", str(model), "--json", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["precisions"] == [0.9, 0.95]
    assert len(report["pictures"]) == len(kept)
    given = {tuple(step["sure"]) for row in report["pictures"] for level in row["answers"] for step in level}
    assert given == {(True, False)}  # from a score of 0 on at 90%, never at 95%


@pytest.mark.full
def test_thresholds_are_measured_at_precisions_between_those_that_are_fitted(
    tiny_checkpoint: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, out = command("precisions", monkeypatch), tmp_path / "out.json"
    done = CliRunner().invoke(app, [str(tiny_checkpoint), str(shapes / "shapes.parquet"), "--json", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text(encoding="utf-8"))
    assert {(row["level"], row["tier"]) for row in report["between"]} == {
        (level, tier) for level in range(3) for tier in range(level + 1)
    }
    assert "57.0%" in done.output


@pytest.mark.full
def test_structures_are_compared_once_and_the_tables_come_from_the_file(
    tiny_taxonomy: Taxonomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = command("structures", monkeypatch)
    tiny_taxonomy.save(tmp_path / "tiny.json")
    write_parquet(tmp_path / "shapes.parquet", tiny_taxonomy, 6)
    out, document = tmp_path / "structures.json", tmp_path / "structures.md"
    document.write_text(
        "before\n<!-- tables: begin -->\nold\n<!-- tables: end -->\nafter\n", encoding="utf-8"
    )
    arguments: list[object] = [
        *("--data", tmp_path / "shapes.parquet", "--taxonomy", tmp_path / "tiny.json", "--dev-from", 4),
        *("--epochs", 1, "--size", 16, "--batch-size", 16, "--channels", 12, "--blocks", 1),
        *("--only", "slices", "--only", "dense", "--rounds", 2),
        *("--work", tmp_path / "work", "--out", out, "--document", document),
    ]

    def compare(*more: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in (*arguments, *more)])

    done = compare()
    assert done.exit_code == 0, done.output
    results = json.loads(out.read_text(encoding="utf-8"))
    assert results["settings"]["data"] == ["shapes.parquet"]
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == ["slices", "dense"]
    macs = [level["macs"] for level in rows["slices"]["levels"]]
    assert macs[0] < macs[1] < macs[2] < rows["dense"]["levels"][0]["macs"]
    for row in rows.values():
        assert all(
            level["interval"][0] <= level["accuracy"] <= level["interval"][1] for level in row["levels"]
        )
        assert row["checkpoint_bytes"] > 0
    timed = {(time["name"], time["what"], time["batch"]) for time in results["times"]["rows"]}
    answers = [("slices", what) for what in ("level 0", "level 1", "level 2", "climb")]
    assert timed == {
        ("slices", "update", 16),
        ("dense", "update", 16),
        *((*answer, batch) for answer in (*answers, ("dense", "level 2")) for batch in (1, 32)),
    }
    compressed = results["compressed"]["rows"]
    assert [(row["name"], row["level"]) for row in compressed] == [("slices", 0), ("slices", 1)]
    assert compressed[0]["bytes_ratio"] < compressed[1]["bytes_ratio"] < 1
    text = document.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- tables: begin -->\n\n### Accuracy and cost of every level")
    assert text.endswith("<!-- tables: end -->\nafter\n")
    assert "old" not in text
    assert "slices, seed 0: done already" in compare("--no-times").output
    assert json.loads(out.read_text(encoding="utf-8")) == results
    other = compare("--epochs", 2)
    assert other.exit_code == 2
    assert "results of other settings" in " ".join(other.output.replace("│", " ").split())


@pytest.mark.full
def test_the_load_of_the_page_is_reported_with_errors_and_memory(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed")
    pytest.importorskip("plotly", reason="plotly is not installed")
    out = tmp_path / "load.json"
    arguments = ["--clients", 2, "--requests", 2, "--port", 7899, "--model", tiny_checkpoint, "--json", out]
    done = CliRunner().invoke(command("demo_load", monkeypatch), [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text(encoding="utf-8"))
    assert [(row["clients"], row["requests"], row["errors"]) for row in report["loads"]] == [
        (1, 2, 0),
        (2, 4, 0),
        (2, 2, 0),
        (20, 100, 0),
        (20, 100, 0),
    ]
    assert report["errors"] == []
    assert report["memory_mib"]["peak"] >= report["memory_mib"]["before"] > 0


def test_the_benchmark_of_senses_counts_what_is_right_marked_and_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    senses = importlib.import_module("senses")
    truth = {
        "dog": ["n02084071"],
        "crane": ["n03126707"],
        "qzx17": ["-"],
        "owl": ["n02084071"],
        "heron": ["-"],
    }
    row = senses.measure("these", [(truth, list(truth))])
    assert (row.names, row.right, row.wrong, row.wrong_unmarked) == (
        5,
        0.4,
        3,
        3,
    )  # the crane is the bird, surely
    assert row.doubtful == 0.2


def test_the_names_of_eleven_public_sets_are_read_as_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    senses = importlib.import_module("senses")
    *sets, together = senses.on_public_sets("eleven")
    assert len(sets) == 11
    assert together.right >= 0.97
    assert together.wrong_unmarked == 0
    assert senses.on_public_sets("late")[-1].right >= 0.96


def test_a_large_tree_is_proposed_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    senses = importlib.import_module("senses")
    for cost in senses.large(1500):
        assert cost.classes > 1400
        assert cost.gigabytes < 0.8


def test_looking_counts_names_read_rightly_and_alarms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, out = command("looking", monkeypatch), tmp_path / "out.json"
    looking = importlib.import_module("looking")
    monkeypatch.setattr(looking, "SAMPLES", 2)
    monkeypatch.setattr(looking, "PAIRS", 4)
    known = {"n02124075": "cat", "n07920052": "coffee", "n03877845": "temple"}
    images = {label: (ROOT / "examples" / f"{name}.jpg").read_bytes() for label, name in known.items()}
    rows = [(image, label) for label, image in images.items() for _ in range(3)]
    for file, column, labels in (
        ("dev.parquet", "wnid", [label for _, label in rows]),
        ("own.parquet", "label", [known[label] for _, label in rows]),
    ):
        pq.write_table(pa.table({"image": [image for image, _ in rows], column: labels}), tmp_path / file)
    options = [tmp_path / "dev.parquet", "--own", tmp_path / "own.parquet", "--json", out]
    done = CliRunner().invoke(app, [str(option) for option in options])
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert [row["names"] for row in report["meanings"]] == [6, 6, 6]
    assert report["meanings"][1]["right"] == 6
    own, mine, swapped, _ = report["alarms"]
    assert (own["classes"], own["alarms"], mine["classes"]) == (3, 0, 3)
    assert swapped["alarms"] >= 1


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="forks, and reads /proc")
def test_a_hundred_damaged_files_end_in_an_answer_or_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "fuzzing.py"), "--count", "100", "--json", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    found = json.loads(file.read_text())
    assert found["count"] == 100
    assert {case["kind"] for case in found["cases"]} == {
        "pictures",
        "archives",
        "tables",
        "conditions",
        "models",
    }
    assert len({case["said"] for case in found["cases"]}) > 15  # they do not all end for the same reason
    assert any(case["said"] == "read" for case in found["cases"])


@pytest.mark.full
def test_runs_that_are_killed_are_finished_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "kills.json"
    options = ["--inputs", 300, "--kills", 3, "--json", out]
    done = CliRunner().invoke(command("kills", monkeypatch), [str(option) for option in options])
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text(encoding="utf-8"))
    assert (report["kills"], report["left_behind"], report["forgotten"]) == (3, 0, [])
    assert report["runs"] >= 1
    assert 0 < report["errors"] < 50
