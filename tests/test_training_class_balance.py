"""Classes of many and of few images: in the loss, in the order of the samples, in the measures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hierclass.errors import InputError
from taxonomy import Taxonomy
from training.data.class_balance import balanced_order, log_priors
from training.data.sampler import BatchSampler
from training.evaluation.metrics import balanced_accuracy
from training.recipe.recipe import Recipe
from training.trainer.losses import NestedLoss

COUNTS = [30, 10, 10, 20, 10, 5, 5, 1, 1, 4, 2, 2]
"""Training images of the 12 leaves: 50 dogs, 30 cats, 10 birds, 6 cars, 4 boats."""


def test_every_tier_has_its_own_frequencies(tiny_taxonomy: Taxonomy) -> None:
    shares = [prior.exp().tolist() for prior in log_priors(tiny_taxonomy, COUNTS)]
    assert shares[0] == pytest.approx([0.9, 0.1])
    assert shares[1] == pytest.approx([0.5, 0.3, 0.1, 0.06, 0.04])
    assert shares[2] == pytest.approx([count / 100 for count in COUNTS])


def test_a_leaf_without_images_counts_as_one_image(tiny_taxonomy: Taxonomy) -> None:
    prior = log_priors(tiny_taxonomy, [0] * 12)[-1]
    assert prior.tolist() == pytest.approx([math.log(1 / 12)] * 12)


def test_images_of_inner_nodes_count_on_the_tiers_that_they_know(tiny_taxonomy: Taxonomy) -> None:
    inner = [100, 0, 0, 0, 0, 0, 50]  # animals, boats
    shares = [prior.exp().tolist() for prior in log_priors(tiny_taxonomy, [*COUNTS, *inner])]
    assert shares[0] == pytest.approx([190 / 250, 60 / 250])
    assert shares[1] == pytest.approx([50 / 150, 30 / 150, 10 / 150, 6 / 150, 54 / 150])
    assert shares[2] == pytest.approx([count / 100 for count in COUNTS])


def make_loss(taxonomy: Taxonomy, counts: list[int] | None, distil: float = 0.0) -> NestedLoss:
    return NestedLoss(
        taxonomy, level_weights=(1.0, 1.0, 1.0), finest_weight=1.0, distil=distil, label_counts=counts
    )


@pytest.mark.parametrize("teacher", ["live", "last", "all"])
def test_the_balanced_loss_is_the_plain_one_of_adjusted_logits(tiny_taxonomy: Taxonomy, teacher: str) -> None:
    torch.manual_seed(0)
    levels = [torch.randn(4, classes) for classes in tiny_taxonomy.num_classes]
    teachers = {
        "live": None,
        "last": [torch.randn(4, 12)],
        "all": [torch.randn_like(level) for level in levels],
    }
    finest, target = [torch.randn(4, 12), torch.randn(4, 12)], torch.tensor([0, 5, 7, 11])
    priors = log_priors(tiny_taxonomy, COUNTS)
    taught = teachers[teacher]
    adjusted = [logits + prior for logits, prior in zip(levels, priors, strict=True)]
    adjusted_teachers = None if taught is None else [
        logits + prior for logits, prior in zip(taught, priors[-len(taught) :], strict=True)
    ]  # fmt: skip
    balanced = make_loss(tiny_taxonomy, COUNTS, distil=0.5)(levels, finest, target, taught)
    plain = make_loss(tiny_taxonomy, None, distil=0.5)(
        adjusted, [logits + priors[-1] for logits in finest], target, adjusted_teachers
    )
    torch.testing.assert_close(balanced, plain)


def test_even_classes_change_nothing(tiny_taxonomy: Taxonomy) -> None:
    levels, target = [torch.randn(4, 2), torch.randn(4, 5), torch.randn(4, 12)], torch.tensor([0, 5, 7, 11])
    last_only = {"level_weights": (0.0, 0.0, 1.0), "finest_weight": 0.0}
    even = NestedLoss(tiny_taxonomy, label_counts=[7] * 12, **last_only)  # type: ignore[arg-type]
    plain = NestedLoss(tiny_taxonomy, **last_only)  # type: ignore[arg-type]
    torch.testing.assert_close(even(levels, [], target), plain(levels, [], target))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 9))
def test_sampling_draws_every_leaf_equally_often_to_within_one(labels: list[int], seed: int) -> None:
    leaves = np.array(labels)
    order = balanced_order(leaves, np.random.default_rng(seed))
    assert len(order) == len(leaves)
    drawn = np.bincount(leaves[order], minlength=6)[np.unique(leaves)]
    assert drawn.max() - drawn.min() <= 1
    for leaf in np.unique(leaves):
        times = np.bincount(order, minlength=len(leaves))[leaves == leaf]
        assert times.max() - times.min() <= 1


def test_an_epoch_of_balanced_batches_repeats_for_its_seed(tiny_taxonomy: Taxonomy) -> None:
    leaves = np.repeat(np.arange(12), COUNTS)
    first, again, other = (
        [share.indices for share in BatchSampler(100, 10, seed=1, balance=leaves).shares(epoch)]
        for epoch in (0, 0, 1)
    )
    assert first == again != other
    assert np.bincount(leaves[np.concatenate(first)]).tolist() != COUNTS


def test_balanced_accuracy_is_the_mean_over_the_classes() -> None:
    truth, answers = np.array([0, 0, 0, 0, 2, 2]), np.array([0, 0, 0, 1, 2, 0])
    assert balanced_accuracy(answers, truth) == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_an_unknown_balance_is_refused() -> None:
    with pytest.raises(InputError, match="`balance` much: give none, loss or sampling"):
        Recipe(data=(), taxonomy="x", balance="much").check()
