"""The examples of a run of heads: features of its images, those that a model keeps of its own, and what is held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hierclass.checkpoints.description import read_description
from hierclass.errors import InputError
from taxonomy import Taxonomy
from training.data.dataset_check import write_table
from training.data.label_names import LabelNames
from training.data.samples import ImageSet, Unreadable, inner_nodes, read_images, split
from training.evaluation.console import Reporter
from training.heads.features import FeatureCache, compute_features, image_key, network_key
from training.heads.kept_features import read_kept_features
from training.heads.logistic import Values
from training.recipe.recipe import Recipe

Indices = npt.NDArray[np.int64]
FEATURES = "features"
"""Subfolder of a run that caches features."""
SAME = 2e-3
"""Features that differ by at most this share of their length are of the same image; half precision rounds by 5e-4."""
CHUNK = 1024
"""Kept images that are compared with the new ones at a time."""


@dataclasses.dataclass(frozen=True, slots=True)
class Examples:
    """Features of N images, ``levels[k]`` (N, F_k), and their labels (N,), rows of `truth_table`."""

    levels: Sequence[Values]
    labels: Indices

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Indices) -> Examples:
        """The examples at the given indices."""
        return Examples([values[indices] for values in self.levels], self.labels[indices])

    def join(self, others: Examples) -> Examples:
        """These examples and then the others."""
        pairs = zip(self.levels, others.levels, strict=True)
        return Examples(
            [np.concatenate(pair) for pair in pairs], np.concatenate([self.labels, others.labels])
        )


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedExamples:
    """Examples to fit heads to, those that are held out (None: results are cross-validated), and unreadable images."""

    fitted: Examples
    held_out: Examples | None
    unreadable: Sequence[Unreadable]


def load_examples(
    recipe: Recipe,
    taxonomy: Taxonomy,
    out: Path,
    reporter: Reporter,
    *,
    threads: int | None = None,
    workers: int | None = None,
) -> LoadedExamples:
    """Compute what ``out``/features lacks of the features of a recipe's images, and return all examples.

    Unreadable images are found here; they are listed in ``out``/unreadable.csv, reported and left out. With ``add`` the
    images whose features the model of ``base`` keeps come first. Raises `InputError` where too little is left.
    """
    base = Path(recipe.base)
    images = read_images((*recipe.data, *recipe.add), taxonomy, pseudo_labels=recipe.pseudo_labels)
    for note in images.notes:
        reporter.line(note)
    train, dev = _divided(images, recipe)
    chosen = images.subset(np.concatenate([train, dev]))
    network, cache = network_key(base), FeatureCache(out / FEATURES)
    keys = [image_key(network, source) for source in chosen.sources]
    found = compute_features(chosen, keys, base, cache, reporter, threads=threads, workers=workers)
    unreadable = [found[index] for index in sorted(found)]
    write_table(out / "unreadable.csv", unreadable)
    if unreadable:
        some = "; ".join(map(str, unreadable[:5]))
        where = f"are left out ({out / 'unreadable.csv'})"
        reporter.line(f"{len(unreadable)} of {len(chosen)} images cannot be read and {where}: {some}")
    good = np.setdiff1d(np.arange(len(chosen)), list(found))
    if not len(good):
        raise InputError(f"none of the {len(chosen)} images can be read; the first: {unreadable[0]}")
    levels = range(read_description(base)[0].taxonomy.num_tiers)
    read = [keys[index] for index in good.tolist()]
    examples = Examples([cache.level(read, level) for level in levels], chosen.labels[good])
    held_out = examples.subset(np.flatnonzero(good >= len(train))) if len(dev) else None
    fitted = examples.subset(np.flatnonzero(good < len(train))) if len(dev) else examples
    if recipe.add:
        fitted = _with_kept(fitted, base, taxonomy, reporter)
    if held_out is not None and not len(held_out):
        raise InputError(f"none of the {len(dev)} held-out images can be read; the first: {unreadable[0]}")
    return LoadedExamples(fitted, held_out, unreadable)


def _divided(images: ImageSet, recipe: Recipe) -> tuple[Indices, Indices]:
    """Indices of the images to fit to, and of those held out, if the data or the recipe say so."""
    if images.held_out is None and recipe.dev_from is None and not recipe.dev_share:
        return np.arange(len(images))[: recipe.limit], np.arange(0)
    train, dev = split(images, dev_from=recipe.dev_from, dev_share=recipe.dev_share, seed=recipe.seed)
    return train[: recipe.limit], dev


def _with_kept(new: Examples, base: Path, taxonomy: Taxonomy, reporter: Reporter) -> Examples:
    """The examples that a model keeps, and then new ones; refuses where an old class would be left without any."""
    old, kept, joined = read_description(base)[0].taxonomy, read_kept_features(base), new
    places = _places(old, taxonomy)
    if kept is not None:
        labels = np.array([places.get(node, -1) for node in kept.nodes], np.int64)
        again = _given_again(kept.levels[-1], new.levels[-1])
        known = np.flatnonzero((labels >= 0) & ~again)
        joined = Examples(kept.levels, labels).subset(known).join(new)
        reporter.line(f"{len(known)} images of {base} are there as features, which it keeps")
        if again.any():
            reporter.line(
                f"{again.sum()} of its images are given again: they count once, as they are labelled now"
            )
        if lost := int(((labels < 0) & ~again).sum()):
            reporter.line(f"{lost} of its images are of classes that the tree lacks: left out")
    present = set(joined.labels.tolist())
    missing = [leaf for leaf in old.leaves if leaf in places and places[leaf] not in present]
    if missing:
        some = ", ".join(old.node(leaf).name for leaf in missing[:5]) + (", …" if len(missing) > 5 else "")
        lacks = f"images of {len(missing)} of its {len(old.leaves)} classes ({some})"
        keeps = f"no features, and there are no {lacks}" if kept is None else f"no features of {lacks}"
        raise InputError(
            f"{base} keeps {keeps}, so that heads for old and new classes together could be neither fitted nor "
            "calibrated: give images of the old classes with `data` too, or leave `add` out and give the new ones with "
            "`data`, for a model of these alone"
        )
    return joined


def _given_again(kept: Values, new: Values) -> npt.NDArray[np.bool_]:
    """Whether each of the kept features (M, F) is that of one of the new images (N, F), but for rounding.

    The same image in two folds would be measured by heads that have learnt from it.
    """
    size = np.linalg.norm(kept, axis=1)
    directions = (new / np.maximum(np.linalg.norm(new, axis=1, keepdims=True), 1e-9)).T
    found = np.zeros(len(kept), np.bool_)
    for start in range(0, len(kept), CHUNK):
        part = slice(start, start + CHUNK)
        nearest = new[np.argmax(kept[part] @ directions, axis=1)]
        found[part] = np.linalg.norm(kept[part] - nearest, axis=1) <= SAME * size[part]
    return found


def _places(old: Taxonomy, taxonomy: Taxonomy) -> dict[str, int]:
    """The label in a tree of each node of an old tree that it has, by id, else by name."""
    named = LabelNames(taxonomy, inner_nodes(taxonomy)).find_texts([(node.name,) for node in old.nodes[1:]])
    own = {node: place for place, node in enumerate(label_nodes(taxonomy))}
    found = {node.id: own.get(node.id, named[node.name,]) for node in old.nodes[1:]}
    return {node: place for node, place in found.items() if place is not None}


def label_nodes(taxonomy: Taxonomy) -> tuple[str, ...]:
    """The id of the node that each label of a taxonomy stands for, as rows of `truth_table`."""
    return (*taxonomy.leaves, *inner_nodes(taxonomy))
