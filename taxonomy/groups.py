"""Groups of leaves, which become the classes of a tier; the tree that they are cut from; their ids and names."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from taxonomy import naming, wordnet

ROOT = wordnet.ROOT

# Hypernyms for WordNet's own where people see things otherwise.
GRAFTS = {
    "n07555863": "n00021265",  # solid food is food
    "n04576211": "n04524313",  # wheeled vehicle is a vehicle, no container
    "n04019101": "n04524313",  # so is public transport
    "n03380867": "n03051540",  # footwear is clothing
}


@dataclass(frozen=True, slots=True)
class LeafGroup:
    """A class of a tier before it is a node: its id, display name and leaves."""

    id: str
    name: str
    leaves: frozenset[str]


class SynsetTree:
    """The tree above the leaves, as child -> parent, with the leaves below each node.

    Args:
        parents: parent of each node; the root is the one without.
        leaves: ids of the leaves in the author's order.
    """

    def __init__(self, parents: Mapping[str, str], leaves: Sequence[str]) -> None:
        """Find the leaves below each node."""
        self.parents = parents
        self.leaves = tuple(leaves)
        self.order = {leaf: i for i, leaf in enumerate(leaves)}
        below: dict[str, set[str]] = {ROOT: set(leaves)}
        for leaf in leaves:
            for node in self.line(leaf):
                below.setdefault(node, set()).add(leaf)
        self.below = {node: frozenset(found) for node, found in below.items()}

    def line(self, node: str) -> list[str]:
        """Return the node and its ancestors, the root last."""
        line = [node]
        while line[-1] in self.parents:
            line.append(self.parents[line[-1]])
        return line

    def top(self, leaves: frozenset[str]) -> str:
        """Return the lowest node above all of these leaves; of a single leaf, the leaf itself."""
        return next(node for node in self.line(min(leaves)) if leaves <= self.below[node])

    def first_leaf(self, leaves: frozenset[str]) -> str:
        """Return the first of some leaves in the author's order."""
        return min(leaves, key=self.order.__getitem__)

    def parts(self, leaves: frozenset[str]) -> list[frozenset[str]]:
        """Split leaves at their lowest common node: one part per child, ordered by first leaf."""
        top = self.top(leaves)
        parts: dict[str, set[str]] = {}
        for leaf in sorted(leaves, key=self.order.__getitem__):
            line = self.line(leaf)
            parts.setdefault(line[max(line.index(top) - 1, 0)], set()).add(leaf)
        return [frozenset(part) for part in parts.values()]


def reached(synset_id: str) -> frozenset[str]:
    """Return the ids of a synset and of everything above it, by every hypernym path and by `GRAFTS`."""
    found = wordnet.ancestors(synset_id)
    return found.union(*(wordnet.ancestors(over) for low, over in GRAFTS.items() if low in found))


class GroupNamer:
    """Gives ids and names to groups that have none; the same leaves always get the same."""

    def __init__(self, tree: SynsetTree, used: Iterable[str]) -> None:
        """`used` are ids that are taken: those of leaves and anchors."""
        self._tree = tree
        self._used = set(used)
        self._groups: dict[frozenset[str], LeafGroup] = {}
        self._anchors: set[str] = set()

    def group(self, leaves: frozenset[str], near: LeafGroup | None = None) -> LeafGroup:
        """Name a group: the synset whose leaves these are, else "other ..." after the nearest node above them.

        Args:
            leaves: the leaves of the group.
            near: the class of the tier before that the group is a leftover of.
        """
        if leaves not in self._groups:
            self._groups[leaves] = self._made(leaves, near)
        return self._groups[leaves]

    def reserve(self, group: LeafGroup) -> None:
        """Keep the id and name of an anchor for its leaves, also in an automatic tier above it."""
        self._anchors.add(group.id)
        self._groups.setdefault(group.leaves, group)

    def changed(self, group: LeafGroup, leaves: frozenset[str]) -> LeafGroup:
        """Return the group with other leaves; it keeps its name, and its id unless that is an anchor's."""
        if group.id in self._anchors:
            self._groups[leaves] = self._new(f"{group.id}-wide", group.name, leaves)
        else:
            self._groups.pop(group.leaves, None)  # its old leaves give the id up
            self._groups[leaves] = LeafGroup(group.id, group.name, leaves)
        return self._groups[leaves]

    def _made(self, leaves: frozenset[str], near: LeafGroup | None) -> LeafGroup:
        tree = self._tree
        top = tree.top(leaves)
        if len(leaves) == 1:
            return LeafGroup(top, naming.word(top), leaves)
        above = tree.line(top)
        if top != ROOT and tree.below[top] == leaves and top not in self._used:
            return self._new(top, self.word(top), leaves)
        if (
            near is not None
            and near.id != ROOT
            and (top == ROOT or near.id in above or near.leaves <= tree.below[top])
        ):
            return self._new(f"{near.id}-other", f"other {near.name.removeprefix('other ')}", leaves)
        return self._new(f"{top}-other", f"other {self.word(top)}", leaves)

    def _new(self, group_id: str, name: str, leaves: frozenset[str]) -> LeafGroup:
        number = 1
        unique = group_id
        while unique in self._used:
            number += 1
            unique = f"{group_id}-{number}"
        if number > 1:  # "other thing" is taken by a class above: say what is in this one
            words = [naming.word(leaf) for leaf in sorted(leaves, key=self._tree.order.__getitem__)]
            name = naming.either(words) if len(words) <= 3 else f"{', '.join(words[:2])} and more"
        self._used.add(unique)
        return LeafGroup(unique, name, leaves)

    def word(self, node: str) -> str:
        """Return the lay word for a node; a node "<id>-group" has the word of its leaf."""
        return naming.word(node.removesuffix("-group"))


def by_first_leaf(groups: Iterable[LeafGroup], order: Mapping[str, int]) -> list[LeafGroup]:
    """Sort groups by their first leaf: the order of a tier's classes."""
    key: Callable[[LeafGroup], int] = lambda group: min(order[leaf] for leaf in group.leaves)  # noqa: E731
    return sorted(groups, key=key)
