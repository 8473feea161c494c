"""Building a taxonomy from WordNet: from synset ids, or from English class names.

Three steps: give each synset one parent (`tree_parents`), cut tiers (`_cut`), make and name nodes (`_assemble`).
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from taxonomy import naming, wordnet
from taxonomy.anchors import Anchor, Anchors, anchored, assign, read_anchors
from taxonomy.errors import TaxonomyError
from taxonomy.groups import GRAFTS, ROOT, GroupNamer, LeafGroup, SynsetTree, by_first_leaf, reached
from taxonomy.naming import NamedNode
from taxonomy.senses import SenseChoice, choose_senses
from taxonomy.tiers import automatic_sizes, split
from taxonomy.tree import Node, Taxonomy
from taxonomy.validation import listed


def from_synsets(
    ids: Sequence[str],
    *,
    tiers: Sequence[int] | None = None,
    anchors: Anchors | None = None,
    name: str = "",
    names: Mapping[str, str] | None = None,
) -> Taxonomy:
    """Build a taxonomy whose leaves are WordNet 3.0 noun synsets.

    A leaf that is an ancestor of another leaf stays a leaf and means the rest of its kind: it is called "other dog",
    and a node "n02084071-group" named "dog" holds both. The classes of a tier are in the order of their first leaves.

    Args:
        ids: synset ids of the leaves, `n` and 8 digits, in the order of the finest classes.
        tiers: wanted numbers of classes of the coarser tiers, coarse to fine, without the leaves; met about. None
            takes sizes from the number of leaves, or as many tiers as anchors has.
        anchors: per coarser tier its classes, which win over the tier's wanted size: synset ids, or mappings with "id"
            and, if wanted, "name", "of" (the synsets it collects) and "under" (an anchor of the tier before). Leaves
            they leave over go to "other ..." classes. None or an empty list leaves a tier automatic.
        name: name of the taxonomy.
        names: what leaves are called, where that is not their first lemma: id -> name. Where a name is not unique,
            the leaf gets an addition, as in "crane (bird)".

    Raises:
        TaxonomyError: ids are unknown or listed twice, sizes do not grow, anchors are wrong or have no leaves, or the
            leaves have too little in common for the wanted tiers.
    """
    _check_ids(ids)
    given = read_anchors(tier or () for tier in anchors or ())
    sizes = _sizes(len(ids), tiers, given)
    given += [[] for _ in sizes[len(given) :]]
    tree = SynsetTree(tree_parents(ids), ids)
    namer = GroupNamer(tree, {*ids, *(anchor.id for tier in given for anchor in tier)})
    cut = _cut(tree, sizes, given, namer, strict=tiers is not None)
    return _assemble(tree, cut, namer, name, names or {})


def from_names(
    names: Sequence[str],
    *,
    tiers: Sequence[int] | None = None,
    anchors: Anchors | None = None,
    pins: Mapping[str, str] | None = None,
    name: str = "",
) -> tuple[Taxonomy, tuple[SenseChoice, ...]]:
    """Build a taxonomy from English class names, like "tabby cat", "school_bus" or "ice-cream".

    Args:
        names: class names, in the order of the finest classes; see `taxonomy.senses.choose_senses` for the rule that
            picks the sense of each.
        tiers: as in `from_synsets`.
        anchors: as in `from_synsets`.
        pins: synset id for each name whose sense the caller decides.
        name: name of the taxonomy.

    Returns:
        The taxonomy, and per name the sense chosen and those rejected, with definitions.

    Raises:
        TaxonomyError: names are not in WordNet (all are listed), two names mean the same synset, a pin is wrong, or
            the tiers cannot be made.
    """
    choices = choose_senses(names, pins=pins or {})
    first: dict[str, str] = {}
    for choice in choices:
        other = first.setdefault(choice.synset.id, choice.name)
        if other != choice.name:
            raise TaxonomyError(
                f"{other!r} and {choice.name!r} both mean {choice.synset.id} ({choice.synset.definition}); "
                f"remove one, or pin another sense"
            )
    synset_ids = [choice.synset.id for choice in choices]
    return from_synsets(synset_ids, tiers=tiers, anchors=anchors, name=name), choices


def _check_ids(ids: Sequence[str]) -> None:
    if not ids:
        raise TaxonomyError("there are no classes; give at least one synset id")
    unknown = [synset_id for synset_id in ids if wordnet.synset(synset_id) is None]
    if unknown:
        form = (
            ""
            if all(re.fullmatch(r"n\d{8}", i) for i in unknown)
            else "; write n and 8 digits, like n02084071"
        )
        what = "is no noun synset" if len(unknown) == 1 else "are no noun synsets"
        raise TaxonomyError(f"{listed(unknown, 8)} {what} of WordNet 3.0{form}")
    twice = [synset_id for synset_id, count in Counter(ids).items() if count > 1]
    if twice:
        raise TaxonomyError(f"listed more than once: {listed(twice, 8)}; a class stands once")
    if ROOT in ids:
        raise TaxonomyError(f"{ROOT} (entity) is everything, so it is no class; remove it")


def _sizes(
    num_leaves: int, tiers: Sequence[int] | None, anchors: Sequence[Sequence[Anchor]]
) -> tuple[int, ...]:
    if tiers is None:
        if not anchors:
            return automatic_sizes(num_leaves)
        return tuple(len(tier) or _automatic_size(k, num_leaves) for k, tier in enumerate(anchors))
    sizes = tuple(int(size) for size in tiers)
    if len(anchors) > len(sizes):
        raise TaxonomyError(
            f"anchors for {len(anchors)} tiers but sizes for {len(sizes)}; give as many sizes"
        )
    wrong = any(size < 2 for size in sizes) or any(b <= a for a, b in itertools.pairwise(sizes))
    if wrong or (sizes and sizes[-1] >= num_leaves):
        text = ", ".join(map(str, sizes))
        raise TaxonomyError(
            f"tier sizes {text} for {num_leaves} leaves: they start at 2, grow, and stay below the leaves"
        )
    return sizes


def _automatic_size(tier: int, num_leaves: int) -> int:
    """Size of a tier that has no anchors among tiers that have some."""
    sizes = automatic_sizes(num_leaves)
    return sizes[min(tier, len(sizes) - 1)] if sizes else 2


# ---------------------------------------------------------------- WordNet's graph becomes a tree


def tree_parents(leaves: Sequence[str]) -> dict[str, str]:
    """Give every synset above the leaves one parent, and leave out synsets whose words nobody uses.

    The rule: of several hypernyms a synset goes under the one with the most company, that is, whose own ancestors
    (not those that all its hypernyms share, and not `naming.UNSAID`) include the one with the most leaves below it;
    of equals under the deeper one, then the one with the smaller id. Then the children of an unsaid synset move up to
    the nearest ancestor that is said, or to the root. A leaf that other leaves lie below moves into a new node
    "<id>-group" together with them.

    Args:
        leaves: synset ids.

    Returns:
        Parent of every leaf and of every node above the leaves, but the root n00001740.
    """
    company = Counter(above for leaf in leaves for above in reached(leaf))
    chosen: dict[str, str] = {}
    for leaf in leaves:
        node = leaf
        while node != ROOT and node not in chosen:
            chosen[node] = _parent(node, company)
            node = chosen[node]
    kept = set(leaves)
    said = {node for node in chosen if node in kept or node not in naming.UNSAID}
    parents: dict[str, str] = {}
    for node in sorted(said):
        above = chosen[node]
        while above != ROOT and above not in said:
            above = chosen[above]
        parents[node] = above
    above_others = set(parents.values())
    groups = {leaf: f"{leaf}-group" for leaf in leaves if leaf in above_others}
    parents = {node: groups.get(above, above) for node, above in parents.items()}
    for leaf, group in groups.items():
        parents[group], parents[leaf] = parents[leaf], group
    return parents


def _parent(node: str, company: Mapping[str, int]) -> str:
    hypernyms = _hypernyms(node)
    lines = {hypernym: reached(hypernym) for hypernym in hypernyms}
    shared = frozenset.intersection(*lines.values())

    def rank(hypernym: str) -> tuple[int, int, str]:
        own = lines[hypernym] - shared - naming.UNSAID
        return -max((company[a] for a in own), default=0), -wordnet.depth(hypernym), hypernym

    return min(hypernyms, key=rank)


def _hypernyms(node: str) -> tuple[str, ...]:
    return (GRAFTS[node],) if node in GRAFTS else wordnet.known(node).parents


# ---------------------------------------------------------------- tiers, and the tree with them


def _cut(
    tree: SynsetTree,
    sizes: Sequence[int],
    given: Sequence[Sequence[Anchor]],
    namer: GroupNamer,
    *,
    strict: bool,
) -> list[list[LeafGroup]]:
    holders = assign(tree.leaves, given)
    for tier, holder in zip(given, holders, strict=True):
        for anchor in tier:
            mine = frozenset(leaf for leaf, held in holder.items() if held == anchor)
            if len(mine) > 1:
                namer.reserve(LeafGroup(anchor.id, anchor.name, mine))
    cut: list[list[LeafGroup]] = []
    for k, size in enumerate(sizes):
        before = cut[-1] if cut else [LeafGroup(ROOT, namer.word(ROOT), frozenset(tree.leaves))]
        if given[k]:
            groups = anchored(tree, before, given[k], holders[k], namer)
        else:
            groups = _yield_to_anchors(
                split(tree, before, size, namer), given[k + 1 :], holders[k + 1 :], namer
            )
            same = len(groups) == len(before)
            if strict and (same or 2 * len(groups) < size):
                raise TaxonomyError(
                    f"these {len(tree.leaves)} classes do not fall into about {size} groups in WordNet; "
                    "ask for fewer tiers or other sizes, or give the groups as anchors"
                )
            if same:
                continue
        cut.append(by_first_leaf(groups, tree.order))
    return cut


def _yield_to_anchors(
    groups: list[LeafGroup],
    given: Sequence[Sequence[Anchor]],
    holders: Sequence[Mapping[str, Anchor]],
    namer: GroupNamer,
) -> list[LeafGroup]:
    """Keep the leaves of a finer tier's anchor together: all move to the automatic group that has most of them.

    That group keeps its name. A single leaf that another group keeps moves along.
    """
    for anchors, holder in zip(given, holders, strict=True):
        for anchor in anchors:
            mine = frozenset(leaf for leaf, held in holder.items() if held == anchor)
            if not mine or any(mine <= group.leaves for group in groups):
                continue
            home = max(groups, key=lambda group: len(group.leaves & mine))
            whole = home.leaves | mine
            kept: list[LeafGroup] = []
            for group in groups:
                rest = group.leaves - mine
                if group is home or rest == group.leaves:
                    kept += [] if group is home else [group]
                elif len(rest) > 1:
                    kept.append(namer.group(rest))
                else:
                    whole |= rest
            groups = [*kept, namer.changed(home, whole)]
    return groups


def _assemble(
    tree: SynsetTree, cut: Sequence[Sequence[LeafGroup]], namer: GroupNamer, name: str, own: Mapping[str, str]
) -> Taxonomy:
    """Put classes, the WordNet nodes that cut across none of them, and leaves together into one tree."""
    leaves = set(tree.leaves)
    everything = frozenset(leaves)
    labels: dict[frozenset[str], tuple[str, str]] = {}
    for group in (group for groups in cut for group in groups):
        if len(group.leaves) > 1:
            clash = group.id in leaves
            labels.setdefault(group.leaves, (f"{group.id}-group" if clash else group.id, group.name))
    classes = set(labels)
    used = {node_id for node_id, _ in labels.values()} | leaves
    for node in sorted(tree.below, key=lambda node: (-wordnet.depth(node.removesuffix("-group")), node)):
        below = tree.below[node]
        if len(below) > 1 and node not in used | {ROOT} and below not in labels and _fits(below, cut):
            labels[below] = (node, namer.word(node))
    root = (
        labels.pop(everything)
        if everything in labels and everything not in classes
        else (ROOT, namer.word(ROOT))
    )
    for leaf in tree.leaves:
        general = f"{leaf}-group" in tree.below
        word = own.get(leaf) or wordnet.known(leaf).lemmas[0]
        labels[frozenset({leaf})] = (leaf, ("other " if general else "") + word)
    order, parents = _nested(labels, everything, tree.order)
    ids = [root[0], *(labels[found][0] for found in order)]
    wanted = [root[1], *(labels[found][1] for found in order)]
    is_class = [False, *(found in classes or len(found) == 1 for found in order)]
    names = naming.unique_names(
        [NamedNode(*node) for node in zip(ids, wanted, is_class, parents, strict=True)]
    )
    nodes = [Node(node_id, found, _definition(node_id)) for node_id, found in zip(ids, names, strict=True)]
    tiers = [[labels[group.leaves][0] for group in groups] for groups in cut]
    return Taxonomy(name=name, nodes=nodes, parents=parents, leaves=tree.leaves, tiers=[*tiers, tree.leaves])


def _fits(leaves: frozenset[str], cut: Sequence[Sequence[LeafGroup]]) -> bool:
    """Whether each tier has these leaves inside one class, or made of whole classes."""
    for groups in cut:
        touched = [group.leaves for group in groups if group.leaves & leaves]
        if len(touched) > 1 and not all(found <= leaves for found in touched):
            return False
    return True


def _nested(
    sets: Iterable[frozenset[str]], everything: frozenset[str], order: Mapping[str, int]
) -> tuple[list[frozenset[str]], list[int]]:
    """Order nested sets depth first, siblings by first leaf; and the position of each one's parent, 0 for the root."""
    children: dict[frozenset[str], list[frozenset[str]]] = {}
    smallest = dict.fromkeys(
        everything, frozenset[str]()
    )  # per leaf the smallest set so far; empty is the root
    first = {found: min(order[leaf] for leaf in found) for found in sets}
    for found in sorted(first, key=lambda found: (-len(found), first[found])):
        children.setdefault(smallest[next(iter(found))], []).append(found)
        smallest.update(dict.fromkeys(found, found))
    ordered: list[frozenset[str]] = []
    parents = [-1]
    waiting = [(found, 0) for found in sorted(children[frozenset()], key=first.__getitem__, reverse=True)]
    while waiting:
        found, parent = waiting.pop()
        ordered.append(found)
        parents.append(parent)
        below = sorted(children.get(found, []), key=first.__getitem__, reverse=True)
        waiting += [(child, len(ordered)) for child in below]
    return ordered, parents


def _definition(node_id: str) -> str:
    found = wordnet.synset(node_id.removesuffix("-group"))
    return found.definition if found and node_id != ROOT else ""
