"""Heads that score fine classes and sum them up to a level's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import mark_full

from hierclass.checkpoints.checkpoint import (
    Checkpoint,
    build,
    load_checkpoint,
    save_checkpoint,
)
from hierclass.checkpoints.compress import compress
from hierclass.checkpoints.description import Architecture
from hierclass.errors import BackboneError, CheckpointError
from hierclass.images.preprocessing import Preprocessing
from hierclass.nested import create_backbone, nest
from hierclass.nested.heads import SummedLinear
from taxonomy import Taxonomy

ARCHITECTURES = {
    "slices": Architecture("test_resnet", (0.25, 0.5, 1.0), heads="leaves"),
    "prefix": Architecture("test_resnet", (0.25, 0.5, 1.0), structure="prefix", heads="leaves"),
    "depths": Architecture(
        "test_resnet",
        None,
        {"layers": (2, 2, 2, 2)},
        structure="depths",
        depths=(0.5, 0.5, 1.0),
        heads="leaves",
    ),
    "masks": Architecture("test_resnet", None, structure="masks", densities=(0.1, 0.3, 0.6), heads="leaves"),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request: pytest.FixtureRequest, tiny_taxonomy: Taxonomy) -> Checkpoint:
    """A model that tests only read."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES[request.param]
    network = build(architecture, tiny_taxonomy, 32, warn=False).eval()
    return Checkpoint(tiny_taxonomy, architecture, Preprocessing(32), network=network)


def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_a_class_is_as_probable_as_its_fine_classes_together() -> None:
    head = SummedLinear(2, [0, 1, 0])
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.5, 0.2, 0.3]).log())
    torch.testing.assert_close(head(torch.ones(1, 2)).exp(), torch.tensor([[0.8, 0.2]]))
    torch.testing.assert_close(head.fine(torch.ones(1, 2)).exp(), torch.tensor([[0.5, 0.2, 0.3]]))


def test_a_class_that_is_out_of_the_question_still_has_a_finite_score() -> None:
    head = SummedLinear(1, [0, 1])
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[500.0], [-500.0]]))
    scores = head(torch.ones(1, 1))
    assert torch.isfinite(scores).all()
    assert scores.argmax() == 0


@pytest.mark.parametrize("groups", [[0, 2], [1, 1], [], [-1, 0]])
def test_groups_that_leave_a_class_out_are_refused(groups: list[int]) -> None:
    with pytest.raises(BackboneError, match="leave none out"):
        SummedLinear(2, groups)


def test_groups_must_make_the_classes_of_their_level() -> None:
    backbone = create_backbone("test_resnet")
    with pytest.raises(BackboneError, match="the groups of level 0 make 3 classes, not 2"):
        nest(backbone, num_classes=(2, 5, 12), groups=[[0, 1, 2], None, None], input_size=(3, 32, 32))
    with pytest.raises(BackboneError, match="2 of 3 levels"):
        nest(backbone, num_classes=(2, 5, 12), groups=[None, None], input_size=(3, 32, 32))


def test_lower_levels_score_leaves_and_answer_their_own_tier(checkpoint: Checkpoint) -> None:
    network, taxonomy = checkpoint.network, checkpoint.taxonomy
    assert [head.out_features for head in network.heads] == [12, 12, 12]
    for level, logits in enumerate(network.forward_all(images())):
        assert logits.shape == (3, taxonomy.num_classes[level])
        if level < 2:
            head = network.heads[level]
            assert isinstance(head, SummedLinear)
            shares = head.fine(network.features(images(), level)).softmax(1)
            for index in range(taxonomy.num_classes[level]):
                own = torch.tensor(taxonomy.projection(level) == index)
                torch.testing.assert_close(shares[:, own].sum(1), logits[:, index].exp())


def test_a_fused_network_and_an_extracted_level_answer_alike(checkpoint: Checkpoint) -> None:
    network = checkpoint.network
    for level, logits in enumerate(network.forward_all(images())):
        torch.testing.assert_close(network.fused()(images(), level), logits, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(network.extract(level)(images()), logits, rtol=1e-3, atol=1e-3)


def test_a_stored_model_sums_up_as_before(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint, dtype="float32")
    for ours, theirs in zip(
        checkpoint.network.forward_all(images()),
        load_checkpoint(tmp_path).network.forward_all(images()),
        strict=True,
    ):
        torch.testing.assert_close(theirs, ours)


@pytest.mark.parametrize("levels", mark_full([[1], [0], [1, 0]], [[1, 0]]))
def test_levels_alone_answer_as_in_the_whole(
    checkpoint: Checkpoint, levels: list[int], tmp_path: Path
) -> None:
    small = checkpoint
    for number, level in enumerate(levels):
        save_checkpoint(tmp_path / str(number), compress(small, level), dtype="float32")
        small = load_checkpoint(tmp_path / str(number))
    assert small.taxonomy.num_tiers == levels[-1] + 1
    for ours, theirs in zip(
        checkpoint.network.forward_all(images(), levels[-1]), small.network.forward_all(images()), strict=True
    ):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_groups_that_were_tampered_with_are_refused(tiny_taxonomy: Taxonomy, tmp_path: Path) -> None:
    architecture = ARCHITECTURES["slices"]
    network = build(architecture, tiny_taxonomy, 32)
    save_checkpoint(tmp_path, Checkpoint(tiny_taxonomy, architecture, Preprocessing(32), network=network))
    weights = load_file(tmp_path / "model.safetensors")
    weights["heads.0.groups"][3] = 7
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not fit its config"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"heads": "buds"}, "'buds' are not known"), ({"leaves": 1, "levels": 2}, "1 leaves can't make")],
)
def test_heads_that_can_not_be_made_are_refused(
    changes: dict[str, object], reason: str, tiny_taxonomy: Taxonomy
) -> None:
    values = {"backbone": "test_resnet", "widths": (0.25, 0.5, 1.0), "heads": "leaves", **changes}
    tree = tiny_taxonomy.truncate(1) if "levels" in changes else tiny_taxonomy
    with pytest.raises(BackboneError, match=reason):
        build(Architecture(**values), tree, 32)  # type: ignore[arg-type]
