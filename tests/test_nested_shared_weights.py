"""What levels of `prefix` own, see and keep: sizes, own weights, a last level that stays what it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from hierclass.checkpoints.checkpoint import Checkpoint, build, load_checkpoint, save_checkpoint
from hierclass.checkpoints.description import Architecture
from hierclass.errors import BackboneError
from hierclass.images.preprocessing import Preprocessing
from hierclass.nested import create_backbone, nest
from hierclass.nested.level_graph import resize, resize_macs
from hierclass.nested.prefix import PrefixNetwork
from taxonomy import Taxonomy

SIZE = (3, 64, 64)
CLASSES = (2, 5, 12)
OWNS: tuple[Any, ...] = (
    "norms",
    "norms+depthwise",
    "norms+rank4",
    "norms+depthwise+rank2",
    "everything",
    ("everything", "norms+depthwise"),
)
DEFAULT = ("norms+depthwise+rank2", "everything", ("everything", "norms+depthwise"))
each_own = pytest.mark.parametrize(
    "own", [own if own in DEFAULT else pytest.param(own, marks=pytest.mark.full) for own in OWNS]
)


def images(side: int = 64) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def network(own: Any = "norms", **arguments: Any) -> PrefixNetwork:
    """Three levels of a tiny EfficientNet, each with an image size of its own, not trained."""
    torch.manual_seed(0)
    backbone = create_backbone("test_efficientnet").eval()
    given = {"widths": (0.5, 1, 1), "sizes": (32, 48, 64), "frozen": True, "proof": False, **arguments}
    made = nest(backbone, structure="prefix", own=own, num_classes=CLASSES, input_size=SIZE, **given)
    assert isinstance(made, PrefixNetwork)
    return made


def train_a_little(made: PrefixNetwork) -> None:
    """Some updates of everything that wants to be trained, in training mode."""
    made.train()
    trained = [value for value in made.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum(logits.square().mean() for logits in made.forward_all(images())).backward()  # type: ignore[union-attr]
        optimizer.step()
    made.eval()


def used_by_the_last(made: PrefixNetwork) -> dict[str, Tensor]:
    held = {name: value.clone() for name, value, _ in made.level_tensors(made.num_levels - 1)}
    return held | {name: value.clone() for name, value in made.heads[-1].state_dict().items()}


def test_a_level_is_an_ordinary_graph_from_image_to_features() -> None:
    made = network().eval()
    for level, graph in enumerate(made.level_modules(2)):
        assert isinstance(graph, GraphModule)
        features, kept = graph(images(), ())
        assert features.shape == (2, made.num_features[level])
        assert kept == ()


@each_own
def test_a_frozen_last_level_keeps_its_values_bit_for_bit(
    own: Any, tmp_path: Path, tiny_taxonomy: Taxonomy
) -> None:
    architecture = Architecture(
        "test_efficientnet", (0.5, 1.0, 1.0), structure="prefix", sizes=(32, 48, 64), own=own, frozen=True
    )
    torch.manual_seed(0)
    made = build(architecture, tiny_taxonomy, 64)
    assert isinstance(made, PrefixNetwork)
    before, answers = used_by_the_last(made), made.eval()(images())
    lower = [made(images(), level) for level in (0, 1)]
    train_a_little(made)
    after = used_by_the_last(made)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(made(images()), answers)
    assert not any(torch.equal(made(images(), level), lower[level]) for level in (0, 1))
    save_checkpoint(
        tmp_path, Checkpoint(tiny_taxonomy, architecture, Preprocessing(64), network=made), dtype="float32"
    )
    loaded = load_checkpoint(tmp_path)
    assert torch.equal(loaded.network(images()), answers)
    assert torch.equal(loaded.network(images(), 0), made(images(), 0))
    assert isinstance(loaded.network, PrefixNetwork)
    assert not loaded.network.own_parameters(2)


@each_own
def test_levels_answer_alike_alone_fused_and_taken_out(own: Any) -> None:
    made = network(own, proof=True)
    train_a_little(made)
    fused, small = made.fused(), made.truncate(1)
    with torch.no_grad():
        for level in range(3):
            torch.testing.assert_close(fused(images(), level), made(images(), level), rtol=1e-4, atol=1e-4)
        for level in (0, 1):
            assert torch.equal(small(images(), level), made(images(), level))
            seen = F.interpolate(
                images(), size=(made.sizes or ())[level], mode="bicubic", align_corners=False, antialias=True
            )
            torch.testing.assert_close(made.extract(level)(seen), made(images(), level), rtol=1e-3, atol=1e-4)
    sizes = [sum(value.numel() for value in each.parameters()) for each in (small, made)]
    assert sizes[0] < sizes[1]


@each_own
def test_training_a_level_alone_changes_no_other(own: Any) -> None:
    made = network(own).eval()
    assert made.levels_alone == (own != "everything")
    for level in (0, 1):
        before = [made(images(), k) for k in range(3)]
        with torch.no_grad():
            for _, value in made.own_parameters(level):
                value.add_(0.1)
        after = [made(images(), k) for k in range(3)]
        assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [
            k != level for k in range(3)
        ]


def test_what_a_level_owns_grows_with_what_is_asked_for() -> None:
    counts = [
        sum(value.numel() for _, value in network(own).own_parameters(0))
        for own in ("norms", "norms+depthwise", "norms+depthwise+rank2", ("everything", "norms"))
    ]
    assert counts == sorted(set(counts))


def test_corrections_begin_as_nothing() -> None:
    plain, corrected = network("norms").eval(), network("norms+rank4").eval()
    with torch.no_grad():
        features = [made.features(images(), 0) for made in (plain, corrected)]
    torch.testing.assert_close(features[0], features[1])


def test_a_level_sees_the_image_at_its_size_whatever_that_of_the_image() -> None:
    made = network().eval()
    with torch.no_grad():
        small = F.interpolate(images(), size=(32, 32), mode="bicubic", align_corners=False, antialias=True)
        assert torch.equal(made(small, 0), made(images(), 0))
        assert made(images(96), 0).shape == (2, 2)
        assert torch.equal(resize(small, 32), small)


def test_a_constant_image_stays_constant_and_stripes_do_not_alias() -> None:
    grey = torch.full((1, 3, 64, 64), 0.5)
    torch.testing.assert_close(resize(grey, 16), torch.full((1, 3, 16, 16), 0.5))
    stripes = torch.arange(64).remainder(2).float().expand(1, 3, 64, 64)
    torch.testing.assert_close(resize(stripes, 16), torch.full((1, 3, 16, 16), 0.5), atol=0.05, rtol=0)


def test_resizing_costs_the_taps_of_its_filter() -> None:
    # 64 → 32: 8 taps; along rows 64 x 32 outputs, then along columns 32 x 32, of 3 channels
    assert resize_macs(SIZE, 32) == 3 * 8 * (64 * 32 + 32 * 32)
    assert resize_macs(SIZE, 64) == 0
    made = network()
    assert made.cost(0).macs - resize_macs(SIZE, 32) < made.cost(1).macs < made.cost(2).macs


def test_corrections_cost_nothing_where_a_level_is_used() -> None:
    plain, corrected = network("norms"), network("norms+rank4")
    assert [corrected.cost(level).macs for level in range(3)] == [
        plain.cost(level).macs for level in range(3)
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"own": "nothing"}, "own 'nothing' is not known; give norms, norms.depthwise"),
        ({"own": ("norms",)}, "own is given for 1 levels; give one for all, or one for each of the 2 below"),
        ({"sizes": (32, 64)}, r"sizes \[32, 64\] do not fit; give a side per level \(3\)"),
        ({"sizes": (64, 32, 64)}, "never falling, the last that of the image, 64"),
        ({"sizes": (32, 48, 96)}, "the last that of the image, 64"),
        ({"sizes": None}, r"widths \[0.5, 1.0, 1.0\] do not fit"),
        ({"sizes": (0, 48, 64)}, "sizes .* give numbers of at least 1"),
        ({"structure": "slices"}, "structure 'slices' takes no sizes, own or frozen"),
        ({"classifier": nn.Linear(7, 12)}, "a classifier of 7 features and 12 classes does not fit"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"structure": "prefix", "widths": (0.5, 1, 1), "sizes": (32, 48, 64), **arguments}
    with pytest.raises(BackboneError, match=message) as caught:
        nest(create_backbone("test_efficientnet"), num_classes=CLASSES, input_size=SIZE, **given)
    assert "\n" not in str(caught.value)


def test_a_copy_trains_apart_from_what_it_was_copied_from() -> None:
    made = network("norms+rank2")
    other = copy.deepcopy(made)
    train_a_little(other)
    with torch.no_grad():
        assert torch.equal(other.eval()(images()), made.eval()(images()))
        assert not torch.equal(other(images(), 0), made(images(), 0))
