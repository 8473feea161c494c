"""The taxonomy itself: an immutable tree of nodes with nested tiers of classes.

Everything derives from one topologically ordered parents array. Nothing here knows where trees come from: functions
of other modules build them and return a `Taxonomy`.
"""

import difflib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from taxonomy.errors import TaxonomyError
from taxonomy.json_document import FORMAT, VERSION, read_document, write_document
from taxonomy.validation import structure_problems

_Array = TypeVar("_Array", bound=npt.NDArray[Any])


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the tree: its id (a synset id or the author's own), display name and definition."""

    id: str
    name: str
    definition: str = ""


class Taxonomy:
    """A rooted tree whose leaves are the fine classes, with tiers from coarse to fine.

    Every class of a tier is a node; every leaf has exactly one class, an ancestor or itself, in each tier.
    Equal and hashed by content. Safe to share between threads and processes.
    """

    def __init__(
        self,
        *,
        name: str,
        nodes: Sequence[Node],
        parents: Sequence[int] | npt.NDArray[np.integer[Any]],
        leaves: Sequence[str],
        tiers: Sequence[Sequence[str]],
    ) -> None:
        """Make a taxonomy from its parts.

        Args:
            name: name of the taxonomy, for people.
            nodes: the root first, every parent before its children.
            parents: index of each node's parent, -1 for the root.
            leaves: ids of the finest classes, in the author's order.
            tiers: ids of the classes of each tier, coarse to fine; the last tier equals leaves.

        Raises:
            TaxonomyError: the parts are not a tree with nested tiers; the text names what is wrong.
        """
        ids = [node.id for node in nodes]
        above = [int(parent) for parent in parents]
        problems = structure_problems(ids, [node.name for node in nodes], above, leaves, tiers)
        if problems:
            raise TaxonomyError(problems[0].message)
        self._name = name
        self._nodes = tuple(nodes)
        self._leaves = tuple(leaves)
        self._tiers = tuple(tuple(tier) for tier in tiers)
        self._index = {node_id: i for i, node_id in enumerate(ids)}
        self._leaf_index = {leaf: i for i, leaf in enumerate(self._leaves)}
        self._classes = tuple(tuple(nodes[self._index[c]] for c in tier) for tier in self._tiers)
        self._parents = _frozen(np.array(above, dtype=np.int32))
        self._depths, self._heights = _depths_and_heights(above)
        self._children: tuple[tuple[Node, ...], ...] | None = None
        self._projections: dict[int, npt.NDArray[np.int64]] = {}
        self._lca_heights: npt.NDArray[np.int64] | None = None

    # -- parts

    @property
    def name(self) -> str:
        """Name of the taxonomy, for people."""
        return self._name

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, the root first, every parent before its children."""
        return self._nodes

    @property
    def parents(self) -> npt.NDArray[np.int32]:
        """Index of each node's parent, shape (num_nodes,), -1 for the root; read-only."""
        return self._parents

    @property
    def leaves(self) -> tuple[str, ...]:
        """Ids of the leaves in the order of the finest classes."""
        return self._leaves

    @property
    def tiers(self) -> tuple[tuple[str, ...], ...]:
        """Ids of the classes of each tier, coarse to fine."""
        return self._tiers

    @property
    def num_tiers(self) -> int:
        """Number of tiers, at least 1."""
        return len(self._tiers)

    @property
    def num_classes(self) -> tuple[int, ...]:
        """Number of classes of each tier, coarse to fine."""
        return tuple(len(tier) for tier in self._tiers)

    def node(self, node_id: str) -> Node:
        """Look a node up by its id; raises TaxonomyError where there is none."""
        return self._nodes[self.index(node_id)]

    def index(self, node_id: str) -> int:
        """Position of a node in `nodes`; raises TaxonomyError where there is none."""
        try:
            return self._index[node_id]
        except KeyError:
            raise TaxonomyError(
                f"no node {node_id!r} in taxonomy {self._name!r}{self._hint(node_id)}"
            ) from None

    # -- tiers

    def classes(self, tier: int) -> tuple[Node, ...]:
        """Return the classes of a tier: class index -> node."""
        return self._classes[self._tier(tier)]

    def projection(self, tier: int) -> npt.NDArray[np.int64]:
        """Return the class index of every leaf in a tier: (num_leaves,), 0 to num_classes[tier] - 1, read-only."""
        tier = self._tier(tier)
        if tier not in self._projections:
            classes = self._class_of_node(tier)
            self._projections[tier] = _frozen(classes[[self._index[leaf] for leaf in self._leaves]])
        return self._projections[tier]

    def parent_classes(self, tier: int) -> npt.NDArray[np.int64]:
        """Return, for the classes of a tier >= 1, their class index in the tier before: (num_classes[tier],).

        Raises:
            TaxonomyError: the tier does not exist or is tier 0, which has none before it.
        """
        if self._tier(tier) == 0:
            raise TaxonomyError(
                "tier 0 is the coarsest: its classes have no parent classes; ask for tier 1 or more"
            )
        classes = self._class_of_node(tier - 1)
        return classes[[self._index[node_id] for node_id in self._tiers[tier]]]

    def project(self, leaf: str | int, tier: int) -> Node:
        """Return the class of a leaf (id or index) in a tier: its one ancestor, or itself, among the tier's classes."""
        return self.classes(tier)[int(self.projection(tier)[self._leaf(leaf)])]

    def path(self, leaf: str | int, tier: int | None = None) -> tuple[Node, ...]:
        """Return the classes of a leaf (id or index) in tiers 0 to tier, coarse first; None means the last tier."""
        last = self.num_tiers - 1 if tier is None else self._tier(tier)
        return tuple(self.project(leaf, k) for k in range(last + 1))

    # -- the tree

    def ancestors(self, node_id: str) -> tuple[Node, ...]:
        """Return the ancestors of a node, its parent first and the root last; empty for the root."""
        found = []
        i = int(self._parents[self.index(node_id)])
        while i != -1:
            found.append(self._nodes[i])
            i = int(self._parents[i])
        return tuple(found)

    def children(self, node_id: str) -> tuple[Node, ...]:
        """Return the children of a node in the order of `nodes`; empty for a leaf."""
        if self._children is None:
            children: list[list[Node]] = [[] for _ in self._nodes]
            for i in range(1, len(self._nodes)):
                children[self._parents[i]].append(self._nodes[i])
            self._children = tuple(tuple(nodes) for nodes in children)
        return self._children[self.index(node_id)]

    def lca(self, a: str, b: str) -> Node:
        """Return the lowest common ancestor of two nodes; a node counts as its own ancestor."""
        return self._nodes[self._lca(a, b)]

    def depth(self, node_id: str) -> int:
        """Return the number of edges from the root to a node."""
        return self._depths[self.index(node_id)]

    def height(self, node_id: str) -> int:
        """Return the number of edges of the longest path from a node down to a leaf; 0 for a leaf."""
        return self._heights[self.index(node_id)]

    def distance(self, a: str, b: str) -> int:
        """Return the number of edges between two nodes, through their lowest common ancestor."""
        return self.depth(a) + self.depth(b) - 2 * self._depths[self._lca(a, b)]

    @property
    def lca_heights(self) -> npt.NDArray[np.int64]:
        """Height of the lowest common ancestor of each pair of leaves, in edges.

        (num_leaves, num_leaves), symmetric, 0 on the diagonal; read-only. "Mistake severity" of
        Bertinetto et al. 2020 (arXiv 1912.09393) is this value for the predicted and the true leaf.
        """
        if self._lca_heights is None:
            leaves = np.array([self._index[leaf] for leaf in self._leaves])
            heights = np.array(self._heights, dtype=np.int64)
            lines = self._lines(leaves)
            result = np.zeros((len(leaves), len(leaves)), dtype=np.int64)
            for line in lines:  # root first, so that the deepest shared ancestor is written last
                shared = (line[:, None] == line[None, :]) & (line[:, None] != -1)
                np.copyto(result, heights[line][:, None], where=shared)
            self._lca_heights = _frozen(result)
        return self._lca_heights

    # -- other forms

    def truncate(self, tier: int) -> Self:
        """Return the taxonomy of tiers 0 to tier; its leaves are the classes of that tier, in the same order.

        Nodes keep ids, names and definitions, and the taxonomy its name. Nodes below the tier are dropped.
        """
        below = self._class_of_node(self._tier(tier)) != -1
        below[[self._index[node_id] for node_id in self._tiers[tier]]] = False
        kept = np.flatnonzero(~below)
        position = {-1: -1, **{int(i): new for new, i in enumerate(kept)}}
        return type(self)(
            name=self._name,
            nodes=[self._nodes[i] for i in kept],
            parents=[position[parent] for parent in self._parents[kept].tolist()],
            leaves=self._tiers[tier],
            tiers=self._tiers[: tier + 1],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the taxonomy as a JSON document, which `from_dict` reads."""
        nodes = []
        for node, parent in zip(self._nodes, self._parents.tolist(), strict=True):
            above = None if parent == -1 else self._nodes[parent].id
            nodes.append({"id": node.id, "name": node.name, "definition": node.definition, "parent": above})
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self._name,
            "nodes": nodes,
            "leaves": list(self._leaves),
            "tiers": [list(tier) for tier in self._tiers],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read a JSON document made by `to_dict`; raises TaxonomyError that names what is wrong."""
        document, problems = read_document(data)
        if document is None:
            raise TaxonomyError(problems[0].message)
        return cls(
            name=document.name,
            nodes=[Node(*node) for node in document.nodes],
            parents=document.parents,
            leaves=document.leaves,
            tiers=document.tiers,
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the taxonomy as JSON, whole or not at all; raises TaxonomyError where that fails."""
        write_document(self.to_dict(), path)

    # -- Python

    def __eq__(self, other: object) -> bool:
        return self._content() == other._content() if isinstance(other, Taxonomy) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._content())

    def __repr__(self) -> str:
        return f"Taxonomy({self._name!r}, tiers of {' / '.join(map(str, self.num_classes))})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_dict, (self.to_dict(),)  # through the constructor: its arrays stay read-only

    def _content(self) -> tuple[Any, ...]:
        return self._name, self._nodes, self._parents.tobytes(), self._leaves, self._tiers

    # -- helpers

    def _tier(self, tier: int) -> int:
        if not 0 <= tier < self.num_tiers:
            has = "only tier 0" if self.num_tiers == 1 else f"tiers 0 to {self.num_tiers - 1}"
            raise TaxonomyError(f"tier {tier} does not exist; this taxonomy has {has}")
        return operator.index(tier)

    def _leaf(self, leaf: str | int) -> int:
        if isinstance(leaf, str):
            if leaf not in self._leaf_index:
                kind = "is not a leaf" if leaf in self._index else "does not exist"
                raise TaxonomyError(f"leaf {leaf!r} {kind} in taxonomy {self._name!r}{self._hint(leaf)}")
            return self._leaf_index[leaf]
        if not 0 <= leaf < len(self._leaves):
            raise TaxonomyError(
                f"leaf {leaf} does not exist; this taxonomy has leaves 0 to {len(self._leaves) - 1}"
            )
        return operator.index(leaf)

    def _hint(self, node_id: object) -> str:
        by_name = [node.id for node in self._nodes if node.name == node_id and node.id != node_id]
        close = by_name or difflib.get_close_matches(str(node_id), self._index, n=1)
        return f"; did you mean {close[0]!r}?" if close else ""

    def _lca(self, a: str, b: str) -> int:
        i, j = self.index(a), self.index(b)
        while i != j:  # a parent's index is smaller than its child's
            if i > j:
                i = int(self._parents[i])
            else:
                j = int(self._parents[j])
        return i

    def _class_of_node(self, tier: int) -> npt.NDArray[np.int64]:
        """Class index of every node in a tier, -1 above its classes: shape (num_nodes,)."""
        position = {self._index[node_id]: j for j, node_id in enumerate(self._tiers[tier])}
        classes = np.full(len(self._nodes), -1, dtype=np.int64)
        for i, parent in enumerate(self._parents.tolist()):
            classes[i] = position.get(i, classes[parent] if parent >= 0 else -1)
        return classes

    def _lines(self, leaves: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Ancestor-or-self of each leaf at each depth, -1 below it: shape (max depth + 1, num_leaves)."""
        lines = np.full((max(self._depths) + 1, len(leaves)), -1, dtype=np.int64)
        for column, leaf in enumerate(leaves):
            node = int(leaf)
            while node != -1:
                lines[self._depths[node], column] = node
                node = int(self._parents[node])
        return lines


def _frozen(array: _Array) -> _Array:
    array.setflags(write=False)
    return array


def _depths_and_heights(parents: Sequence[int]) -> tuple[list[int], list[int]]:
    depths, heights = [0] * len(parents), [0] * len(parents)
    for i in range(1, len(parents)):
        depths[i] = depths[parents[i]] + 1
    for i in range(len(parents) - 1, 0, -1):
        heights[parents[i]] = max(heights[parents[i]], heights[i] + 1)
    return depths, heights
