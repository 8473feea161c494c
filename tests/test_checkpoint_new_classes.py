"""A model's network under another tree: the same levels, other heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from hierclass.checkpoints.checkpoint import Checkpoint, build, load_checkpoint, save_checkpoint
from hierclass.checkpoints.compress import compress
from hierclass.checkpoints.description import Architecture
from hierclass.checkpoints.new_classes import choose_levels, with_new_classes
from hierclass.errors import BackboneError
from hierclass.images.preprocessing import Preprocessing
from taxonomy import Taxonomy
from taxonomy.proposal import from_folder_paths

SIZE = 32


def tree(num_tiers: int) -> Taxonomy:
    """Eight leaves under up to two coarser tiers; more tiers repeat the leaves one deeper each."""
    ways = []
    for leaf in range(8):
        above = [f"a{leaf // 4}", f"b{leaf // 2}"][: num_tiers - 1]
        more = [f"c{leaf // 2 if leaf > 3 else leaf}"] * (num_tiers > 3)
        ways.append((*above, *more, f"d{leaf}"))
    return from_folder_paths(ways, name="own")


def model(**architecture: Any) -> Checkpoint:
    torch.manual_seed(0)
    given = {"backbone": "test_efficientnet", "widths": (0.5, 1.0, 1.0), "heads": "leaves", **architecture}
    made = Architecture(**given)
    network = build(made, tree(3), SIZE, warn=False)
    for value in network.parameters():
        torch.nn.init.normal_(value, std=0.1)
    mean = (0.5, 0.5, 0.5)
    return Checkpoint(tree(3), made, Preprocessing(size=SIZE, mean=mean, std=mean), network=network.eval())


NESTED = {"structure": "prefix", "sizes": (16, 24, 32), "own": ("norms+depthwise+rank4", "everything")}


@pytest.mark.parametrize(
    ("num_tiers", "levels"), [(1, [2]), (2, [0, 2]), (2, [1, 2]), (3, [0, 1, 2]), (4, [0, 1, 2, 2])]
)
@pytest.mark.parametrize("heads", ["leaves", "tiers"])
def test_every_tier_gets_the_features_of_the_level_that_was_chosen(
    num_tiers: int, levels: Sequence[int], heads: str, tmp_path: Path
) -> None:
    old = model(**NESTED)
    new = with_new_classes(old, tree(num_tiers), levels, heads=heads)
    save_checkpoint(tmp_path, new, dtype="float32")
    stored = load_checkpoint(tmp_path).network
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        for level, source in enumerate(levels):
            assert torch.equal(stored.features(images, level), old.network.features(images, source))
            assert stored(images, level).shape == (2, new.taxonomy.num_classes[level])


@pytest.mark.parametrize(
    "architecture",
    [
        {"structure": "slices", "widths": (0.25, 0.5, 1.0)},
        {
            "structure": "depths",
            "backbone": "test_resnet",
            "backbone_args": {"layers": (2, 2, 2, 2)},
            "widths": None,
            "depths": (0.5, 0.5, 1.0),
        },
        {"structure": "masks", "widths": None, "densities": (0.25, 0.5, 1.0)},
    ],
)
def test_any_structure_keeps_its_levels(architecture: dict[str, Any]) -> None:
    old = model(**architecture)
    new = with_new_classes(old, tree(3), [0, 1, 2])
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        for level in range(3):
            assert torch.equal(new.network.features(images, level), old.network.features(images, level))


def test_levels_that_compressing_left_out_stay_left_out() -> None:
    small = compress(model(**NESTED), 1)
    new = with_new_classes(small, tree(2), [0, 1])
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        for level in range(2):
            assert torch.equal(new.network.features(images, level), small.network.features(images, level))
    assert new.network.num_classes == new.taxonomy.num_classes


def test_scores_of_leaves_are_summed_up_as_the_new_tree_says() -> None:
    new = with_new_classes(model(**NESTED), tree(2), [0, 2])
    with torch.no_grad():
        new.network.heads[0].bias[:4] = 1.0  # the leaves of a0
        shares = new.network(torch.randn(1, 3, SIZE, SIZE), 0).exp()[0]
    assert shares.tolist() == pytest.approx([0.7311, 0.2689], abs=1e-4)


@pytest.mark.parametrize(
    ("architecture", "num_tiers", "levels", "message"),
    [
        (NESTED, 2, [2, 0], "levels .2, 0. do not answer 2 tiers: give a level per tier, rising, the last 2"),
        (NESTED, 2, [0, 1], "the last 2, which alone may be repeated"),
        (NESTED, 3, [0, 2], "do not answer 3 tiers"),
        (NESTED, 3, [0, 0, 2], "which alone may be repeated"),
        ({"structure": "slices", "widths": (0.25, 0.5, 1.0)}, 2, [0, 2], "belong together; take a tree of 3"),
    ],
)
def test_levels_that_do_not_fit_are_refused(
    architecture: dict[str, Any], num_tiers: int, levels: Sequence[int], message: str
) -> None:
    with pytest.raises(BackboneError, match=message):
        with_new_classes(model(**architecture), tree(num_tiers), levels)


def test_levels_are_chosen_evenly_and_the_last_serves_the_finest_tiers() -> None:
    assert [choose_levels(tiers, 3) for tiers in range(1, 6)] == [
        [2],
        [0, 2],
        [0, 1, 2],
        [0, 1, 2, 2],
        [0, 1, 2, 2, 2],
    ]
