"""Linear heads by multinomial logistic regression: regularisation by cross-validation, and scores out of fold."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from hierclass.processors import num_threads

Values = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse strengths of the regularisation that are tried (scikit-learn's C), on scaled features."""
FOLDS = 5
CHOOSING = 2000
"""Most images on which the strength is chosen."""
NEVER = -100.0
"""Bias of a class that no image teaches: it is never the answer."""


@dataclasses.dataclass(frozen=True, slots=True)
class LinearHead:
    """Scores classes from features as they come: ``weight`` (C, F), ``bias`` (C,)."""

    weight: Values
    bias: Values

    def logits(self, features: Values) -> Values:
        """The logits (N, C) of features (N, F)."""
        return features @ self.weight.T + self.bias


def make_folds(labels: Indices, seed: int) -> Indices:
    """The fold (N,) of every image, 0 … `FOLDS` - 1: each label is spread over the folds as evenly as it can be."""
    random = np.random.default_rng(seed)
    folds, offset = np.empty(len(labels), np.int64), 0
    for label in np.unique(labels):
        own = random.permutation(np.flatnonzero(labels == label))
        folds[own] = (offset + np.arange(len(own))) % FOLDS
        offset += len(own)
    return folds


def fit_head(
    features: Values, classes: Indices, num_classes: int, strength: float, *, balance: bool = False
) -> LinearHead:
    """Fit a head to features (N, F) and classes (N,), -1 for images that say nothing; the scaling is folded in.

    ``balance`` gives every class the same total weight.
    """
    with _calm():
        return _fit_path(features, classes, num_classes, (strength,), balance=balance)[strength]


@contextlib.contextmanager
def _calm() -> Iterator[None]:
    """Keep BLAS from threads, which spin and on busy cores take ten times as long, and the solver from warnings."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # scikit-learn brings it

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # held-out images judge what came out
        yield


def _fit_path(
    features: Values,
    classes: Indices,
    num_classes: int,
    strengths: Sequence[float],
    *,
    balance: bool = False,
) -> dict[float, LinearHead]:
    """Fit a head for each of rising strengths, each from the one before; otherwise as `fit_head`."""
    from sklearn.linear_model import LogisticRegression

    known = classes >= 0
    features, classes = features[known], classes[known]
    present = np.unique(classes)
    if len(present) < 2:
        return dict.fromkeys(strengths, _constant(features.shape[1], num_classes, present))
    mean, scale = features.mean(axis=0), _scale(features)
    scaled = (features - mean) / scale
    model = LogisticRegression(
        warm_start=True, tol=1e-3, max_iter=200, class_weight="balanced" if balance else None
    )
    heads = {}
    for strength in strengths:
        model.C = strength
        model.fit(scaled, classes)
        weight, bias = model.coef_, model.intercept_
        if len(present) == 2:  # scikit-learn scores the second class alone
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        heads[strength] = _unscaled(weight, bias, present, num_classes, mean, scale)
    return heads


def _scale(features: Values) -> Values:
    """What each feature (F,) is divided by: the geometric mean of its own deviation and that of all features.

    Few images tell the deviation of single features badly: with five a class this was 4 to 9 points more accurate than
    each feature's own deviation, with hundreds as accurate (docs/own-classes.md).
    """
    own = features.std(axis=0)
    overall = float(np.sqrt(np.mean(own**2))) or 1.0
    return np.asarray(np.sqrt(np.maximum(own, 1e-3 * overall) * overall), np.float32)


def _constant(num_features: int, num_classes: int, present: Indices) -> LinearHead:
    """The head that always answers with the one class that is present."""
    bias = np.full(num_classes, NEVER, np.float32)
    bias[present] = 0
    return LinearHead(np.zeros((num_classes, num_features), np.float32), bias)


def _unscaled(
    weight: Values, bias: Values, present: Indices, num_classes: int, mean: Values, scale: Values
) -> LinearHead:
    head = _constant(weight.shape[1], num_classes, present)
    head.weight[present] = weight / scale
    head.bias[present] = bias - (weight / scale) @ mean
    return head


@dataclasses.dataclass(frozen=True, slots=True)
class CrossValidated:
    """The strength that was chosen, and logits (N, C) of every image by heads that were not fitted to its fold."""

    strength: float
    logits: Values


def cross_validate(
    features: Values, classes: Indices, num_classes: int, folds: Indices, *, balance: bool = False
) -> CrossValidated:
    """Choose the strength by the likelihood out of fold, on `CHOOSING` images at most; score all images out of fold.

    ``classes`` (N,) are -1 for images that say nothing of them: they are scored all the same.
    """
    few = np.sort(np.random.default_rng(0).permutation(len(classes))[:CHOOSING])
    tried = _out_of_fold(features[few], classes[few], num_classes, folds[few], STRENGTHS, balance=balance)
    strength = min(tried, key=lambda each: _loss(tried[each], classes[few]))
    if len(few) == len(classes):
        return CrossValidated(strength, tried[strength])
    whole = _out_of_fold(features, classes, num_classes, folds, (strength,), balance=balance)
    return CrossValidated(strength, whole[strength])


def _out_of_fold(
    features: Values,
    classes: Indices,
    num_classes: int,
    folds: Indices,
    strengths: Sequence[float],
    *,
    balance: bool,
) -> Mapping[float, Values]:
    found = {strength: np.zeros((len(classes), num_classes), np.float32) for strength in strengths}

    def score(fold: int) -> None:
        inside = folds == fold
        heads = _fit_path(features[~inside], classes[~inside], num_classes, strengths, balance=balance)
        for strength, head in heads.items():
            found[strength][inside] = head.logits(features[inside])

    with _calm(), ThreadPoolExecutor(min(num_threads(), FOLDS)) as pool:
        list(pool.map(score, np.unique(folds)))
    return found


def _loss(logits: Values, classes: Indices) -> float:
    """Mean negative log-likelihood (nats) of the known classes."""
    known = np.flatnonzero(classes >= 0)
    if not len(known):
        return 0.0
    rows = logits[known].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    return float((np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(known)), classes[known]]).mean())
