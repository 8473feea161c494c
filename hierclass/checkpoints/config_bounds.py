"""Bounds on what config.json of a stranger's model may say, checked before anything is made of it; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

MAX_DEPTH = 32
"""Lists and objects inside each other; the deepest that hierclass writes is 6, in results."""
MAX_LEVELS = 64
"""Levels of a network. Each costs a pass of training; trees of life have about 30 ranks."""
MAX_NODES = 100_000
"""Nodes that a tree may always have; all nouns of WordNet are 82,115. Reading so many takes about two seconds."""
NUMBERS_PER_NODE = 64
"""A larger tree needs a file of weights with so many numbers per node: each class has a weight per feature."""
OURS = frozenset({"name", "pretrained", "num_classes", "stem_stride"})
"""Arguments that hierclass itself gives."""
MAX_ARGUMENTS = 64
"""Arguments of timm's constructor; none of timm takes as many."""
MAX_ITEMS = 1024
"""Numbers and words in one argument of timm's constructor, such as the blocks of every stage."""
MAX_NUMBER = 2**16
"""Largest number in an argument of timm's constructor; its largest networks have 22,016 channels."""
MAX_TEXT = 256
"""Characters of a name: of a backbone, of a layer type in an argument."""


def check_depth(value: Any, most: int = MAX_DEPTH) -> None:
    """Raise ValueError if JSON values are nested deeper than `most`, so that reading them by recursion is safe."""
    level = [value]
    for _ in range(most + 1):
        level = [
            item
            for each in level
            if isinstance(each, (dict, list))
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"it is nested more than {most} deep")


def check_tree(values: Any, num_weights: int) -> None:
    """Raise ValueError for the JSON values of a tree that is too large for a model of N = `num_weights` numbers.

    What it says is checked elsewhere.
    """
    most_nodes = max(MAX_NODES, num_weights // NUMBERS_PER_NODE)
    for key, most in (("nodes", most_nodes), ("leaves", most_nodes), ("tiers", MAX_LEVELS)):
        listed = values.get(key) if isinstance(values, dict) else None
        if isinstance(listed, list) and len(listed) > most:
            raise ValueError(f"its tree has {len(listed):,} {key}; up to {most:,} are read")


def check_architecture(values: Mapping[str, Any], ignored: Collection[str] = ()) -> None:
    """Raise ValueError for an architecture, as JSON values, that no network of timm has.

    Arguments of the backbone that are `ignored` may be anything. What the numbers mean is checked where the network is
    built; here only that building it is no endless work.
    """
    for name in ("widths", "depths", "densities", "sizes", "own"):
        listed = values.get(name)
        if isinstance(listed, list) and (len(listed) > MAX_LEVELS or not all(map(_is_small, listed))):
            raise ValueError(f"{name!r} has more than {MAX_LEVELS} levels, or values that no level has")
    for name in ("backbone", "structure", "heads"):
        if isinstance(values.get(name), str) and not _is_small(values[name]):
            raise ValueError(f"{name!r} has more than {MAX_TEXT} characters")
    arguments = values.get("backbone_args", {})
    if not isinstance(arguments, dict) or len(arguments) > MAX_ARGUMENTS:
        raise ValueError(f"'backbone_args' is no object of up to {MAX_ARGUMENTS} arguments")
    for name, value in arguments.items():
        if name in ignored:
            continue
        if name in OURS:
            raise ValueError(f"the backbone can't be given {name!r}")
        if not _is_small(name) or _count(value) > MAX_ITEMS:
            raise ValueError(
                f"the argument {name[:MAX_TEXT]!r} of the backbone has a value that no network of timm takes: up to "
                f"{MAX_ITEMS:,} numbers of at most {MAX_NUMBER:,}, and names"
            )


def _count(value: Any) -> float:
    """Return how many numbers and words a value holds; infinite if one is too large or of another kind."""
    if isinstance(value, dict):
        return sum(_count(item) if _is_small(key) else math.inf for key, item in value.items())
    if isinstance(value, list):
        return len(value) + sum(map(_count, value))
    return 1 if value is None or _is_small(value) else math.inf


def _is_small(value: Any) -> bool:
    """Whether a value is a truth value, a short text, or a finite number of moderate size."""
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    return isinstance(value, (int, float)) and -MAX_NUMBER <= value <= MAX_NUMBER
