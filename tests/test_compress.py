"""A level as a model of its own: it answers exactly as in the big one, and is smaller."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import hierclass
from hierclass.checkpoints.checkpoint import (
    Checkpoint,
    build,
    load_checkpoint,
    save_checkpoint,
    stored_dtype,
)
from hierclass.checkpoints.compress import compare, compress
from hierclass.checkpoints.description import Architecture
from hierclass.classifier import Classifier
from hierclass.cli import main
from hierclass.decisions.calibration import Decision
from hierclass.errors import LevelError
from hierclass.files import BUNDLED
from hierclass.images.preprocessing import Preprocessing
from hierclass.nested import NestedNetwork
from taxonomy import Taxonomy

SHARES = (0.25, 0.5, 1.0)
DEEP = {"layers": (2, 2, 2, 2)}
ARCHITECTURES = {
    "slices": Architecture("test_resnet", SHARES),
    "prefix": Architecture("test_resnet", SHARES, structure="prefix"),
    "masks": Architecture("test_resnet", None, structure="masks", densities=(0.1, 0.3, 0.6)),
    "masks and depths": Architecture(
        "test_resnet", None, DEEP, structure="masks", densities=(0.1, 0.3, 0.6), depths=(0.5, 0.5, 1.0)
    ),
    "depths": Architecture("test_resnet", None, DEEP, structure="depths", depths=(0.5, 0.5, 1.0)),
    "slices and depths": Architecture("test_resnet", SHARES, DEEP, depths=(0.5, 0.5, 1.0)),
}
MEASURED: dict[str, Any] = {
    "dev": {
        "images": 60,
        "levels": [
            {"top1": 0.6, "macs": 10, "share": 0.1},
            {"top1": 0.4, "macs": 40, "share": 0.4},
            {"top1": 0.2, "macs": 100, "share": 1.0},
        ],
        "answers": [[0.6], [0.65, 0.4], [0.7, 0.5, 0.2]],
        "lower_weight": 0.5,
        "consensus": [{"lower_weight": 0.5, "top1": [0.6, 0.4, 0.2]}],
        "finest": {"top1": 0.2},
        "alone": {"top1": [0.6, 0.4, 0.2]},
    },
    "note": "by hand",
}
FILES = ("config.json", "model.safetensors")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.full] * (" and " in name)) for name in sorted(ARCHITECTURES)
    ],
)
def big(
    request: pytest.FixtureRequest, tiny_taxonomy: Taxonomy, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model of three levels that answer together, with random weights and statistics."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES[request.param]
    network = build(architecture, tiny_taxonomy, 32).train()
    with torch.no_grad():
        network.forward_all(torch.randn(8, 3, 32, 32))  # so that every norm has statistics of its own
    checkpoint = Checkpoint(
        tiny_taxonomy,
        architecture,
        Preprocessing(32, crop=0.9),
        network=network.eval(),
        decision={"lower_weight": 0.5},
        results=MEASURED,
    )
    folder = tmp_path_factory.mktemp(request.param) / "big"
    save_checkpoint(folder, checkpoint, dtype="float32")
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long things take is nobody's business here."""
    monkeypatch.setattr("hierclass.checkpoints.compress.ROUNDS", 2)
    monkeypatch.setattr("hierclass.checkpoints.compress.SAMPLE_SECONDS", 0.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(4)]
    for path in paths:
        Image.fromarray(random.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(path)
    return paths


def run(model: Path, level: int, output: Path, *options: str) -> int:
    words = ["compress", "--no-graphs", "--model", str(model), "--level", str(level), "-o", str(output)]
    return main([*words, *options])


@pytest.fixture(scope="module")
def small(big: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The model that the command makes of the lowest levels of ``big``; each is made once and not to be changed."""
    folder = tmp_path_factory.mktemp("small")

    def made(level: int) -> Path:
        if not (folder / str(level)).exists():
            assert run(big, level, folder / str(level)) == 0
        return folder / str(level)

    return made


loaded = cache(load_checkpoint)
"""The models that no test changes are read once."""


def numbers(tensors: Iterable[torch.Tensor]) -> int:
    """How many weights and statistics there are."""
    return sum(value.numel() for value in tensors if value.is_floating_point())


def contents(folder: Path) -> list[bytes]:
    return [(folder / file).read_bytes() for file in FILES]


@pytest.mark.parametrize("level", [0, 1])
def test_a_small_model_answers_at_its_levels_exactly_as_the_big_one(
    level: int, big: Path, small: Callable[[int], Path], photos: list[Path]
) -> None:
    whole, alone = (Classifier(loaded(folder), device="cpu") for folder in (big, small(level)))
    assert [one.num_classes for one in alone.levels] == [2, 5, 12][: level + 1]
    for asked in range(level + 1):
        for ours, theirs in zip(
            alone.predict_batch(photos, asked), whole.predict_batch(photos, asked), strict=True
        ):
            assert ours.path == theirs.path
            assert ours.top(100) == theirs.top(100)
    refined = zip(alone.refine(photos[0]), whole.refine(photos[0]), strict=False)
    assert [ours.path for ours, _ in refined] == [
        one.path for one, _ in zip(whole.refine(photos[0]), range(level + 1), strict=False)
    ]


def test_a_small_model_is_smaller_and_costs_what_its_level_costs(
    big: Path, small: Callable[[int], Path]
) -> None:
    whole = loaded(big)
    before = [whole.network.cost(level) for level in range(3)]
    sizes = []
    for level in range(3):
        cost = loaded(small(level)).network.cost(level)
        assert (cost.parameters, cost.macs) == (before[level].parameters, before[level].macs)
        sizes.append((small(level) / FILES[1]).stat().st_size)
    assert sizes[0] < sizes[1] < sizes[2] == (big / FILES[1]).stat().st_size


def test_a_small_model_of_a_small_model_is_that_of_the_big_one(
    small: Callable[[int], Path], tmp_path: Path
) -> None:
    assert run(small(1), 0, tmp_path) == 0
    assert contents(tmp_path) == contents(small(0))
    with pytest.raises(LevelError, match="this model has levels 0 to 1"):
        compress(loaded(small(1)), 2)


def test_the_last_level_is_a_copy(big: Path, small: Callable[[int], Path]) -> None:
    assert contents(small(2)) == contents(big)


def test_what_is_known_of_the_model_is_cut_to_its_levels(tiny_checkpoint: Path) -> None:
    whole = load_checkpoint(tiny_checkpoint)
    whole.results = MEASURED
    whole.decision = {"lower_weight": 0.5}
    small = compress(whole, 1)
    assert small.results == {
        "dev": {
            "images": 60,
            "levels": [
                {"top1": 0.6, "macs": 10, "share": 0.25},
                {"top1": 0.4, "macs": 40, "share": 1.0},
            ],
            "answers": [[0.6], [0.65, 0.4]],
            "lower_weight": 0.5,
            "consensus": [{"lower_weight": 0.5, "top1": [0.6, 0.4]}],
        },
        "note": "by hand",
    }
    assert small.taxonomy.tiers == whole.taxonomy.tiers[:2]
    assert small.taxonomy.leaves == ("dog", "cat", "bird", "car", "boat")
    assert small.architecture == dataclasses.replace(whole.architecture, levels=2)
    assert (small.preprocessing, small.decision) == (whole.preprocessing, whole.decision)
    assert whole.network.num_levels == 3


def damaged(key: str, value: object) -> dict[str, Any]:
    return {"dev": {**MEASURED["dev"], key: value}}


@pytest.mark.parametrize("consensus", [[{}], [3], None, "x", {"top1": 1}, [{"top1": 0.5}]])
def test_a_damaged_consensus_is_left_out(consensus: object, tiny_checkpoint: Path) -> None:
    whole = load_checkpoint(tiny_checkpoint)
    whole.results = damaged("consensus", consensus)
    small = compress(whole, 1).results["dev"]
    assert "consensus" not in small
    assert (small["answers"], len(small["levels"])) == ([[0.6], [0.65, 0.4]], 2)


@pytest.mark.parametrize("answers", [3, None, {"a": 1}])
def test_damaged_answers_are_left_out(answers: object, tiny_checkpoint: Path) -> None:
    whole = load_checkpoint(tiny_checkpoint)
    whole.results = damaged("answers", answers)
    assert "answers" not in compress(whole, 1).results["dev"]


@pytest.mark.parametrize("macs", ["40", None, 0, [1], -3])
def test_shares_of_damaged_costs_are_left_out(macs: object, tiny_checkpoint: Path) -> None:
    whole = load_checkpoint(tiny_checkpoint)
    whole.results = damaged("levels", [{"top1": 0.5, "macs": macs, "share": 0.1}] * 3)
    assert compress(whole, 1).results["dev"]["levels"] == [{"top1": 0.5, "macs": macs}] * 2


def test_whoever_stops_the_timing_hears_that_the_model_is_written(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = SimpleNamespace(perf_counter=lambda: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr("hierclass.checkpoints.compress.time", clock)
    assert run(tiny_checkpoint, 0, tmp_path / "small") == 130
    assert capsys.readouterr().err == (
        f"error: timing was stopped; the model is written: {tmp_path / 'small'}\n"
    )
    assert load_checkpoint(tmp_path / "small").network.num_levels == 1


def test_the_table_relates_the_small_model_to_the_whole_and_to_its_level(tiny_checkpoint: Path) -> None:
    whole = load_checkpoint(tiny_checkpoint)
    found = compare(tiny_checkpoint, whole, tiny_checkpoint, compress(whole, 1))
    assert [one.name for one in found] == ["whole", "its level 1", "small"]
    costs = [whole.network.cost(level) for level in (2, 1, 1)]
    assert [(one.parameters, one.macs) for one in found] == [(cost.parameters, cost.macs) for cost in costs]
    assert all(set(one.seconds) == {1, 32} and min(one.seconds.values()) > 0 for one in found)
    copy = compare(tiny_checkpoint, whole, tiny_checkpoint, compress(whole, 2))
    assert [one.name for one in copy] == ["whole", "small"]


def test_the_command_prints_what_the_small_model_saves(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_checkpoint, 0, tmp_path / "small") == 0
    out, err = capsys.readouterr()
    assert err == f"levels 0 to 0 -> {tmp_path / 'small'}\n"
    rows = {line[:17].strip(): line[17:].split() for line in out.splitlines()[3:8]}
    assert list(rows) == ["kB on disk", "parameters", "MMACs", "ms, 1 image", "ms, 32 images"]
    assert rows["parameters"][1] == rows["parameters"][2]
    assert rows["parameters"][4] == "1.000"
    assert "Times: the network alone, medians of" in out


def test_keeping_all_levels_as_they_are_is_told_to_save_nothing(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_checkpoint, 2, tmp_path / "copy") == 0
    assert "This saves nothing: level 2 is the last level" in capsys.readouterr().err
    assert run(tiny_checkpoint, 2, tmp_path / "half", "--dtype", "float16") == 0
    assert "saves nothing" not in capsys.readouterr().err


def test_the_other_commands_work_on_a_small_model(
    tiny_checkpoint: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_checkpoint, 1, tmp_path / "small") == 0
    for name, model, options in (
        ("big.csv", tiny_checkpoint, ["--level", "1"]),
        ("small.csv", tmp_path / "small", []),
    ):
        images = [str(path) for path in photos]
        assert main(["label", *images, "-o", str(tmp_path / name), "--model", str(model), *options]) == 0
    assert (tmp_path / "small.csv").read_text() == (tmp_path / "big.csv").read_text()
    capsys.readouterr()
    assert main(["predict", str(photos[0]), "--model", str(tmp_path / "small")]) == 0
    assert capsys.readouterr().out.count("tier") == 2
    assert main(["levels", "--model", str(tmp_path / "small")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()[:1].isdigit()]
    assert [(row[0], row[2], row[-1]) for row in rows] == [("0", "2", "50.0%"), ("1", "5", "25.0%")]


def test_weights_are_stored_as_they_were_or_as_asked(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert run(tiny_checkpoint, 0, tmp_path / "same") == 0
    assert run(tiny_checkpoint, 0, tmp_path / "half", "--dtype", "float16") == 0
    assert run(tmp_path / "half", 0, tmp_path / "half-again") == 0
    found = [stored_dtype(tmp_path / name) for name in ("same", "half", "half-again")]
    assert found == ["float32", "float16", "float16"]
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "half" / FILES[1]).values()}
    assert kinds == {torch.float16}


def test_the_bundled_model_can_be_compressed(tmp_path: Path) -> None:
    whole = load_checkpoint(BUNDLED)
    save_checkpoint(tmp_path, compress(whole, 1))
    small = load_checkpoint(tmp_path)
    assert small.results["dev"]["levels"][1]["top1"] == whole.results["dev"]["levels"][1]["top1"]
    assert Decision.from_dict(small.decision, 2).precisions
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for level in range(2):
            assert torch.equal(small.network(images, level), whole.network(images, level))


@pytest.mark.parametrize("level", [0, 1])
def test_what_the_small_model_has_no_use_for_is_not_in_its_file(
    level: int, small: Callable[[int], Path]
) -> None:
    stored = load_file(small(level) / FILES[1])
    network: NestedNetwork = loaded(small(level)).network
    assert set(stored) == set(network.stored())
    if level == 0:  # no weight is in the file that the level does not use
        used = [value for _, value, _ in network.level_tensors(0)] + list(network.heads.parameters())
        assert numbers(stored.values()) == numbers(used)
    config = json.loads((small(level) / FILES[0]).read_text())
    assert len(config["taxonomy"]["nodes"]) == (3, 8)[level]
    assert config["architecture"]["levels"] == level + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--level", "0"], "Missing option '--output'"),
        (["-o", "{tmp}/new"], "Missing option '--level'"),
        (["--level", "-1", "-o", "{tmp}/new"], "Invalid value for '--level'"),
        (["--level", "3", "-o", "{tmp}/new"], "level 3 does not exist; this model has levels 0 to 2"),
        (["--level", "0", "-o", "{tmp}/new", "--dtype", "int8"], "Invalid value for '--dtype'"),
        (["--level", "0", "-o", "{tmp}/new", "--model", "{tmp}/none"], "there is no model at"),
        (["--level", "0", "-o", "{tmp}/file"], "is no folder; name a new or empty one"),
        (["--level", "0", "-o", "{tmp}"], "holds file, which is no part of a model"),
        (
            ["--level", "0", "-o", "{model}", "--model", "{other}"],
            "holds a model; add --overwrite to replace",
        ),
        (["--level", "0", "-o", "{model}", "--overwrite"], "is the model itself; name another folder"),
        (
            ["--level", "0", "-o", "{other}", "--overwrite"],
            "holds MODEL_CARD.md, which is no part of a model",
        ),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    other = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(tiny_checkpoint, other)
    (other / "MODEL_CARD.md").touch()
    values = {"tmp": str(tmp_path), "model": str(tiny_checkpoint), "other": str(other)}
    given = [argument.format(**values) for argument in arguments]
    if "--model" not in given:
        given += ["--model", str(tiny_checkpoint)]
    before = contents(tiny_checkpoint), contents(other)
    assert main(["compress", *given]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err[:7]) == ("", 1, "error: ")
    assert message in err
    assert not (tmp_path / "new").exists()
    assert (contents(tiny_checkpoint), contents(other)) == before


def test_a_model_is_replaced_where_that_is_asked_for(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert run(tiny_checkpoint, 0, tmp_path, "--graphs") == 0
    assert run(tiny_checkpoint, 1, tmp_path) == 2
    assert hierclass.load(tmp_path, "cpu").runtime.name == "onnx"
    assert load_checkpoint(tmp_path).network.num_levels == 1
    assert run(tiny_checkpoint, 1, tmp_path, "--overwrite") == 0
    assert load_checkpoint(tmp_path).network.num_levels == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == list(FILES)  # no graph of the former model


def test_what_a_killed_command_left_is_no_hindrance(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for file in (*FILES, "level0.onnx"):
        (tmp_path / f".{file}.4194305.tmp").write_bytes(b"half")
    assert run(tiny_checkpoint, 0, tmp_path) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == list(FILES)


def test_a_folder_that_cannot_be_written_is_one_line_and_exit_code_1(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run(tiny_checkpoint, 0, tmp_path / "file" / "new") == 1
    assert capsys.readouterr().err == "error: writing the model failed: Not a directory\n"
