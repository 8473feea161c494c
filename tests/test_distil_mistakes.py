"""What a person does wrong with ``hierclass-train distil`` is one line that says what to do."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
from distil_data import BACKBONE, write_photographs, write_teacher

from hierclass.files import CONFIG_FILE
from taxonomy import Taxonomy
from training.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_taxonomy: Taxonomy) -> Path:
    folder = tmp_path_factory.mktemp("distil")
    write_teacher(folder, tiny_taxonomy)
    write_photographs(folder / "photos", 12)
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    for number in range(3):
        (folder / "broken" / f"{number}.jpg").write_bytes(b"no picture")
    (folder / "other.csv").write_text("kind,leaf\nanimal,zebra\nanimal,dodo\nthing,cup\n")
    (folder / "short.txt").write_text("husky\nbeagle\n")
    (folder / "same.txt").write_text("husky\nhusky\n")
    safetensors.torch.save_file(timm.create_model("test_vit").state_dict(), folder / "vit.safetensors")
    return folder


OPTIONS: dict[str, Any] = {
    "--timm": BACKBONE,
    "--weights": "weights.safetensors",
    "--classes": "classes.txt",
    "--taxonomy": "tree.json",
    "--images": "photos",
    "--widths": "0.5,0.75,1",
    "--sizes": "16,24,32",
    "--workers": 0,
}


def said(folder: Path, out: Path, capsys: pytest.CaptureFixture[str], **changes: Any) -> tuple[int, str]:
    """Exit code and the line on standard error of a command with other options; None leaves one out."""
    wanted = {**OPTIONS, **{f"--{name.replace('_', '-')}": value for name, value in changes.items()}}
    words = ["distil", "--no-graphs", "--out", str(out)]
    for option, value in wanted.items():
        if value is True:
            words.append(option)
        elif value is not None:
            in_folder = option in ("--weights", "--classes", "--taxonomy", "--images", "--teacher", "--start")
            words += [option, str(folder / value) if in_folder and value != "imagenet-1k" else str(value)]
    with pytest.raises(SystemExit) as ended:
        main(words)
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    return int(str(ended.value.code)), message.removeprefix("hierclass-train: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "give the photographs with --images"),
        ({"images": "nowhere"}, "nowhere does not exist"),
        (
            {"images": "empty"},
            "no images in the folder .*empty; give folders of photographs, or Parquet files",
        ),
        ({"images": "broken"}, "none of the photographs can be read"),
        ({"timm": None}, "give the teacher: --timm NAME with --weights FILE, or --teacher MODEL"),
        ({"timm": "test_resnext"}, "timm has no model called 'test_resnext', but test_resnet"),
        ({"weights": "nowhere.pth"}, "there is no file of weights at .*nowhere.pth"),
        ({"weights": "vit.safetensors"}, "vit.safetensors.*is it another model's"),
        ({"weights": None}, "timm publishes no weights|are not in the local cache"),
        ({"teacher": "nowhere", "timm": None, "weights": None, "classes": None}, "there is no model at"),
        ({"teacher": "nowhere", "timm": None, "weights": None}, "--classes has no effect with --teacher"),
        ({"classes": "nowhere.txt"}, "--classes .*nowhere.txt can't be read: No such file"),
        ({"classes": "same.txt"}, "give a line per output of the classifier, each another name"),
        ({"classes": "short.txt"}, "leaves of taxonomy .* are no classes of test_resnet"),
        ({"classes": None, "taxonomy": None}, "can't load .*weights.safetensors into test_resnet"),
        (
            {"taxonomy": "other.csv"},
            "3 leaves of taxonomy 'other' are no classes of test_resnet, the first is",
        ),
        ({"taxonomy": "nowhere.csv"}, "nowhere.csv"),
        ({"widths": "0.5,1"}, "--widths: give one per level, 3 for 3 tiers, not 2"),
        ({"widths": "0.75,0.5,1"}, "--widths 0.75,0.5,1: give rising shares up to 1"),
        ({"widths": "a,b"}, "--widths a,b: give numbers separated by commas"),
        ({"sizes": "16,32"}, "--sizes: give one per level, 3 for 3 tiers, not 2"),
        ({"sizes": "32,24,16"}, "--sizes 32,24,16: give 8 to 4096 pixels, never falling"),
        ({"sizes": "16.5,24,32"}, "give whole numbers of pixels"),
        ({"widths": "1,1,1", "sizes": "16,16,32"}, "two levels are alike"),
        ({"own": "filters"}, "own 'filters' is not known; give norms"),
        ({"structure": "slices"}, "--structure slices: distil makes structure prefix alone"),
        ({"level": 2}, "--level 2: give 0 to 1; level 2 is the teacher itself"),
        ({"level": 3}, "--level 3: give 0 to 1$"),
        ({"crops": 10, "updates": 2}, "--updates has no effect beside --crops"),
        ({"mix_prob": 0.5}, "--mix-prob 0.5 has no effect without --mixup"),
        ({"crops_per_photo": 0}, "Invalid value for '--crops-per-photo'"),
        ({"crop_scale": "0.5"}, "--crop-scale: give two shares, such as 0.25,1"),
        ({"lr": 0}, "--lr 0.0: give more than 0"),
        ({"batch_size": 1}, "Invalid value for '--batch-size'"),
        ({"opt": "adamx", "crops": 24}, "--opt adamx is no optimiser of timm; give"),
        ({"known_top1": 75}, "--known-top1 75: give more than 0, less than 1"),
        ({"known_top1": 0.75}, "--known-top1 has no effect without --eval-data; give that, or leave it out"),
        ({"decay": 2}, "--decay 2.0: give a share from 0 to 1"),
        ({"leaf_weight": 0, "tier_weight": 0}, "give 0 or more, and not 0 to both"),
        ({"resume": True, "images": None}, "holds no run to resume"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    changes: dict[str, Any],
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    code, line = said(folder, tmp_path / "out", capsys, **changes)
    assert re.search(message, line), line
    assert code == 2


def test_a_classifier_that_is_more_than_one_layer_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "deit_tiny_distilled_patch16_224"
    model = timm.create_model(name, num_classes=12)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "deit.safetensors")
    shutil.copy(tmp_path / "deit.safetensors", folder / "deit.safetensors")
    _, line = said(folder, tmp_path, capsys, timm=name, weights="deit.safetensors", sizes=None)
    assert "is more than one linear layer, which can't be nested; take another model" in line


def test_a_disk_without_room_is_said_before_anything_is_made(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("training.distillation.crop_store.shutil.disk_usage", lambda _: usage(0, 0, 1000))
    code, line = said(folder, tmp_path / "out", capsys)
    assert code == 2
    assert "the crops need 0.0 GB in" in line
    assert "are free; give fewer --crops-per-photo, or another --cache" in line


def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on_with_room(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().suffix in (".u8", ".f16", ".u16"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)  # the disk fills up with crops
    code, line = said(folder, tmp_path / "out", capsys)
    assert code == 1
    assert "No space left on device; make room and continue with: hierclass-train distil --out" in line
    assert (tmp_path / "out" / "start" / CONFIG_FILE).exists()


def test_the_folder_of_another_command_is_left_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "state.safetensors").write_bytes(b"")
    (tmp_path / "recipe.json").write_text('{"data": [], "taxonomy": "x"}')
    _, line = said(folder, tmp_path, capsys)
    assert "holds a run of another command; choose another --out" in line


def test_fit_leaves_the_folder_of_a_distillation_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / CONFIG_FILE).write_text("{}")
    with pytest.raises(SystemExit):
        main(["fit", "--data", str(folder / "photos"), "--out", str(tmp_path), "--yes"])
    assert "holds a run of hierclass-train distil; choose another --out" in capsys.readouterr().err
