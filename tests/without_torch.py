"""Check an installation without extras: run by the Python of an environment that holds `pip install .` and no more.

With `--service`, FastAPI and uvicorn are there as well, and the web service of docs/examples is started and asked.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCRIPTS = Path(sys.executable).parent
MOST_MEGABYTES = 700
PATIENCE = 60


def run(*words: str, code: int = 0) -> str:
    """Run a command of the installation outside the checkout; return what it printed, or its error."""
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(
            [SCRIPTS / words[0], *words[1:]], cwd=place, capture_output=True, text=True, check=False
        )
    assert done.returncode == code, f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stderr if code else done.stdout


def check_size() -> None:
    """The whole environment stays small."""
    files = {file.lstat().st_ino: file.lstat() for file in Path(sys.prefix).rglob("*")}
    megabytes = sum(stat.st_blocks for stat in files.values()) * 512 / 2**20
    print(f"the environment takes {megabytes:.0f} MB on disk")
    assert megabytes <= MOST_MEGABYTES


def check_commands() -> None:
    """The bundled model labels, and what needs more says in one line what to install."""
    absent = ("torch", "torchvision", "timm", "huggingface_hub", "onnx", "gradio")
    assert not any(map(importlib.util.find_spec, absent))
    examples = str(ROOT / "examples")
    for command in ("label", "embed", "predict", "levels", "refine", "compress", "backbones"):
        assert "Usage" in run("hierclass", command, "--help")
    assert "1,000" in run("hierclass", "levels")
    assert "house cat" in run("hierclass", "predict", f"{examples}/cat.jpg")
    for level in ("0", "2", "auto"):
        rows = list(csv.DictReader(run("hierclass", "label", examples, "--level", level).splitlines()))
        assert len(rows) == 5, rows
        assert not any(row["error"] for row in rows), rows
    for words, extra in (
        (("hierclass", "predict", f"{examples}/cat.jpg", "--runtime", "torch"), "torch"),
        (("hierclass", "predict", f"{examples}/cat.jpg", "--timm", "resnet18"), "torch"),
        (("hierclass", "backbones", "resnet18"), "torch"),
        (("hierclass", "compress", "--level", "1", "-o", "small"), "torch"),
        (("hierclass", "label", examples, "--engine", "ray", "-o", "run/"), "ray"),
        (("hierclass-train", "fit", "--data", examples, "--out", "out", "--yes"), "train"),
        (("python", "-c", "import app; app.main()"), "demo"),
    ):
        said = run(*words, code=2)
        assert said.rstrip().endswith(f"pip install 'hierclass[{extra}]'"), said
        assert "Traceback" not in said


def check_service() -> None:
    """The web service answers from a process that uvicorn runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [SCRIPTS / "uvicorn", "service:app", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(command, cwd=ROOT / "docs" / "examples")
    try:
        photograph = (ROOT / "examples" / "cat.jpg").read_bytes()
        answer = json.loads(ask(f"http://127.0.0.1:{port}/label?level=1", photograph))
        assert answer["label"] == "house cat", answer
        print(f"the service says: {answer['label']}")
    finally:
        process.terminate()
        process.wait(PATIENCE)


def ask(address: str, body: bytes) -> bytes:
    """Send a request as soon as the service listens; return the answer."""
    for _ in range(10 * PATIENCE):
        try:
            with urllib.request.urlopen(urllib.request.Request(address, body), timeout=PATIENCE) as answer:
                found: bytes = answer.read()
                return found
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:
            time.sleep(0.1)
    raise AssertionError("the service does not listen")


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)  # what is installed is checked, not the checkout
    if "--service" in sys.argv:
        check_service()
    else:
        check_size()
        check_commands()
