"""Which timm models nest: one is tried without memory for its weights; the shipped table and page say it of all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm

from hierclass.cli import main
from hierclass.errors import BackboneError
from hierclass.nested import STRUCTURES, create_backbone, nest
from hierclass.timm_models.backbone_probe import family_of, image_size, probe_backbone, prove_model
from hierclass.timm_models.backbone_table import (
    BackboneFamily,
    BackboneTable,
    models_to_try,
    read_backbones,
    shipped_backbones,
    to_markdown,
)

ROOT = Path(__file__).parent.parent
SMALL = BackboneTable(
    "1.0",
    (
        BackboneFamily("oak", ("oak_s", "oak_l"), {}, {"slices": "oak_s"}, {"prefix": "oak_s: no | here"}),
        BackboneFamily(
            "elm", (), {"elm_s": "elm (Elm) has_no rule", "elm_l": "elm (Elm) has_no rule"}, {}, {}
        ),
    ),
)


def test_a_model_is_cut_without_its_weights_and_costs_what_the_network_costs() -> None:
    finding = probe_backbone("test_resnet")
    assert (finding.nests, finding.reason, finding.family) == (True, "", "resnet")
    backbone = create_backbone("test_resnet")
    network = nest(backbone, num_classes=[2, 2, 2], input_size=image_size(backbone))
    heads = [0]
    for level in range(3):
        heads.append(heads[-1] + 2 * (network.num_features[level] + 1))
        cost = network.cost(level)
        assert finding.parameters[level] == cost.parameters - heads[-1]
        assert finding.macs[level] >= cost.macs


def test_a_model_that_cannot_be_cut_is_told_by_path_and_type() -> None:
    finding = probe_backbone("sequencer2d_s")
    assert not finding.nests
    assert not finding.unexpected
    assert finding.reason.startswith("stages.0.blocks.0.rnn_tokens.rnn_v (LSTM) can't be cut into levels: ")
    assert finding.parameters == ()


def test_a_refusal_says_what_to_do_instead() -> None:
    with pytest.raises(BackboneError, match=r"; structure masks needs no cutting$"):
        nest(create_backbone("sequencer2d_s"), num_classes=[2, 2, 2], input_size=(3, 224, 224))


def test_a_model_whose_level_0_is_hardly_cheaper_does_not_count() -> None:
    finding = probe_backbone("test_resnet", widths=(1.0, 1.0, 1.0), count=False)
    assert not finding.nests
    assert "of the weights, so it is hardly cheaper" in finding.reason
    assert finding.macs == ()


class OddWidths(tuple[float, ...]):
    """Numbers that can't be read."""

    def __iter__(self) -> Iterator[float]:
        raise KeyError("surprise\nand more")


def test_what_is_not_foreseen_is_noted_as_a_fault_of_ours() -> None:
    finding = probe_backbone("test_resnet", widths=OddWidths((0.25, 0.5, 1.0)))
    assert finding.unexpected
    assert finding.reason == "KeyError: 'surprise\\nand more'"


def test_a_name_that_timm_does_not_know_is_refused() -> None:
    with pytest.raises(BackboneError, match="timm has no model called 'resnet1'"):
        probe_backbone("resnet1")


def test_a_model_with_weights_proves_itself_or_says_why_not() -> None:
    assert prove_model("test_resnet", "slices") == ""
    assert prove_model("test_resnet", "masks") == ""
    assert "structure 'layers' is not known" in prove_model("test_resnet", "layers")


def test_a_table_is_what_was_written() -> None:
    again = read_backbones(SMALL.to_json())
    assert again == SMALL
    assert (again.num_models, again.num_nesting) == (4, 2)
    assert again.summary().startswith("2 of 4 models, in 1 of 2 families, can be cut into slices")
    assert [family.name for family in again.matching("*_s").families] == ["oak", "elm"]
    assert list(again.matching("oak").names) == ["oak_s", "oak_l"]
    assert list(again.matching("*m_l").names) == ["elm_l"]
    assert again.matching("ash").families == ()
    found = again.family("elm_l")
    assert found is not None
    assert found.reason == "elm (Elm) has_no rule"


def test_the_page_lists_families_and_groups_refusals() -> None:
    page = to_markdown(SMALL)
    assert "| oak | 2 | 2 | slices | oak_s |" in page
    assert "| elm | 2 | 0 | – | – |" in page
    assert "- **elm**: `elm_s`, `elm_l`: elm (Elm) has\\_no rule\n" in page
    assert "- **oak**, structure prefix: oak\\_s: no \\| here\n" in page


def test_the_shipped_table_covers_every_model_of_the_timm_that_it_was_made_with() -> None:
    table = shipped_backbones()
    if table.timm != timm.__version__:
        new = sorted(set(timm.list_models()) - set(table.names))
        pytest.skip(f"the table was made with timm {table.timm}; new here: {new}")
    assert sorted(table.names) == sorted(timm.list_models())
    for family in table.families:
        assert {family_of(name) for name in family.names} == {family.name}


def test_at_least_seven_of_ten_models_nest_and_what_is_proven_is_named() -> None:
    table = shipped_backbones()
    assert table.num_nesting / table.num_models >= 0.7
    for family in table.families:
        assert set(family.proven) | set(family.failed) <= set(STRUCTURES)
        assert "\n" not in "".join(family.refused.values())
        assert set(family.proven.values()) <= set(family.nests)
        if family.nests:
            assert {"slices", "prefix"} <= set(family.proven)
            assert {"depths", "masks"} <= set(family.proven) | set(family.failed)


def test_the_page_in_docs_is_made_from_the_shipped_table() -> None:
    page = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    assert page == to_markdown(shipped_backbones())


def test_looking_up_needs_no_torch() -> None:
    code = (
        "import sys; from hierclass.cli import main; main(['backbones', 'resn*']); "
        "sys.exit(bool({'torch', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resnet" in done.stdout


def test_only_an_exact_name_or_the_option_tries_models() -> None:
    assert models_to_try(None) == []
    assert models_to_try("resnet") == []
    assert models_to_try("*resnet*") == []
    assert models_to_try("resnet18") == ["resnet18"]
    assert models_to_try("resnet1?", force=True) == ["resnet18"]
    with pytest.raises(BackboneError, match="no model or family of timm matches 'oak'"):
        models_to_try("oak")


def test_the_command_shows_families_and_totals(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "mobilenetv*"]) == 0
    out = capsys.readouterr().out
    assert "mobilenetv3" in out
    assert "models, in" in out


def test_the_command_tries_one_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "test_resnet"]) == 0
    out = capsys.readouterr().out
    assert "test_resnet can be cut into slices" in out
    assert "100.0%" in out
    assert main(["backbones", "sequencer2d_s"]) == 0
    assert "can't be cut into slices: stages.0" in " ".join(capsys.readouterr().out.split())
    assert main(["backbones", "oak"]) == 2


@pytest.mark.full
def test_a_survey_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    results = tmp_path / "found.jsonl"
    row = {"name": "test_resnet", "structure": "", "reason": "it ended the process that tried it"}
    results.write_text(json.dumps(row) + "\n", encoding="utf-8")
    script = [sys.executable, str(ROOT / "benchmarks" / "backbones.py"), "test_*resnet", "--no-proofs"]
    for more in ([], ["--retry"]):
        command = [*script, "--results", str(results), "--memory", "64", *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
        assert len(rows) == (3 if more else 1)
    assert rows[-1]["reason"] == ""
