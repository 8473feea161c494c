"""Load the images of a recipe: list, split, check, and print what the user should know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from hierclass.errors import InputError
from taxonomy import Taxonomy
from training.data.class_balance import HINT_AT
from training.data.dataset_check import (
    CheckResult,
    check_images,
    digest_images,
    resolve_check_mode,
    write_table,
)
from training.data.samples import (
    ImageSet,
    LabelArray,
    Unreadable,
    decode_small,
    inner_nodes,
    read_images,
    split,
)
from training.evaluation.console import Reporter
from training.recipe.recipe import Recipe
from training.trainer.processes import local_processes

DECODED_BYTES = 8 << 30
"""Memory per machine for decoded small images; its processes share it."""


def load_data(
    recipe: Recipe,
    taxonomy: Taxonomy,
    reporter: Reporter,
    *,
    out: Path | None = None,
    check: str = "none",
    accelerator: Accelerator | None = None,
) -> tuple[ImageSet, ImageSet]:
    """Return the training and the held-out images of a recipe; unreadable ones are reported and left out.

    Small images are decoded and kept; the others are checked as ``check`` says (`dataset_check`), divided among
    processes. Unreadable images are listed in ``out``/unreadable.csv. The split is made before anything is left out, so
    that `evaluate` reproduces it. Raises `InputError` where too little is left to train on.
    """
    images = read_images(recipe.data, taxonomy, pseudo_labels=recipe.pseudo_labels)
    for note in images.notes:
        reporter.line(note)
    train, dev = split(images, dev_from=recipe.dev_from, dev_share=recipe.dev_share, seed=recipe.seed)
    parts = [images.subset(train[: recipe.limit]), images.subset(dev)]
    memory = DECODED_BYTES // (1 if accelerator is None else local_processes(accelerator))
    total = sum(map(len, parts))
    readable, unreadable = [], list[Unreadable]()
    for part in parts:
        kept, errors = decode_small(part, max_side=2 * recipe.size, max_bytes=memory)
        readable.append(kept)
        unreadable += errors
    how = ""
    if check != "none":
        readable, errors, how = _check(readable, recipe, reporter, out, check, accelerator)
        unreadable += errors
    main = accelerator is None or accelerator.is_main_process
    if out is not None and main:
        write_table(out / "unreadable.csv", unreadable)
    if unreadable:
        where = f" ({out / 'unreadable.csv'})" if out is not None else ""
        some = "; ".join(map(str, unreadable[:5]))
        looked = f"checked ({how}): " if how else ""
        reporter.line(
            f"{looked}{len(unreadable)} of {total} images cannot be read and are left out{where}: {some}"
        )
    elif how:
        reporter.line(f"checked {total} images ({how}): all can be read")
    for part, kept, name in zip(parts, readable, ("training", "held-out"), strict=True):
        if not len(kept):
            first = f"; the first: {unreadable[0]}" if unreadable else ""
            raise InputError(f"none of the {len(part)} {name} images can be read{first}")
    tell_classes(readable[0].labels, readable[1].labels, taxonomy, reporter, balance=recipe.balance)
    return readable[0], readable[1]


def _check(
    parts: Sequence[ImageSet],
    recipe: Recipe,
    reporter: Reporter,
    out: Path | None,
    check: str,
    accelerator: Accelerator | None,
) -> tuple[list[ImageSet], list[Unreadable], str]:
    """Check the images that were not decoded, or reuse the stored result of an earlier check.

    Returns the readable images, the unreadable ones, and how they were looked at, "" where they were not now.
    """
    encoded = [_encoded(part) for part in parts]
    waiting = ImageSet(
        [part.sources[i] for part, own in zip(parts, encoded, strict=True) for i in own],
        [part.names[i] for part, own in zip(parts, encoded, strict=True) for i in own],
        np.concatenate([part.labels[own] for part, own in zip(parts, encoded, strict=True)]),
    )
    mode = resolve_check_mode(check, waiting)
    if mode == "none" or not len(waiting):
        return list(parts), [], ""
    digest = digest_images(waiting)
    cache = out / "checked.json" if out is not None else None
    known = CheckResult.load(cache, mode=mode, digest=digest) if cache is not None else None
    how = ""
    if known is None:
        known = CheckResult(mode, digest, _look(waiting, recipe, reporter, mode, accelerator))
        how = "each decoded" if mode == "full" else "header, size and end of the file"
        if cache is not None and (accelerator is None or accelerator.is_main_process):
            known.save(cache)
    if not known.found:
        return list(parts), [], how
    kept, first = [], 0
    for part, own in zip(parts, encoded, strict=True):
        bad = [index for place, index in enumerate(own, start=first) if place in known.found]
        kept.append(part.subset(np.setdiff1d(np.arange(len(part)), bad)))
        first += len(own)
    return kept, list(known.unreadable), how


def _encoded(part: ImageSet) -> list[int]:
    return [index for index, source in enumerate(part.sources) if not isinstance(source, np.ndarray)]


def _look(
    images: ImageSet, recipe: Recipe, reporter: Reporter, mode: str, accelerator: Accelerator | None
) -> dict[int, Unreadable]:
    """Check the images, divided among processes; every process gets all results by index."""
    process, processes = (
        (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    )
    share = images.subset(np.arange(process, len(images), processes))
    found = [
        (process + index * processes, one.name, one.error)
        for index, one in check_images(share, full=mode == "full", min_side=recipe.size, reporter=reporter)
    ]
    if processes > 1:
        found = gather_object(found)
    return {place: Unreadable(name, error) for place, name, error in sorted(found)}


def tell_classes(
    train: LabelArray,
    dev: LabelArray | None,
    taxonomy: Taxonomy,
    reporter: Reporter,
    *,
    balance: str = "none",
) -> None:
    """Print class sizes, classes without training or held-out images, and images labelled with inner nodes.

    ``train`` and ``dev`` (None: nothing is held out) are labels, rows of `truth_table`. Raises `InputError` for images
    of one class.
    """
    num_leaves, inner = len(taxonomy.leaves), inner_nodes(taxonomy)
    labels = np.bincount(train, minlength=num_leaves + len(inner))
    counts = labels[:num_leaves]
    held_out = counts if dev is None else np.bincount(dev, minlength=num_leaves)[:num_leaves]
    present = counts[counts > 0]
    if len(present) < 2 and (len(present) < 1 or len(train) > 1):
        raise InputError("fewer than two classes have images to train on; add images of other classes")
    if not held_out.any():
        raise InputError(
            "no held-out image is labelled down to the finest tier; hold out some that are, or add such images"
        )
    if (coarse := labels[num_leaves:]).any():
        sizes = [f"{taxonomy.node(inner[at]).name} {coarse[at]}" for at in np.argsort(-coarse, kind="stable")]
        some = ", ".join(sizes[: min(5, int((coarse > 0).sum()))])
        reporter.line(
            f"{coarse.sum()} of {len(train)} training images are labelled above the finest tier ({some}): they train "
            "the tiers down to their own"
        )
    few = f"{present.min()} to {present.max()} per class, median {np.median(present):.0f}"
    reporter.line(
        f"training images: {few}"
        if present.min() < present.max()
        else f"training images: {present[0]} per class"
    )
    if (counts == 0).any():
        names = _names(taxonomy, counts == 0)
        reporter.line(f"no images to train on: {names}; the network will not learn to answer with them")
    if dev is None and (counts == 1).any():
        names = _names(taxonomy, counts == 1)
        reporter.line(
            f"a single image: {names}; never right in cross-validation, which has no other to learn from"
        )
    if ((counts > 0) & (held_out == 0)).any():
        names = _names(taxonomy, (counts > 0) & (held_out == 0))
        reporter.line(f"no image held out: {names}; the results say nothing of them")
    if present.max() > HINT_AT * present.min() and balance == "none":
        ratio = present.max() / present.min()
        reporter.line(
            f"the largest class has {ratio:.0f} times as many images as the smallest: consider `balance` loss"
        )


def _names(taxonomy: Taxonomy, which: np.ndarray) -> str:
    names = [taxonomy.node(taxonomy.leaves[i]).name for i in np.flatnonzero(which)]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)} {'class' if len(names) == 1 else 'classes'} ({', '.join(names[:5])}{more})"
