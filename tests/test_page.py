"""The report of an evaluation: one page that needs nothing else, whatever the names in it hold."""

from __future__ import annotations

import base64
import dataclasses
import errno
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from training_data import write_parquet

from hierclass.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from hierclass.errors import InputError
from taxonomy import Node, Taxonomy
from training.evaluation import report_data as findings
from training.evaluation.evaluate import Evaluation, calibrate_checkpoint, measures, run_checkpoint
from training.evaluation.html_report import claim_folder, thumbnail, write_report

EVIL = "<script>alert('$\\frac{1}{0}$')</script> & \"quoted\""
"""A name as an attacker, or a careless person, writes it: markup, mathematics, quotes."""
EVIL_FILE = "\"><img src=x onerror='alert(1)'>\n\udcff.jpg"
"""The same of a file, with a new line and a byte that is no letter: a taxonomy refuses these two."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_taxonomy: Taxonomy) -> Path:
    return write_parquet(tmp_path_factory.mktemp("data") / "shapes.parquet", tiny_taxonomy, 15)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, data: Path) -> Path:
    """A calibrated model with names that are not to be trusted."""
    folder = tmp_path_factory.mktemp("report") / "model"
    checkpoint = load_checkpoint(tiny_checkpoint)
    tree = checkpoint.taxonomy.to_dict()
    for node in tree["nodes"]:
        node["name"] = {"animal": EVIL, "husky": "</svg>" + EVIL}.get(node["id"], node["name"])
    checkpoint.taxonomy = Taxonomy.from_dict({**tree, "name": EVIL})
    save_checkpoint(folder, checkpoint)
    calibrate_checkpoint(folder, [str(data)], workers=0)
    return folder


@pytest.fixture(scope="module")
def run(model: Path, data: Path) -> Evaluation:
    run = run_checkpoint(model, [str(data)], workers=0)
    names = [f"{index}{EVIL_FILE}" for index in range(len(run.images))]
    return dataclasses.replace(run, images=dataclasses.replace(run.images, names=names))


@pytest.fixture(scope="module")
def written(run: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    write_report(folder, run, measures(run), model="the/model", command="hierclass-train evaluate x")
    return folder


class Reader(HTMLParser):
    """Collects the tags, the attributes that may load something, and the text of a page."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.titles: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.loads.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)
            if name == "title":
                self.titles.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += text


@pytest.fixture(scope="module")
def page(written: Path) -> Reader:
    return Reader((written / "report.html").read_text(encoding="utf-8"))


def test_a_report_is_a_page_and_its_numbers(written: Path) -> None:
    assert sorted(file.name for file in written.iterdir()) == ["report.html", "report.json"]
    assert (written / "report.html").stat().st_size < 2**20


def test_the_page_is_whole_and_loads_nothing(page: Reader, written: Path) -> None:
    assert page.open == []
    assert page.loads
    assert [value for value in page.loads if not value.startswith(("#", "data:image/"))] == []
    text = (written / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\((?!#)|@import", text)
    assert "default-src 'none'" in text
    assert len(page.ids) == len(set(page.ids))
    assert {value for value in page.loads if value.startswith("#")} <= {f"#{name}" for name in page.ids}


def test_names_are_text_whatever_they_hold(page: Reader) -> None:
    assert "script" not in page.tags
    assert page.handlers == []
    assert "<script>alert" in page.text
    assert any("onerror='alert(1)'>\\n\\xff.jpg" in title for title in page.titles)  # shown, not made


def test_every_section_and_a_figure_of_each_kind_is_there(page: Reader) -> None:
    sections = ("accuracy", "superclasses", "hierarchy", "confusions", "calibration", "coverage", "methods")
    assert [name for name in page.ids if name in sections] == list(sections)
    assert page.tags.count("svg") == 1 + 3 + 3 + 3  # cost, confusions, reliability, coverage
    for number in range(1, 7):
        assert f"Figure {number}." in page.text
    assert "180 images" in page.text
    assert "cross-fitted" in page.text


def test_figures_take_their_colours_from_the_page_and_their_text_is_text(written: Path) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    for name in ("ink", "muted", "grid", "series0", "series1", "series2"):
        assert f"var(--{name})" in text
    assert "#0102" not in text
    assert "prefers-color-scheme: dark" in text
    assert ">right answers, %</text>" in text


def test_the_numbers_beside_the_page_are_those_of_the_evaluation(written: Path, run: Evaluation) -> None:
    numbers = json.loads((written / "report.json").read_text(encoding="utf-8"))
    results = json.loads(json.dumps(measures(run)))
    assert {name: numbers[name] for name in results} == results
    assert numbers["header"]["command"] == "hierclass-train evaluate x"
    assert numbers["header"]["images"]["listed"] == 180
    for row in numbers["confusions"]:
        assert sum(images for _, _, images in row["cells"]) == 180
        right = sum(images for truth, answer, images in row["cells"] if truth == answer)
        assert right / 180 == pytest.approx(results["levels"][row["tier"]]["top1"])
    assert sum(row["images"] for row in numbers["superclasses"]) == 180
    for level, answers in enumerate(results["answers"]):
        shares = [
            (row["images"], row["levels"][level]["superclass"]["share"]) for row in numbers["superclasses"]
        ]
        assert sum(count * share for count, share in shares) / 180 == pytest.approx(answers[0])


def test_the_same_evaluation_makes_the_same_page(run: Evaluation, written: Path, tmp_path: Path) -> None:
    write_report(tmp_path, run, measures(run), model="the/model", command="hierclass-train evaluate x")
    for name in ("report.html", "report.json"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_a_model_and_images_that_say_nothing_of_scores_have_a_page_too(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    run = run_checkpoint(tiny_checkpoint, [str(data)], dev_from=14, workers=0)
    write_report(tmp_path, run, measures(run), model="m", command="c")
    page = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "12 images are too few" in page.text
    assert page.tags.count("svg") == 4
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["curves"] is None
    assert "stored in the model" not in page.text


def test_few_images_show_what_a_calibrated_model_keeps_of_them(
    model: Path, data: Path, tmp_path: Path
) -> None:
    run = run_checkpoint(model, [str(data)], dev_from=14, workers=0)
    results = measures(run)
    write_report(tmp_path, run, results, model="m", command="c")
    text = Reader((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "The temperatures stored in the model, on 12 images" in text
    assert "The thresholds stored in the model, and what they keep of 12 images" in text
    row = next(each for each in results["stored"]["thresholds"] if each["precision"] == 0.8)
    assert f"{100 * row['measured']['coverage']:.1f}%" in text.partition("keep of 12 images")[2]


def test_a_thumbnail_is_small_and_carries_nothing_else() -> None:
    image = Image.new("RGBA", (400, 200), (200, 10, 10, 255))
    image.info["comment"] = b"secret"
    head, encoded = thumbnail(image).split(",")
    raw = base64.b64decode(encoded)
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(raw)).size == (96, 48)
    assert b"secret" not in raw


def test_worst_confusions_come_most_frequent_first_and_are_no_right_answers(tiny_taxonomy: Taxonomy) -> None:
    counts = np.diag([9] * 12)
    counts[0, 1], counts[3, 11] = 5, 7
    found = findings.worst_confusions(counts, tiny_taxonomy, 2, 10)
    short = [(row["truth_name"], row["answer_name"], row["count"], row["of"], row["common"]) for row in found]
    assert short == [("tabby", "ferry", 7, 16, "thing"), ("chihuahua", "beagle", 5, 14, "dog")]
    assert [row["height"] for row in found] == [3, 1]


def test_classes_of_one_parent_stand_side_by_side() -> None:
    names = ("root", "animal", "tool", "saw", "dog", "axe", "cat")
    tree = Taxonomy(
        name="mixed",
        nodes=[Node(name, name) for name in names],
        parents=[-1, 0, 0, 2, 1, 2, 1],
        leaves=["saw", "dog", "axe", "cat"],
        tiers=[["animal", "tool"], ["saw", "dog", "axe", "cat"]],
    )
    assert findings.tree_order(tree, 1).tolist() == [1, 3, 0, 2]
    assert findings.tree_order(tree, 0).tolist() == [0, 1]


def test_a_class_without_images_has_no_share(run: Evaluation, tiny_taxonomy: Taxonomy) -> None:
    animals = dataclasses.replace(
        run.predictions,
        labels=np.zeros(3, dtype=np.int64),
        best=run.predictions.best[:, :, :3],
    )
    rows = findings.superclasses(animals, tiny_taxonomy, 0)
    assert [row["images"] for row in rows] == [3, 0]
    assert {None} == {share for level in rows[1]["levels"] for share in level.values()}


def evaluate(*arguments: object) -> None:
    from training.cli import app

    app(["evaluate", *map(str, arguments), "--workers", "0"], standalone_mode=False)


def failure(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[Any, str]:
    with pytest.raises(SystemExit) as ended:
        evaluate(*arguments)
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    return ended.value.code, error


def test_the_command_writes_a_report_that_says_how_to_make_it_again(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    evaluate(tiny_checkpoint, "--data", data, "--dev-from", 9, "--report", out)
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out
    page = Reader((out / "report.html").read_text(encoding="utf-8"))
    command = f"hierclass-train evaluate {tiny_checkpoint} --data {data} --dev-from 9 --report report"
    assert command in page.text


def test_a_report_replaces_a_former_one_when_told_to_and_nothing_else(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "report.html").write_text("old")
    asked = (tiny_checkpoint, "--data", data, "--dev-from", 14, "--report", tmp_path)
    code, error = failure(capfd, *asked)
    assert (code, (tmp_path / "report.html").read_text()) == (2, "old")
    assert "holds report.html (written " in error
    assert "add --overwrite to replace it, or name another folder" in error
    evaluate(*asked, "--overwrite")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_report_that_cannot_be_written_is_told_before_an_image_is_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for place, message in ((file, "is no folder"), (file / "below", "cannot be written: Not a directory")):
        code, error = failure(capfd, tmp_path / "none", "--data", tmp_path, "--report", place)
        assert code == 2
        assert f"--report {place} {message}" in error
    assert file.read_text() == "mine"


def test_a_folder_that_may_not_be_written_to_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(
        "training.evaluation.html_report.tempfile.TemporaryFile", refuse
    )  # tests may run as root, who may all
    with pytest.raises(InputError, match="cannot be written: Permission denied"):
        claim_folder(tmp_path, overwrite=False)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_full_disk_or_ctrl_c_leaves_the_former_report(
    error: BaseException,
    code: int,
    message: str,
    tiny_checkpoint: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "report.html").write_text("old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("hierclass.files.os.fsync", fail)
    words = ("--data", data, "--dev-from", 14, "--report", tmp_path, "--overwrite")
    found = failure(capfd, tiny_checkpoint, *words)
    assert found[0] == code
    assert message in found[1]
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"
