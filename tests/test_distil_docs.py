"""The commands of docs/distil.md work: for tiny networks in place of large ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import safetensors.torch
from distil_data import write_photographs
from timm_models import make_model

from hierclass.cli import main as hierclass_main
from training.cli import main as train_main

DOC = (Path(__file__).parent.parent / "docs" / "distil.md").read_text(encoding="utf-8")
TINY = {
    "resnet50.a1_in1k": "test_resnet",
    "convnext_tiny.fb_in1k": "test_convnext",
    "96,160,224": "32,48,64",
}
QUICK = "--crops 32 --crops-per-photo 1 --batch-size 16 --eval-every 32 --warmup 1 --workers 0"


def commands(heading: str) -> list[str]:
    """The commands under a heading of the page, each on one line."""
    section = DOC.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [" ".join(line.split()) for line in block[1].replace("\\\n", " ").splitlines()]


@pytest.mark.full
@pytest.mark.parametrize(
    ("heading", "name"),
    [("A ResNet-50", "test_resnet"), pytest.param("A ConvNeXt", "test_convnext", marks=pytest.mark.full)],
)
def test_the_commands_of_the_page_work(
    heading: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photographs(tmp_path / "photos", 24, size=72)
    weights = {key: value.contiguous() for key, value in make_model(name).state_dict().items()}
    file = "resnet50.safetensors" if name == "test_resnet" else "convnext.safetensors"
    safetensors.torch.save_file(weights, tmp_path / file)
    for line in commands(heading):
        for large, tiny in TINY.items():
            line = line.replace(large, tiny)
        program, *words = line.split()
        if program == "hierclass-train":
            assert train_main([*words, *QUICK.split()]) == 0
        else:
            assert program == "hierclass"
            assert hierclass_main(words) == 0
    rows = (tmp_path / "kinds.csv").read_text().splitlines()
    assert len(rows) == 25


def test_every_option_of_the_command_is_on_the_page() -> None:
    from typer.main import get_command

    from training.cli import app

    command = get_command(app).commands["distil"]  # type: ignore[attr-defined]
    options = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    known = set(re.findall(r"--[a-z0-9-]+", DOC))
    boring = {"--help", "--structure"}
    either = {"--frozen", "--flip", "--train-heads", "--no-channels-last", "--no-sync-batch-norm"}
    assert options - known - boring - either == set()
