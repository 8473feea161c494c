"""Several processes train one network: together they do what one process would, and they end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training_data import write_parquet

from taxonomy import Taxonomy
from training.trainer.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[1]
STATE = Path("last") / "state.safetensors"
COMPILED = """
import functools, sys
import torch
torch.compile = functools.partial(torch.compile, backend="eager")  # needs no C++ compiler
from training.cli import main
sys.exit(main())
"""
"""``hierclass-train`` where compiled code is traced, split for the processes and run by torch as it is."""

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(os.name == "nt", reason="torchrun's processes on Windows have no signals"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_taxonomy: Taxonomy) -> Path:
    """120 images to train on and 59, an odd number, held out."""
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("processes")
    tiny_taxonomy.save(folder / "tiny.json")
    path = write_parquet(folder / "shapes.parquet", tiny_taxonomy, 15)
    pq.write_table(pq.read_table(path).slice(0, 179), path)
    return folder


def fit_options(data: Path, backbone: str = "test_resnet") -> list[object]:
    """Two epochs of 5 updates with all that is random in training, and a rate at which rounding does not grow."""
    return [
        *("fit", "--data", data / "shapes.parquet", "--taxonomy", data / "tiny.json", "--dev-from", 10),
        *("--backbone", backbone, "--backbone-arg", "drop_path_rate=0.2", "--size", 32, "--epochs", 2),
        *("--batch-size", 24, "--warmup-epochs", 0, "--lr", 0.002, "--ema-decay", 0.9, "--distil", 0.5),
        *("--mixup", 0.2, "--cutmix", 1, "--mix-prob", 0.8, "--erase", 0.5, "--color-jitter", 0.2),
        *("--workers", 0, "--threads", 1),
    ]


def start(*arguments: object, program: Path | None = None) -> subprocess.Popen[str]:
    """``hierclass-train`` as two processes that torchrun starts."""
    what = ["-m", "training"] if program is None else [str(program)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [sys.executable, *launcher, *what, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: object, program: Path | None = None) -> tuple[int, str, list[str]]:
    """Exit code, output and what the command itself said among what torchrun prints of errors."""
    process = start(*arguments, program=program)
    out, error = process.communicate(timeout=500)
    return process.returncode, out, said(error)


def said(error: str) -> list[str]:
    return [line for line in error.splitlines() if line.startswith("hierclass-train: ")]


def alone(*arguments: object) -> None:
    """The same in this process."""
    from training.cli import app

    threads = torch.get_num_threads()
    app([*map(str, arguments)], standalone_mode=False)
    torch.set_num_threads(threads)


def history(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def curve(out: Path) -> list[float]:
    return [row["loss"] for row in history(out)]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one process."""
    out = tmp_path_factory.mktemp("one") / "run"
    alone(*fit_options(data), "--out", out)
    return out


def test_two_processes_learn_what_one_does_and_count_every_dev_image_once(
    data: Path, one: Path, tmp_path: Path
) -> None:
    code, text, error = run(*fit_options(data), "--out", tmp_path)
    assert (code, error) == (0, [])
    assert text.count("2 / 5 / 12") == 1  # one of them speaks
    assert curve(tmp_path) == pytest.approx(curve(one), rel=1e-4)
    facts = [json.loads((out / "model" / "training.json").read_text()) for out in (tmp_path, one)]
    assert [fact["best"]["results"]["images"] for fact in facts] == [59, 59]
    for row, other in zip(history(tmp_path), history(one), strict=True):
        assert row["dev"] == pytest.approx(other["dev"], abs=1.5 / 59)


def test_two_processes_that_are_compiled_and_compute_in_parts_learn_what_one_does(
    data: Path, tmp_path: Path
) -> None:
    options = [*fit_options(data, "test_convnext"), "--epochs", 1, "--level-weights", "1,0,1"]
    # this backbone has no batch norm, which would see the parts
    alone(*options, "--out", tmp_path / "one")
    program = tmp_path / "program.py"
    program.write_text(COMPILED)
    more = ["--accumulate", 2, "--compile", "--out", tmp_path / "two"]
    code, _, error = run(*options, *more, program=program)
    assert (code, error) == (0, [])
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-4)


def test_batch_norm_of_each_process_alone_learns_nearly_the_same(
    data: Path, one: Path, tmp_path: Path
) -> None:
    code, _, error = run(*fit_options(data), "--no-sync-batch-norm", "--out", tmp_path)
    assert (code, error) == (0, [])
    assert curve(tmp_path) != pytest.approx(curve(one), rel=1e-4)
    assert curve(tmp_path) == pytest.approx(curve(one), rel=0.05)


def test_what_two_processes_left_in_the_middle_of_an_epoch_one_continues(
    data: Path, one: Path, tmp_path: Path
) -> None:
    process = start(*fit_options(data), "--save-every", 1e-6, "--out", tmp_path)
    wait_for(tmp_path / STATE, process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=200)
    assert process.returncode != 0
    command = f"torchrun --nproc-per-node 2 -m training fit --out {tmp_path} --resume --threads 1"
    assert said(error) == [f"hierclass-train: interrupted; continue with: {command}"]
    alone("fit", "--out", tmp_path, "--resume", "--workers", 0, "--threads", 1)
    assert curve(tmp_path) == pytest.approx(curve(one), rel=1e-4)


def test_a_process_that_is_killed_takes_the_others_with_it_and_the_folder_is_free_again(
    data: Path, tmp_path: Path
) -> None:
    process = start(*fit_options(data), "--epochs", 1000, "--out", tmp_path)
    wait_for(tmp_path / STATE, process)
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(max(map(int, found.stdout.split())), signal.SIGKILL)
    _, text = process.communicate(timeout=100)
    assert process.returncode != 0
    assert len(said(text)) <= 1
    with RunDir(tmp_path).claim(resume=True):
        pass


def test_what_is_wrong_for_all_is_said_once(data: Path, tmp_path: Path) -> None:
    code, _, error = run(*fit_options(data), "--accumulate", 7, "--out", tmp_path)
    assert code != 0
    assert error == ["hierclass-train: --accumulate 7: 24 images for 2 processes make no more than 6 parts"]


def test_what_stops_the_first_process_ends_all_and_is_said_once(data: Path, tmp_path: Path) -> None:
    with RunDir(tmp_path).claim(resume=False):
        code, _, error = run(*fit_options(data), "--out", tmp_path)
    assert code != 0
    assert error == [f"hierclass-train: another run writes to {tmp_path}; choose another --out"]
