"""``distil`` as real processes: two that train one level together, two runs side by side, one that is told to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from distil_data import BACKBONE, STATE, write_photographs, write_teacher

import hierclass
from taxonomy import Taxonomy

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(os.name == "nt", reason="torchrun's processes on Windows have no signals"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_taxonomy: Taxonomy) -> Path:
    folder = tmp_path_factory.mktemp("distil")
    write_teacher(folder, tiny_taxonomy)
    write_photographs(folder / "photos", 70)
    (folder / "photos" / "broken.jpg").write_bytes(b"no picture")
    return folder


def options(folder: Path, out: Path) -> list[object]:
    return [
        *(
            "distil",
            "--no-graphs",
            "--timm",
            BACKBONE,
            "--weights",
            folder / "weights.safetensors",
            "--out",
            out,
        ),
        *(
            "--classes",
            folder / "classes.txt",
            "--taxonomy",
            folder / "tree.json",
            "--images",
            folder / "photos",
        ),
        *("--widths", "0.5,0.75,1", "--sizes", "16,24,32", "--crops-per-photo", 2, "--crops", 64),
        *(
            "--batch-size",
            16,
            "--eval-every",
            32,
            "--warmup",
            2,
            "--mixup",
            0.4,
            "--workers",
            0,
            "--threads",
            1,
        ),
    ]


def start(*arguments: object, processes: int = 1) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*(launcher if processes > 1 else []), "-m", "training"]
    return subprocess.Popen(
        [sys.executable, *command, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def history(out: Path, level: int = 0) -> list[dict[str, float]]:
    lines = (out / f"level-{level}" / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_two_processes_learn_what_one_does_and_one_of_them_speaks(folder: Path, tmp_path: Path) -> None:
    from training.cli import app

    process = start(*options(folder, tmp_path / "two"), "--level", 0, processes=2)
    app([*map(str, options(folder, tmp_path / "one")), "--level", "0"], standalone_mode=False)
    out, error = process.communicate(timeout=500)
    assert process.returncode == 0, error
    assert out.count("cannot be read and are left out") == 1
    one, two = (history(tmp_path / name) for name in ("one", "two"))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-3)
    for name in ("answers.f16", "pixels-16.u8"):
        files = [(tmp_path / run / "crops" / name).read_bytes() for run in ("one", "two")]
        assert files[0] == files[1]


def test_levels_are_trained_side_by_side_by_two_runs_into_one_model(folder: Path, tmp_path: Path) -> None:
    runs = [start(*options(folder, tmp_path), "--level", level) for level in (0, 1)]
    for run in runs:
        _, error = run.communicate(timeout=500)
        assert (run.returncode, error) == (0, "")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    rows = config["results"]["distillation"]["levels"]
    assert [(row["level"], row["crops_trained"]) for row in rows] == [(0, 64), (1, 64)]
    photo = folder / "photos" / "000.jpg"
    assert len(hierclass.load(tmp_path / "model", device="cpu").predict(photo).path) == 3


def test_sigterm_says_how_to_go_on(folder: Path, tmp_path: Path) -> None:
    process = start(*options(folder, tmp_path), "--level", 0, "--crops", 1_000_000, "--save-every", 1e-6)
    deadline = time.monotonic() + 300
    while not (tmp_path / "level-0" / STATE).exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == (
        f"hierclass-train: interrupted; continue with: hierclass-train distil --out {tmp_path} --resume --level 0 "
        "--no-graphs --threads 1\n"
    )
