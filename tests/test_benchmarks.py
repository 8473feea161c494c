"""The benchmarks run and report what they measured; how fast it was is nobody's business here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "latency.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_latency_reports_every_level_refining_and_the_dense_network(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "latency.json"
    done = run(
        "--model", tiny_checkpoint, "--rounds", 2, "--threads", 1, "--batch", 1, "--batch", 2, "--json", out
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text(encoding="utf-8"))
    names = ["level 0", "level 1", "level 2", "refine 0→1→2", "dense"]
    assert [(row["batch"], row["contender"]) for row in report["timings"]] == [
        (b, name) for b in (1, 2) for name in names
    ]
    assert all(
        row["milliseconds"] > 0 and row["low"] <= row["milliseconds"] <= row["high"]
        for row in report["timings"]
    )
    assert all(row["ratio"] == 1 for row in report["timings"] if row["contender"] == "level 2")
    macs = {row["contender"]: row["macs"] for row in report["timings"]}
    assert macs["level 0"] < macs["level 1"] < macs["level 2"] < macs["refine 0→1→2"] < macs["dense"]
    assert report["machine"]["threads"] == 1
    assert report["rounds"] == 2
    assert "Medians of 2 interleaved rounds" in " ".join(done.stdout.split())


def test_latency_of_a_missing_model_is_one_line(tmp_path: Path) -> None:
    done = run("--model", tmp_path / "none")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("there is no model at")
