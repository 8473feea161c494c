"""Checks of a tree and its tiers: each problem as one line and the place it is about. Works on plain lists."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # line breaks among them
MAX_TIERS = 64
"""Tiers of a taxonomy, at most."""
MAX_DEPTH = 256
"""Nodes above a node, at most; WordNet has 20."""
MAX_PROBLEMS = 1000
"""Problems that are listed, about: a file that is something else would have millions."""
MAX_NAME = 1000
"""Characters of an id or a name: one of megabytes would fill terminals and tables."""
_LONGEST_WAY = 12

Place = tuple[str | int, ...]
"""Keys and positions that lead to a value of the JSON document, like ("nodes", 3, "parent")."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: a line for the user, and the place in the JSON document it is about."""

    message: str
    place: Place = ()


def listed(values: Iterable[str], limit: int = 3) -> str:
    """Quote the first `limit` values and count the rest: "'a', 'b', 'c' and 4 more"."""
    found = values if isinstance(values, Sequence) else list(values)
    more = len(found) - limit
    shown = (repr(value if len(value) <= 80 else f"{value[:80]}…") for value in found[:limit])
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def structure_problems(
    ids: Sequence[str],
    names: Sequence[str],
    parents: Sequence[int],
    leaves: Sequence[str],
    tiers: Sequence[Sequence[str]],
) -> list[Problem]:
    """Say what keeps these parts from being a taxonomy.

    A group of checks runs only when the groups before it found nothing, since it relies on them.

    Args:
        ids: node ids.
        names: display names, as many as ids.
        parents: index of each node's parent, -1 for the root.
        leaves: ids of the classes of the finest tier.
        tiers: ids of the classes of each tier, coarse to fine.

    Returns:
        The problems, in the order they are best mended; empty for a valid taxonomy.
    """
    return (
        node_problems(ids, names)
        or _parent_problems(ids, parents)
        or _leaf_problems(ids, parents, leaves)
        or _tier_problems(ids, parents, leaves, tiers)
    )


def node_problems(ids: Sequence[str], names: Sequence[str]) -> list[Problem]:
    """List empty, repeated, unprintable and endless ids and names of nodes."""
    if not ids:
        return [Problem("there are no nodes; list at least a root and one leaf", ("nodes",))]
    problems: list[Problem] = []
    first_id: dict[str, int] = {}
    first_name: dict[str, int] = {}
    for i, (node_id, name) in enumerate(zip(ids, names, strict=True)):
        if len(problems) >= MAX_PROBLEMS:
            break
        if max(len(node_id), len(name)) > MAX_NAME:
            text = f"node {i} has an id or a name of more than {MAX_NAME:,} characters; shorten it"
            problems.append(Problem(text, ("nodes", i)))
        elif not node_id.strip():
            problems.append(Problem(f"node {i} has an empty id; give it one", ("nodes", i, "id")))
        elif node_id in first_id:
            text = (
                f"duplicate id {node_id!r} (nodes {first_id[node_id]} and {i}); rename or remove one of them"
            )
            problems.append(Problem(text, ("nodes", i, "id")))
        elif not name.strip():
            problems.append(Problem(f"node {node_id!r} has an empty name; give it one", ("nodes", i, "name")))
        elif UNPRINTABLE.search(node_id + name):
            text = f"node {node_id!r} ({name!r}) has a line break or other unprintable character; remove it"
            problems.append(Problem(text, ("nodes", i)))
        elif name in first_name:
            text = (
                f"duplicate display name {name!r} (nodes {ids[first_name[name]]!r} and {node_id!r}); "
                f"names are unique in a taxonomy, so write for example {name + ' (…)'!r}"
            )
            problems.append(Problem(text, ("nodes", i, "name")))
        first_id.setdefault(node_id, i)
        first_name.setdefault(name, i)
    return problems


def _parent_problems(ids: Sequence[str], parents: Sequence[int]) -> list[Problem]:
    if len(parents) != len(ids):
        return [Problem(f"{len(ids)} nodes but {len(parents)} parents; give one parent per node", ("nodes",))]
    problems = []
    for i, parent in enumerate(parents):
        if not -1 <= parent < len(ids):
            text = f"node {ids[i]!r} has the unknown parent {parent}"
            text += f"; use 0 to {len(ids) - 1}, or -1 for the root"
            problems.append(Problem(text, ("nodes", i, "parent")))
    if problems:
        return problems
    for cycle in _cycles(parents):
        way = " -> ".join(ids[i] for i in [*cycle, cycle[0]][:_LONGEST_WAY])
        way += " -> …" if len(cycle) >= _LONGEST_WAY else ""
        text = f"the parents form a cycle ({way}); give one of these nodes a parent outside the cycle"
        problems.append(Problem(text, ("nodes", cycle[0], "parent")))
    if problems:
        return problems
    roots = [i for i, parent in enumerate(parents) if parent == -1]
    if len(roots) > 1:
        count = "two" if len(roots) == 2 else str(len(roots))
        text = f"{count} roots ({listed(ids[i] for i in roots)}); only one node may be without a parent"
        return [Problem(f"{text}: give the others one", ("nodes", roots[1]))]
    for i, parent in enumerate(parents):
        if parent > i:
            text = f"node {ids[i]!r} stands before its parent {ids[parent]!r}"
            problems.append(Problem(f"{text}; list every parent before its children", ("nodes", i)))
    depths = [0] * len(parents)
    for i, parent in enumerate(parents if not problems else ()):
        depths[i] = depths[parent] + 1 if parent >= 0 else 0
        if depths[i] > MAX_DEPTH:
            text = f"node {ids[i]!r} has more than {MAX_DEPTH} nodes above it; a tree is at most so deep"
            return [Problem(text, ("nodes", i, "parent"))]
    return problems


def _cycles(parents: Sequence[int]) -> list[list[int]]:
    """Find the cycles, each as node indices from its smallest one, child before parent."""
    seen = [0] * len(parents)  # 0 or 1 + the start of the walk that came by
    cycles = []
    for start in range(len(parents)):
        node = start
        while node != -1 and not seen[node]:
            seen[node] = start + 1
            node = parents[node]
        if node != -1 and seen[node] == start + 1:
            cycle = [node]
            while parents[cycle[-1]] != node:
                cycle.append(parents[cycle[-1]])
            first = cycle.index(min(cycle))
            cycles.append(cycle[first:] + cycle[:first])
    return cycles


def _leaf_problems(ids: Sequence[str], parents: Sequence[int], leaves: Sequence[str]) -> list[Problem]:
    if not leaves:
        return [Problem("there are no leaves; list the ids of the finest classes in leaves", ("leaves",))]
    index = {node_id: i for i, node_id in enumerate(ids)}
    children: dict[int, list[str]] = {}
    for i, parent in enumerate(parents):
        children.setdefault(parent, []).append(ids[i])
    problems: list[Problem] = []
    for j, leaf in enumerate(leaves):
        if len(problems) >= MAX_PROBLEMS:
            break
        if leaf not in index:
            text = f"leaf {leaf!r} is not a node; add a node with this id or remove it from leaves"
            problems.append(Problem(text, ("leaves", j)))
        elif index[leaf] in children:
            text = (
                f"leaf {leaf!r} has children ({listed(children[index[leaf]])}); "
                "only nodes without children can be leaves: remove it from leaves"
            )
            problems.append(Problem(text, ("leaves", j)))
    problems += _repeats(leaves, "leaves", ("leaves",))
    known = set(leaves)
    for i, node_id in enumerate(ids):
        if i not in children and node_id not in known and len(problems) < MAX_PROBLEMS:
            text = f"node {node_id!r} has no children but is not in leaves; add it there or remove the node"
            problems.append(Problem(text, ("nodes", i)))
    return problems


def _repeats(values: Sequence[str], where: str, place: Place) -> list[Problem]:
    first: dict[str, int] = {}
    problems: list[Problem] = []
    for j, value in enumerate(values):
        if first.setdefault(value, j) != j and len(problems) < MAX_PROBLEMS:
            problems.append(Problem(f"{value!r} stands twice in {where}; remove one of them", (*place, j)))
    return problems


def _tier_problems(
    ids: Sequence[str], parents: Sequence[int], leaves: Sequence[str], tiers: Sequence[Sequence[str]]
) -> list[Problem]:
    if not tiers:
        return [Problem("there are no tiers; list at least one, the leaves", ("tiers",))]
    if len(tiers) > MAX_TIERS:
        return [Problem(f"{len(tiers)} tiers; a taxonomy has at most {MAX_TIERS}", ("tiers",))]
    index = {node_id: i for i, node_id in enumerate(ids)}
    problems = []
    for k, tier in enumerate(tiers):
        if not tier:
            problems.append(Problem(f"tier {k} is empty; list its classes or remove the tier", ("tiers", k)))
        for j, node_id in enumerate(tier):
            if node_id not in index:
                text = f"{node_id!r} in tier {k} is not a node; add a node with this id or remove it here"
                problems.append(Problem(text, ("tiers", k, j)))
        problems += _repeats(tier, f"tier {k}", ("tiers", k))
    if problems:
        return problems
    above: list[int] = []  # of the tier before: each node's ancestor-or-self in it, or -1
    for k, tier in enumerate(tiers):
        found, classes = _classify(ids, index, parents, leaves, tier, k)
        problems += found
        for j, node_id in enumerate(tier):
            if above and above[index[node_id]] == -1 and not problems:
                below = next(c for c in tiers[k - 1] if classes[index[c]] == index[node_id])
                text = (
                    f"tiers do not nest: {node_id!r} of tier {k} lies above {below!r} of tier {k - 1}; "
                    f"use {node_id!r} in tier {k - 1} or classes below {below!r} in tier {k}"
                )
                problems.append(Problem(text, ("tiers", k, j)))
        above = classes
    return problems or _last_tier_problems(leaves, tiers)


def _classify(
    ids: Sequence[str],
    index: dict[str, int],
    parents: Sequence[int],
    leaves: Sequence[str],
    tier: Sequence[str],
    k: int,
) -> tuple[list[Problem], list[int]]:
    """Give every node its class in a tier, and say where a leaf would have none or two."""
    position = {index[node_id]: j for j, node_id in enumerate(tier)}
    classes = [-1] * len(ids)
    problems = []
    for i, parent in enumerate(parents):
        upper = classes[parent] if parent >= 0 else -1
        classes[i] = i if i in position else upper
        if i in position and upper != -1:
            text = (
                f"tier {k} holds {ids[upper]!r} and also {ids[i]!r}, which lies below it; remove one of them"
            )
            problems.append(Problem(text, ("tiers", k, position[i])))
    missing = [leaf for leaf in leaves if classes[index[leaf]] == -1]
    if missing:
        subject = f"leaf {missing[0]!r} has" if len(missing) == 1 else f"leaves {listed(missing)} have"
        text = f"{subject} no class in tier {k}; add the leaf or one of its ancestors to the tier"
        problems.append(Problem(text, ("tiers", k)))
    return problems, classes


def _last_tier_problems(leaves: Sequence[str], tiers: Sequence[Sequence[str]]) -> list[Problem]:
    last = len(tiers) - 1
    for j, (leaf, found) in enumerate(zip(leaves, tiers[last], strict=False)):
        if leaf != found:
            text = (
                f"the last tier must be the leaves in the same order, but at position {j} "
                f"tier {last} has {found!r} and leaves has {leaf!r}; copy leaves to the end of tiers"
            )
            return [Problem(text, ("tiers", last, j))]
    return []
