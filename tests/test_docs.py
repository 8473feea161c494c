"""The front of the house holds: links lead somewhere, versions agree, what is shown in Python runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hierclass

ROOT = Path(__file__).parent.parent
FRONT = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures that lie in the repository."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The anchors that a code host gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", FRONT, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings_of_the_repository(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_the_readme_fits_on_two_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_citation_names_the_version() -> None:
    assert f"\nversion: {hierclass.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.full
def test_the_commands_about_trees_print_what_their_page_shows(tmp_path: Path) -> None:
    lines = (ROOT / "docs" / "taxonomy.md").read_text(encoding="utf-8").splitlines()
    shown = [line.removeprefix("    ") for line in lines if line.startswith("    ")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    for start in (number for number, line in enumerate(shown) if line.startswith("$ ")):
        rest = [line.startswith(("$ ", "python -m")) for line in shown[start + 1 :]]
        expected = shown[start + 1 :][: rest.index(True) if True in rest else None]
        command = shown[start].removeprefix("$ ").replace("python -m", f"'{sys.executable}' -m")
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        printed = [line.rstrip() for line in (done.stdout + done.stderr).splitlines()]
        assert printed == expected, command


@pytest.mark.full
@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_the_python_of_a_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for copy in ("photo.jpg", "a.jpg", "b.jpg", "holiday/cat.jpg"):
        (tmp_path / copy).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "examples" / "cat.jpg", tmp_path / copy)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    shown: dict[str, object] = {}
    for block in blocks:
        exec(block, shown)
    assert isinstance(shown["classifier"], hierclass.Classifier)
