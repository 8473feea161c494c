"""Automatic tiers: leaves cut into about a wanted number of groups, which refine the groups of the tier before."""

from collections.abc import Sequence

from taxonomy import wordnet
from taxonomy.groups import GroupNamer, LeafGroup, SynsetTree, reached


def automatic_sizes(num_leaves: int) -> tuple[int, ...]:
    """Choose the sizes of the coarser tiers for a number of leaves: 12 and 41 for 200, 20 and 126 for 1000.

    The first is 2·n^⅓, at most half of the leaves, the second n^0.7; one is left out where it would not be 2, not at
    least double the one before, or more than half of the leaves. So 1 to 3 leaves make one tier, 4 to about 40 two,
    more make three.
    """
    sizes: list[int] = []
    for size in (min(round(2 * num_leaves ** (1 / 3)), num_leaves // 2), round(num_leaves**0.7)):
        if 2 <= size <= num_leaves / 2 and (not sizes or size >= 2 * sizes[-1]):
            sizes.append(size)
    return tuple(sizes)


def split(tree: SynsetTree, before: Sequence[LeafGroup], size: int, namer: GroupNamer) -> list[LeafGroup]:
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
        waiting.sort(key=lambda leaves: (-len(leaves), tree.order[tree.first_leaf(leaves)]))
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
    """Return the position of the group with the nearest relative of a leaf; the first of equals.

    The nearest relative is the one whose lowest common ancestor with the leaf, by any hypernym path, has the fewest
    synsets below it.
    """
    above = reached(leaf)
    below = wordnet.num_below()
    return min(
        range(len(groups)), key=lambda k: min(below[a] for other in groups[k] for a in above & reached(other))
    )


def _split_once(
    tree: SynsetTree, leaves: frozenset[str], smallest: int
) -> tuple[list[frozenset[str]], str | None]:
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
