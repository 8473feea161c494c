"""Classes that a request names, by synset id or name, at any height of the tree; and which classes may answer."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hierclass.errors import InputError
from taxonomy import Taxonomy

if TYPE_CHECKING:
    from hierclass.decisions.exit_policy import Request

Flags: TypeAlias = NDArray[np.bool_]


def find_classes(name: str, taxonomy: Taxonomy) -> frozenset[str]:
    """Return the ids of the nodes that a text names, by synset id or by name; capitals do not count.

    Raises:
        InputError: there is none; the message proposes another.
    """
    known, wanted = _ids_by_name(taxonomy), _plain(name)
    if wanted not in known:
        names = {_plain(node.name): node.name for node in taxonomy.nodes}
        holding = [each for each in names if wanted in each.replace(",", "").split()]
        close = holding[:1] or difflib.get_close_matches(wanted[:100], names, n=1)
        hint = f"did you mean {names[close[0]]!r}?" if close else "hierclass classes lists them"
        shown = name if len(name) <= 100 else name[:100] + "…"
        raise InputError(f"this model has no class {shown!r}; {hint}")
    return known[wanted]


def allowed_classes(request: Request, taxonomy: Taxonomy) -> list[Flags]:
    """Return flags of the classes of every tier: whether a class holds a leaf that the request allows.

    Raises:
        InputError: a class is unknown, or no leaf is left.
    """
    leaves = _leaves_of(request.only, taxonomy)
    for name in request.exclude:
        leaves &= ~_leaves_below(name, taxonomy)
    if not leaves.any():
        raise InputError("only and exclude leave no class to answer with; exclude fewer")
    return _holding(leaves, taxonomy)


def inside_classes(request: Request, taxonomy: Taxonomy) -> list[Flags]:
    """Return flags of the classes of every tier: whether all leaves of a class lie below `only`.

    "mammal" is no answer to `only` "dog", since not all mammals are dogs; it is one to `exclude` "dog".

    Raises:
        InputError: a class is unknown.
    """
    return [~classes for classes in _holding(~_leaves_of(request.only, taxonomy), taxonomy)]


def _holding(leaves: Flags, taxonomy: Taxonomy) -> list[Flags]:
    """Flags of the classes of every tier: whether a class holds any of the flagged leaves."""
    found = []
    for tier, count in enumerate(taxonomy.num_classes):
        classes = np.zeros(count, dtype=np.bool_)
        classes[taxonomy.projection(tier)[leaves]] = True
        found.append(classes)
    return found


def _leaves_of(only: Sequence[str], taxonomy: Taxonomy) -> Flags:
    """Flags of the leaves below any of the named classes; all leaves if none is named."""
    if not only:
        return np.ones(len(taxonomy.leaves), dtype=np.bool_)
    below: Flags = np.any([_leaves_below(name, taxonomy) for name in only], axis=0)
    return below


def _leaves_below(name: str, taxonomy: Taxonomy) -> Flags:
    ids = find_classes(name, taxonomy)
    below = [
        leaf in ids or any(node.id in ids for node in taxonomy.ancestors(leaf)) for leaf in taxonomy.leaves
    ]
    return np.array(below)


@functools.lru_cache(maxsize=2)
def _ids_by_name(taxonomy: Taxonomy) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for node in taxonomy.nodes:
        for text in {_plain(node.id), _plain(node.name)}:
            found[text] = found.get(text, frozenset()) | {node.id}
    return found


def _plain(name: str) -> str:
    return name.strip().casefold().replace("_", " ")
