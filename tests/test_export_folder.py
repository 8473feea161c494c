"""A model as a folder that runs without hierclass: its example answers as `hierclass predict` does."""

from __future__ import annotations

import ast
import errno
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hierclass
from hierclass.cli import main
from hierclass.export.deployed_folder import _is_part, check_deployed_folder
from hierclass.files import BUNDLED

EXAMPLES = sorted((BUNDLED.parents[2] / "examples").glob("*.jpg"))
PARTS = {"README.md", "example.py", "labels.json"}
NEEDED = {"numpy", "PIL", "onnxruntime"}
WITHOUT_HIERCLASS = (
    "import runpy, sys; sys.path = [each for each in sys.path if each]; sys.modules['hierclass'] = None; "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
STEP = re.compile(r"(?P<name>.+) (?P<score>[01]\.\d{3})(?P<sure> \(sure\))?")


def run_example(
    folder: Path, files: Sequence[Path], command: Sequence[str] = (sys.executable, "-I")
) -> list[list[tuple[str, float, bool]]]:
    """Run the example of a folder where hierclass can't be imported; name, score and "sure" of each step it prints."""
    done = subprocess.run(
        [*command, "-c", WITHOUT_HIERCLASS, str(folder / "example.py"), *map(str, files)],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    paths = []
    for line in done.stdout.splitlines():
        if line.startswith("  level "):
            steps = [STEP.fullmatch(step) for step in line.partition(": ")[2].split(" > ")]
            paths.append([(step["name"], float(step["score"]), bool(step["sure"])) for step in steps if step])
    return paths


def product_answers(
    classifier: hierclass.Classifier, files: Sequence[Path]
) -> list[list[tuple[str, float, bool]]]:
    """What the product answers, as the example prints it."""
    found = []
    for file in files:
        for level, prediction in enumerate(classifier.refine(file)):
            limits = classifier.thresholds(0.9)[level] if classifier.decision.thresholds else None
            found.append(
                [
                    (step.label, step.score, bool(limits and limits[tier].is_met(step.score)))
                    for tier, step in enumerate(prediction.path)
                ]
            )
    return found


def assert_equal_answers(
    found: list[list[tuple[str, float, bool]]], expected: list[list[tuple[str, float, bool]]]
) -> None:
    assert [[(name, sure) for name, _, sure in path] for path in found] == [
        [(name, sure) for name, _, sure in path] for path in expected
    ]
    for path, wanted in zip(found, expected, strict=True):
        assert np.allclose([step[1] for step in path], [step[1] for step in wanted], atol=6e-4)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The examples, one of them large and turned by its EXIF data, and a picture that lets white shine through."""
    folder = tmp_path_factory.mktemp("photographs")
    cat = Image.open(EXAMPLES[0]).resize((1800, 1200))
    exif = Image.Exif()
    exif[0x0112] = 6
    cat.save(folder / "turned.jpg", exif=exif)
    clear = cat.resize((300, 200)).convert("RGBA")
    clear.putalpha(128)
    clear.save(folder / "clear.png")
    return [*EXAMPLES, folder / "turned.jpg", folder / "clear.png"]


@pytest.mark.parametrize("int8", [False, True])
def test_the_example_answers_as_the_product_does(int8: bool, photographs: list[Path], tmp_path: Path) -> None:
    command = ["export", "-o", str(tmp_path / "new"), *(["--int8"] if int8 else [])]
    assert main(command) == 0
    ending = ".int8.onnx" if int8 else ".onnx"
    graphs = {f"level{level}{ending}" for level in range(3)}
    weights = set() if int8 else {"model.safetensors"}
    assert {file.name for file in (tmp_path / "new").iterdir()} == {
        *PARTS,
        "MODEL_CARD.md",
        *graphs,
        *weights,
    }
    expected = product_answers(hierclass.load(int8=int8), photographs)
    assert_equal_answers(run_example(tmp_path / "new", photographs), expected)


def test_levels_that_reuse_and_lower_levels_that_have_a_say(
    tiny_graphs: Path, photographs: list[Path], tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_graphs, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["decision"] = {"lower_weight": 0.5, "temperatures": [1.5, 0.5, 0.8]}
    (model / "config.json").write_text(json.dumps(config))
    assert main(["export", "--model", str(model), "-o", str(tmp_path / "new")]) == 0
    expected = product_answers(hierclass.load(model), photographs)
    assert_equal_answers(run_example(tmp_path / "new", photographs), expected)


def test_the_example_needs_three_packages() -> None:
    file = BUNDLED.parents[1] / "export" / "example.py"
    nodes = [
        node
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = {
        name
        for node in nodes
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [str(node.module)])
    }
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == NEEDED


@pytest.mark.full
def test_the_example_runs_in_an_environment_without_hierclass(tmp_path: Path) -> None:
    assert main(["export", "-o", str(tmp_path / "new")]) == 0
    venv.create(tmp_path / "venv", with_pip=False)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    for package in ("numpy", "PIL", "onnxruntime"):
        found = importlib.util.find_spec(package)
        assert found is not None
        assert found.origin is not None
        source = Path(found.origin).parent
        for each in (source, source.with_name(f"{package}.libs"), source.with_name("pillow.libs")):
            if each.exists() and not (site / each.name).exists():
                (site / each.name).symlink_to(each)
    expected = product_answers(hierclass.load(), EXAMPLES)
    assert_equal_answers(
        run_example(tmp_path / "new", EXAMPLES, [str(tmp_path / "venv" / "bin" / "python")]), expected
    )


def test_exporting_a_model_that_has_graphs_costs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from hierclass.cli import main; main(sys.argv[1:]); "
        "print(sorted({'torch', 'torchvision', 'timm'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, "export", "--int8", "-o", str(tmp_path / "new")]
    done = subprocess.run(command, cwd=BUNDLED.parents[2], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_labels_json_holds_what_the_answers_need(tiny_graphs: Path, tmp_path: Path) -> None:
    assert main(["export", "--model", str(tiny_graphs), "-o", str(tmp_path / "new")]) == 0
    labels = json.loads((tmp_path / "new" / "labels.json").read_text())
    assert (labels["format"], labels["version"], labels["reuses"]) == ("hierclass-labels", 1, True)
    assert labels["tiers"][0] == ["animal", "vehicle"]
    assert labels["tree"]["husky"] == {"name": "husky", "parent": "dog"}
    assert labels["levels"][1] == {
        "graph": "level1.onnx",
        "temperature": 1.0,
        "thresholds": {},
        "ancestors": [[0, 0, 0, 1, 1], [0, 1, 2, 3, 4]],
    }
    assert labels["preprocessing"] == {"size": 32, "shorter_side": 32, "interpolation": "bicubic"}


def test_an_exported_model_is_replaced_where_that_is_asked_for(tiny_graphs: Path, tmp_path: Path) -> None:
    command = ["export", "--model", str(tiny_graphs), "-o", str(tmp_path / "new")]
    assert main(command) == 0
    (tmp_path / "new" / "level7.int8.onnx").touch()
    assert main(command) == 2
    assert main([*command, "--overwrite"]) == 0
    assert not (tmp_path / "new" / "level7.int8.onnx").exists()


@pytest.mark.parametrize(
    ("renamed", "left"),
    [
        ([], [".level0.onnx.7.tmp"]),
        (["level0.onnx"], [".README.md.7.tmp", ".labels.json.7.tmp", ".level7.int8.onnx.7.tmp"]),
        (["level0.onnx", "README.md"], [".labels.json.0.tmp"]),
    ],
)
def test_a_folder_whose_writer_was_killed_can_be_written_again(
    renamed: list[str], left: list[str], tiny_graphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new"
    output.mkdir()
    for name in (*renamed, *left):
        (output / name).write_text("half")
    command = ["export", "--model", str(tiny_graphs), "-o", str(output)]
    assert main(command) == (2 if renamed else 0)
    assert ("add --overwrite" in capsys.readouterr().err) == bool(renamed)
    assert main([*command, "--overwrite"]) == 0
    assert json.loads((output / "labels.json").read_text())["format"] == "hierclass-labels"
    assert not list(output.glob(".*"))


def test_an_interrupt_between_two_renames_leaves_a_folder_that_is_known(
    tiny_graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["export", "--model", str(tiny_graphs), "-o", str(tmp_path / "new"), "--overwrite"]
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if target.name == "level1.onnx":
            raise KeyboardInterrupt
        replace(source, target)

    def copy_interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for _ in range(2):  # first in a new folder, then over an exported model
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", interrupted)
            assert main(command) == 130
        assert not (tmp_path / "new" / "labels.json").exists()
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "copyfile", copy_interrupted)
            assert main(command) == 130
        assert main(command) == 0
        assert not list((tmp_path / "new").glob(".*"))


def test_a_damaged_graph_is_not_copied(
    tiny_graphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(tiny_graphs, tmp_path / "model")
    graph = model / "level1.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    assert main(["export", "--model", str(model), "-o", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {graph} can't be run: ")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say where the graphs go"),
        (["-o", "{tmp}/new", "--in-place"], "say where the graphs go"),
        (["-o", "{tmp}"], "holds README.md, which is no part of an exported model"),
        (["-o", "{tmp}", "--overwrite"], "holds README.md, which is no part of an exported model"),
        (["-o", "{model}", "--overwrite"], "holds config.json, which is no part of an exported model"),
        (["-o", "{tmp}/README.md"], "is no folder"),
        (["-o", "{tmp}/new", "--model", "{tmp}/none"], "there is no model at"),
        (["-o", "{tmp}/new", "--model", "{bare}"], "has no graphs for ONNX Runtime; add them first"),
        (["-o", "{tmp}/new", "--int8", "--model", "{model}"], "has no graphs in 8 bits; add them"),
        (["-o", "{tmp}/new", "--images", "{tmp}"], "--images belongs to --int8"),
        (["-o", "{tmp}/new", "--num-images", "50"], "--num-images belongs to --int8 --images DIR"),
        (["--in-place"], "--in-place changes a model; name it with --model"),
        (["--in-place", "--overwrite", "--model", "{model}"], "belong to -o FOLDER"),
        (["-o", "{tmp}/new", "--int8", "--images", "{tmp}/none"], "0 readable images are too few"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    tiny_graphs: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "README.md").touch()
    names = {"tmp": str(tmp_path), "model": str(tiny_graphs), "bare": str(tiny_checkpoint)}
    assert main(["export", *(argument.format(**names) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].startswith("error: ")
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]


def test_a_full_disk_leaves_what_was_there(
    tiny_graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--model", str(tiny_graphs), "-o", str(tmp_path)]
    assert main(command) == 0
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))

    monkeypatch.setattr(shutil, "copyfile", fail)
    capsys.readouterr()
    assert main([*command, "--overwrite"]) == 1
    message = f"error: writing the graphs failed: {tmp_path / 'level0.onnx'}: No space left on device\n"
    assert capsys.readouterr().err == message
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_openvino_is_asked_for_where_it_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("openvino"):
        pytest.skip("OpenVINO is installed")
    assert main(["export", "--format", "openvino", "-o", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err == "error: --format openvino needs OpenVINO: pip install openvino\n"


@pytest.mark.parametrize("int8", [False, True])
def test_openvino_answers_nearly_as_onnxruntime_does(int8: bool, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    command = ["export", "--format", "openvino", "-o", str(tmp_path / "new"), *(["--int8"] if int8 else [])]
    assert main(command) == 0
    found = run_example(tmp_path / "new", EXAMPLES)
    for path, wanted in zip(found, product_answers(hierclass.load(int8=int8), EXAMPLES), strict=True):
        assert [step[0] for step in path][:1] == [step[0] for step in wanted][:1]
        assert np.allclose(
            [step[1] for step in path], [step[1] for step in wanted], atol=0.08 if int8 else 0.03
        )


def test_what_is_no_part_of_an_exported_model_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "labels.json").touch()
    check_deployed_folder(tmp_path, overwrite=True)
    assert not any(map(_is_part, ("config.json", "photo.jpg", "level.onnx", "level0.txt", "level0.int8.txt")))
    assert all(map(_is_part, ("level0.xml", "level12.int8.bin", "graphs.safetensors")))
