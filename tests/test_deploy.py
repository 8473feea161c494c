"""The examples of docs/deploy.md: what the page shows is the file, and the web service answers."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
CAT = (ROOT / "examples" / "cat.jpg").read_bytes()

fastapi_testclient = pytest.importorskip("fastapi.testclient", reason="FastAPI is not installed")


@pytest.mark.parametrize("name", ["service.py", "Dockerfile"])
def test_the_page_shows_the_example_as_it_is(name: str) -> None:
    assert f"\n{(EXAMPLES / name).read_text(encoding='utf-8')}```\n" in PAGE


def test_the_image_is_made_of_files_of_the_repository() -> None:
    lines = (EXAMPLES / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [match[1] for line in lines if (match := re.fullmatch(r"COPY ([^-]\S*) \S+", line))]
    assert len(copied) == 2
    assert all((ROOT / name).exists() for name in copied)


def test_the_service_labels_a_photograph_and_refuses_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    client = fastapi_testclient.TestClient(importlib.import_module("service").app)
    assert client.get("/health").json() == {"levels": 3}
    whole = client.post("/label", content=CAT)
    assert whole.status_code == 200
    assert whole.json()["path"][1]["label"] == "house cat"
    assert client.post("/label?level=0", content=CAT).json()["label"] == "mammal"
    for query, data, code in (
        ("", b"", 422),
        ("", b"no picture", 422),
        ("", CAT[:2000], 422),
        ("?level=9", CAT, 422),
        ("", bytes(21 << 20), 413),
    ):
        refused = client.post(f"/label{query}", content=data)
        assert refused.status_code == code
        assert "\n" not in refused.json()["detail"]
    website = client.post("/label", content=CAT, headers={"Origin": "http://evil.example"})
    assert (website.status_code, "websites" in website.text) == (403, True)


FORKING = """
import os, pathlib, service
from fastapi.testclient import TestClient
photo = pathlib.Path("examples/cat.jpg").read_bytes()
def ask():
    print(TestClient(service.app).post("/label?level=0", content=photo).json()["label"], flush=True)
for _ in range(2):
    if os.fork() == 0:
        ask()
        os._exit(0)
    os.wait()
    ask()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_workers_that_are_forked_from_a_loaded_service_answer() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{EXAMPLES}"}
    done = subprocess.run(
        [sys.executable, "-c", FORKING],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.split() == ["mammal"] * 4, done.stderr
