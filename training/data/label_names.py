"""Find what a label of the data means: a leaf of the taxonomy, or an inner node."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from hierclass.images.discovery import display_name
from taxonomy import Taxonomy
from taxonomy.labels import LeafNames, key
from training.data.datasets import LabelPath


class LabelNames:
    """Finds the label, a row of `training.data.samples.truth_table`, that folder names or the text of a table mean.

    Leaves are found before inner nodes, and finer inner nodes before coarser ones; a node between two tiers counts as
    the class above it.
    """

    def __init__(self, taxonomy: Taxonomy, inner: Sequence[str]) -> None:
        """Index a taxonomy and its ``inner`` nodes (`training.data.samples.inner_nodes`)."""
        self.taxonomy = taxonomy
        labels = {node: number for number, node in enumerate((*taxonomy.leaves, *inner))}
        self._leaves = LeafNames(taxonomy)
        self._tiers = [
            (LeafNames(taxonomy.truncate(tier)), [labels[node] for node in taxonomy.tiers[tier]])
            for tier in reversed(range(taxonomy.num_tiers - 1))
            if all(node in labels for node in taxonomy.tiers[tier])  # else it is the root
        ]
        self._nodes: dict[str, list[tuple[str, int]]] = {}
        for node in taxonomy.nodes[1:]:
            line = (node.id, *(above.id for above in taxonomy.ancestors(node.id)))
            label = next((labels[each] for each in line if each in labels), None)
            for text in {node.id, key(node.name), _short(node.name)} if label is not None else ():
                self._nodes.setdefault(text, []).append((node.id, label))  # type: ignore[arg-type]  # not None

    def find_folders(self, ways: Iterable[LabelPath]) -> dict[LabelPath, int | None]:
        """Return the label of the images in each of some folders, or None.

        Images may lie deeper than the folder that names their leaf. An inner node is named by the last folder alone, so
        that a misspelt class below it is not taken for it; folders such as "images" that all ways end with don't count.
        """
        known = sorted(set(ways))
        shared = _shared_end(known)
        found: dict[LabelPath, int | None] = {}
        for way in known:
            leaf = self._leaves.find_folder(way)
            found[way] = self._find_inner(way[: len(way) - shared]) if leaf is None else leaf
        return found

    def find_texts(self, ways: Iterable[LabelPath]) -> dict[LabelPath, int | None]:
        """Return the label that each text, split at "/", means, or None: a name, an id, or a path in the tree.

        The last part names the node; where several nodes are called so, the parts before it decide.
        """
        return {way: self._find_text(way) for way in sorted(set(ways))}

    def _find_text(self, way: LabelPath) -> int | None:
        leaf = self._leaves.find("/".join(way))
        if leaf is None and len(way) > 1:
            leaf = self._along(way)
        if leaf is None:
            leaf = self._leaves.find(way[-1])
        return self._find_inner(way) if leaf is None else leaf

    def _find_inner(self, way: Sequence[str]) -> int | None:
        """The label of the inner node that the last part of a way names."""
        for start in range(len(way)):
            for names, labels in self._tiers:
                found = names.find("/".join(way[start:]))
                if found is not None:
                    return labels[found]
        return self._along(way) if way else None

    def _along(self, way: Sequence[str]) -> int | None:
        """The label of the one node that is called like the last part and lies below nodes called like the others."""
        wanted = {key(part) for part in way[:-1]}
        found = {
            label
            for node, label in self._called(way[-1])
            if wanted <= {key(above.name) for above in self.taxonomy.ancestors(node)}
        }
        return found.pop() if len(found) == 1 else None

    def _called(self, text: str) -> list[tuple[str, int]]:
        """Ids and labels of the nodes of a name or id."""
        return self._nodes.get(text) or self._nodes.get(key(text), [])

    def missing(self, way: Sequence[str]) -> str:
        """Return the message for a label that means nothing here, or several nodes; it names some."""
        text = display_name("/".join(way))
        called = [node for node, _ in self._called(way[-1])]
        if len(called) > 1:
            return (
                f"label {text!r} may mean {', '.join(called[:3])} of taxonomy {self.taxonomy.name!r}; "
                "write the id, or a path in the tree such as animal/dog"
            )
        return self._leaves.missing(text)


def _shared_end(ways: Sequence[LabelPath]) -> int:
    """Number of folders, such as "images", that all of several ways have in common at their end."""
    if len(ways) < 2:
        return 0
    columns = zip(*(way[::-1] for way in ways), strict=False)
    same = itertools.takewhile(lambda names: len(set(names)) == 1, columns)
    return min(len(list(same)), min(map(len, ways)) - 1)


def _short(name: str) -> str:
    return key(re.sub(r" \([^()]*\)$", "", name.removeprefix("other ")))
