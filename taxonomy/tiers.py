"""Cutting the leaves into tiers: automatic ones of a wanted size, and those whose classes the author gives as anchors.

A tier is a list of groups of leaves. Each rule here refines the groups of the tier before, so tiers nest by
construction. Works on the tree of `taxonomy.build`, given as a mapping child -> parent; reads no files.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taxonomy import naming, wordnet
from taxonomy.errors import TaxonomyError

ROOT = wordnet.ROOT

# Hypernyms for WordNet's own where people see things otherwise.
GRAFTS = {
    "n07555863": "n00021265",  # solid food is food
    "n04576211": "n04524313",  # wheeled vehicle is a vehicle, no container
    "n04019101": "n04524313",  # so is public transport
    "n03380867": "n03051540",  # footwear is clothing
}


@dataclass(frozen=True, slots=True)
class Group:
    """A class of a tier before it is a node: its id, display name and leaves."""

    id: str
    name: str
    leaves: frozenset[str]


@dataclass(frozen=True, slots=True)
class Anchor:
    """A class that the author of a tier gives.

    It holds the leaves that reach one of the synsets `of` by any hypernym path, or are one. `under` may name an
    anchor of the tier before; then all its leaves go there, whatever else they reach.
    """

    id: str
    name: str
    of: frozenset[str]
    under: str | None = None


class Tree:
    """The tree the leaves hang in: child -> parent up to the root, with the leaves below each node.

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
        """The node and its ancestors up to the root."""
        line = [node]
        while line[-1] in self.parents:
            line.append(self.parents[line[-1]])
        return line

    def top(self, leaves: frozenset[str]) -> str:
        """The lowest node that lies above all of these leaves (or is the only one)."""
        return next(node for node in self.line(min(leaves)) if leaves <= self.below[node])

    def parts(self, leaves: frozenset[str]) -> list[frozenset[str]]:
        """Cut leaves apart at their lowest common node, one part per child; in the order of the leaves."""
        top = self.top(leaves)
        parts: dict[str, set[str]] = {}
        for leaf in sorted(leaves, key=self.order.__getitem__):
            line = self.line(leaf)
            parts.setdefault(line[max(line.index(top) - 1, 0)], set()).add(leaf)
        return [frozenset(part) for part in parts.values()]


def reached(synset_id: str) -> frozenset[str]:
    """Ids of a synset and of everything above it, by every hypernym path and by `GRAFTS`."""
    found = wordnet.ancestors(synset_id)
    return found.union(*(wordnet.ancestors(over) for low, over in GRAFTS.items() if low in found))


# ---------------------------------------------------------------- automatic tiers


def automatic_sizes(num_leaves: int) -> tuple[int, ...]:
    """Sizes of the coarser tiers for a number of leaves: about 12 and 41 for 200, 20 and 126 for 1000.

    The first is 2·n^⅓, at most half of the leaves, the second n^0.7; one is left out where it would not be 2, not at
    least double the one before, or more than half of the leaves. So 1 to 3 leaves make one tier, 4 to about 40 two,
    more make three.
    """
    sizes: list[int] = []
    for size in (min(round(2 * num_leaves ** (1 / 3)), num_leaves // 2), round(num_leaves**0.7)):
        if 2 <= size <= num_leaves / 2 and (not sizes or size >= 2 * sizes[-1]):
            sizes.append(size)
    return tuple(sizes)


def split(tree: Tree, before: Sequence[Group], size: int, namer: "Namer") -> list[Group]:
    """Refine groups into about `size` groups.

    Splits the largest group that can be split, again and again, until the wanted size is met as nearly as it can be.
    A group falls into the parts below its lowest common node. Parts smaller than a quarter of the average group (at
    least 2) are folded into one "other ..." group; where that would be a single leaf, it joins the nearest part
    (`nearest`), which keeps its name.
    """
    smallest = max(2, round(len(tree.leaves) / (4 * size)))
    done: list[frozenset[str]] = []
    waiting = [group.leaves for group in before]
    joined: dict[frozenset[str], frozenset[str]] = {}  # leaves with a stray -> the part that gives the name
    while waiting and len(done) + len(waiting) < size:
        waiting.sort(key=lambda leaves: (-len(leaves), tree.order[_first(tree, leaves)]))
        largest = waiting.pop(0)
        parts, stray = _split_once(tree, largest, smallest)
        if stray is not None:
            home = nearest(stray, parts)
            joined[parts[home] | {stray}] = parts[home]
            parts[home] |= {stray}
        count = len(done) + len(waiting)
        if len(parts) < 2 or count + len(parts) - size > size - (count + 1):
            done.append(largest)  # it cannot be split, or doing so would miss the size by more
        else:
            waiting += parts
    kept = {group.leaves: group for group in before}
    groups = []
    for leaves in (*done, *waiting):
        named = joined.get(leaves, leaves)
        whole = next(group for group in before if leaves <= group.leaves)
        near = whole if whole.leaves <= tree.below[tree.top(named)] else None
        new = kept.get(leaves) or namer.group(named, near)
        groups.append(new if new.leaves == leaves else namer.changed(new, leaves))
    return groups


def nearest(leaf: str, groups: Sequence[frozenset[str]]) -> int:
    """Position of the group with the nearest relative of a leaf; the first of equals.

    The nearest relative is the one whose lowest common ancestor with the leaf, by any hypernym path, has the fewest
    synsets below it.
    """
    above = reached(leaf)
    below = wordnet.num_below()
    return min(
        range(len(groups)), key=lambda k: min(below[a] for other in groups[k] for a in above & reached(other))
    )


def _split_once(tree: Tree, leaves: frozenset[str], smallest: int) -> tuple[list[frozenset[str]], str | None]:
    """Large parts and at most one leftover of at least 2 leaves, and a single leaf that is left over.

    Where that cannot be, the leaves themselves as the one part.
    """
    parts = tree.parts(leaves)
    while True:
        large = sorted((part for part in parts if len(part) >= smallest), key=lambda p: (-len(p), min(p)))
        rest = frozenset(leaf for part in parts if len(part) < smallest for leaf in part)
        if not large:
            return [leaves], None
        if len(rest) != 1:
            return ([*large, rest] if rest else large), None
        if len(large) > 1:
            return large, min(rest)
        deeper = tree.parts(large[0])  # one large part and one stray leaf: look inside the part
        if len(deeper) < 2:
            return [leaves], None
        parts = [*deeper, rest]


# ---------------------------------------------------------------- anchors


def read_anchors(anchors: Iterable[Iterable[str | Mapping[str, Any]]]) -> list[list[Anchor]]:
    """Take anchors as an author writes them: synset ids, or mappings with "id" and, if wanted, "name", "of", "under".

    Raises:
        TaxonomyError: a synset does not exist, an id is there twice, a made-up id has no name or no synsets, or
            `under` names no anchor of the tier before.
    """
    tiers: list[list[Anchor]] = []
    for k, entries in enumerate(anchors):
        tier: list[Anchor] = []
        above = {anchor.id for anchor in tiers[k - 1]} if k else set()
        for entry in entries:
            anchor = _anchor(entry if isinstance(entry, Mapping) else {"id": entry}, k)
            if any(anchor.id == other.id for other in tier):
                raise TaxonomyError(f"anchor {anchor.id!r} stands twice in tier {k}; remove one")
            if anchor.under is not None and anchor.under not in above:
                raise TaxonomyError(
                    f"anchor {anchor.id!r} is under {anchor.under!r}, which tier {k - 1} does not have"
                )
            tier.append(anchor)
        tiers.append(tier)
    return tiers


def _anchor(entry: Mapping[str, Any], tier: int) -> Anchor:
    unknown = sorted(set(entry) - {"id", "name", "of", "under"})
    if "id" not in entry or unknown:
        wrong = f"has the unknown key {unknown[0]!r}" if unknown else "has no id"
        raise TaxonomyError(f"an anchor of tier {tier} {wrong}; write id and, if wanted, name, of, under")
    anchor_id = str(entry["id"])
    found = wordnet.synset(anchor_id)
    of = frozenset(entry.get("of") or ([anchor_id] if found else []))
    wrong_ids = sorted(synset_id for synset_id in of if wordnet.synset(synset_id) is None)
    if wrong_ids:
        raise TaxonomyError(
            f"anchor {anchor_id!r} needs {wrong_ids[0]!r}, which is no noun synset of WordNet 3.0"
        )
    if not of or not (found or entry.get("name")):
        raise TaxonomyError(
            f"anchor {anchor_id!r} is no noun synset of WordNet 3.0; correct it, or give it a name and synsets (of)"
        )
    return Anchor(anchor_id, str(entry.get("name") or naming.word(anchor_id)), of, entry.get("under"))


def place(synset_id: str, anchors: Sequence[Sequence[Anchor]]) -> list[Anchor | None]:
    """Say which anchor of each tier holds a synset, also one that is no leaf of any tree; None where none does.

    In a tier the first anchor listed wins. An anchor that says `under` decides the tier before.
    """
    above = reached(synset_id)
    found: list[Anchor | None] = [next((a for a in tier if a.of & above), None) for tier in anchors]
    for k in range(len(anchors) - 1, 0, -1):
        anchor = found[k]
        if anchor is not None and anchor.under is not None:
            found[k - 1] = next((a for a in anchors[k - 1] if a.id == anchor.under), None)
    return found


def assign(leaves: Sequence[str], anchors: Sequence[Sequence[Anchor]]) -> list[dict[str, Anchor]]:
    """Give leaves their anchors, tier by tier, so that the anchors nest.

    Starts from `place`. An anchor that does not say `under` has its home in that anchor of the tier before which
    holds most of its leaves (the first listed of equals). It takes along the leaves that no anchor holds there, and
    gives up those that another one holds: the coarser tier decides.
    """
    placed = {leaf: place(leaf, anchors) for leaf in leaves}
    home: dict[tuple[int, str], Anchor] = {}
    for k in range(len(anchors) - 1, 0, -1):
        for anchor in anchors[k]:
            mine = [leaf for leaf in leaves if placed[leaf][k] == anchor]
            votes = Counter(a.id for leaf in mine if (a := placed[leaf][k - 1]) is not None)
            if not votes:
                continue
            best = max(anchors[k - 1], key=lambda a: votes[a.id])  # max keeps the first of equals
            home[k, anchor.id] = best
            for leaf in mine:
                placed[leaf][k - 1] = placed[leaf][k - 1] or best
    result: list[dict[str, Anchor]] = [{} for _ in anchors]
    for leaf in leaves:
        for k, mine_here in enumerate(placed[leaf]):
            if mine_here and (k == 0 or home.get((k, mine_here.id)) == result[k - 1].get(leaf)):
                result[k][leaf] = mine_here
    return result


def anchored(
    tree: Tree,
    before: Sequence[Group],
    anchors: Sequence[Anchor],
    holder: Mapping[str, Anchor],
    namer: "Namer",
) -> list[Group]:
    """Refine groups by anchors.

    Leaves that no anchor holds go to the nearest node above them that also has anchored leaves below it, as "other
    <its name>"; a single leaf goes with the leftover of the whole group. A group without any anchor stays as it is.

    Raises:
        TaxonomyError: no leaf came to an anchor.
    """
    groups: list[Group] = []
    for group in before:
        held: dict[str, set[str]] = {}
        for leaf in group.leaves:
            if leaf in holder:
                held.setdefault(holder[leaf].id, set()).add(leaf)
        if not held:
            groups.append(group)
            continue
        groups += [Group(a.id, a.name, frozenset(held[a.id])) for a in anchors if a.id in held]
        covered = frozenset(leaf for leaf in group.leaves if leaf in holder)
        groups += [
            namer.group(rest, near=group) for rest in _leftovers(tree, group.leaves - covered, covered)
        ]
    got = {group.id for group in groups}
    empty = [anchor for anchor in anchors if anchor.id not in got]
    if empty:
        raise TaxonomyError(
            f"no leaf came to anchor {empty[0].id!r} ({empty[0].name}): none is below it, or anchors listed before "
            "hold them all; remove it or list it earlier"
        )
    return groups


def _leftovers(tree: Tree, leaves: frozenset[str], covered: frozenset[str]) -> list[frozenset[str]]:
    near: dict[str, set[str]] = {}
    for leaf in leaves:
        near.setdefault(next(n for n in tree.line(leaf) if tree.below[n] & covered or n == ROOT), set()).add(
            leaf
        )
    groups = [frozenset(found) for found in near.values() if len(found) > 1]
    strays = frozenset(leaf for found in near.values() if len(found) == 1 for leaf in found)
    if len(strays) == 1 and groups:
        smallest = min(groups, key=lambda found: (len(found), min(found)))
        groups[groups.index(smallest)] = smallest | strays
    elif strays:
        groups.append(strays)
    return sorted(groups, key=lambda found: tree.order[_first(tree, found)])


# ---------------------------------------------------------------- ids and names of groups


class Namer:
    """Gives groups that no author named their id and name; the same leaves always get the same."""

    def __init__(self, tree: Tree, used: Iterable[str]) -> None:
        """`used` are ids that are taken: those of leaves and anchors."""
        self._tree = tree
        self._used = set(used)
        self._groups: dict[frozenset[str], Group] = {}
        self._anchors: set[str] = set()

    def group(self, leaves: frozenset[str], near: Group | None = None) -> Group:
        """Name a group: the synset whose leaves these are, else "other ..." after the nearest node above them.

        Args:
            leaves: the leaves of the group.
            near: the class of the tier before that the group is a leftover of.
        """
        if leaves not in self._groups:
            self._groups[leaves] = self._made(leaves, near)
        return self._groups[leaves]

    def reserve(self, group: Group) -> None:
        """Keep the id and name of an anchor for its leaves, also in an automatic tier above it."""
        self._anchors.add(group.id)
        self._groups.setdefault(group.leaves, group)

    def changed(self, group: Group, leaves: frozenset[str]) -> Group:
        """The group with other leaves; it keeps its name, and its id if that is no anchor's."""
        if group.id in self._anchors:
            self._groups[leaves] = self._new(f"{group.id}-wide", group.name, leaves)
        else:
            self._groups.pop(group.leaves, None)  # its old leaves give the id up
            self._groups[leaves] = Group(group.id, group.name, leaves)
        return self._groups[leaves]

    def _made(self, leaves: frozenset[str], near: Group | None) -> Group:
        tree = self._tree
        top = tree.top(leaves)
        if len(leaves) == 1:
            return Group(top, naming.word(top), leaves)
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

    def _new(self, group_id: str, name: str, leaves: frozenset[str]) -> Group:
        number = 1
        unique = group_id
        while unique in self._used:
            number += 1
            unique = f"{group_id}-{number}"
        if number > 1:  # "other thing" is taken by a class above: say what is in this one
            words = [naming.word(leaf) for leaf in sorted(leaves, key=self._tree.order.__getitem__)]
            name = naming.either(words) if len(words) <= 3 else f"{', '.join(words[:2])} and more"
        self._used.add(unique)
        return Group(unique, name, leaves)

    def word(self, node: str) -> str:
        """Lay word for a node of the tree; nodes above a leaf that is itself general carry that leaf's word."""
        return naming.word(node.removesuffix("-group"))


def _first(tree: Tree, leaves: frozenset[str]) -> str:
    return min(leaves, key=tree.order.__getitem__)


def by_first_leaf(groups: Iterable[Group], order: Mapping[str, int]) -> list[Group]:
    """Sort groups by their first leaf: the order of a tier's classes."""
    key: Callable[[Group], int] = lambda group: min(order[leaf] for leaf in group.leaves)  # noqa: E731
    return sorted(groups, key=key)
