"""Taxonomies from rows, one per leaf with its class in each tier: gives nodes their ids and unique display names.

Tables and folder trees both become such rows.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from taxonomy.tree import Node, Taxonomy


@dataclass
class LeafRow:
    """A leaf of a table or folder tree: its class in each tier, coarse to fine, the leaf's own name last."""

    cells: tuple[str, ...]
    id: str = ""
    definition: str = ""


@dataclass
class _DraftNode:
    """A node whose id and display name are not yet decided."""

    name: str
    parent: "_DraftNode | None" = None
    children: dict[str, "_DraftNode"] = field(default_factory=dict)
    row: LeafRow | None = None  # of a leaf
    merged: "_DraftNode | None" = None  # the parent that took this one's place
    id: str = ""
    label: str = ""

    def final(self) -> "_DraftNode":
        """Return the node itself, or the one it was merged into."""
        return self if self.merged is None else self.merged.final()


def spaced(part: str) -> str:
    """Turn the name of a folder into a display name: spaces for underscores."""
    return " ".join(part.replace("_", " ").split()) or part


def from_rows(
    rows: Sequence[LeafRow],
    *,
    name: str,
    slug: Callable[[str], str] | None = None,
    label: Callable[[str], str] = str,
) -> Taxonomy:
    """Make a taxonomy of rows.

    Args:
        rows: one per leaf, without blank cells; no row may repeat another.
        name: name of the taxonomy.
        slug: makes the part of an id from a class's name; None takes lower case with hyphens.
        label: makes the display name of a class from its name.
    """
    root = _DraftNode("")
    paths: list[list[_DraftNode]] = []
    for row in rows:
        path = [root]
        for cell in row.cells:
            path.append(path[-1].children.setdefault(cell, _DraftNode(cell, parent=path[-1])))
        path[-1].row = row
        paths.append(path[1:])
    _merge(root)
    groups = _ordered(root)
    _name_ids(groups, slug or _slug)
    _name_labels(groups, label)
    tiers = [dict.fromkeys(path[k].final().id for path in paths) for k in range(len(paths[0]))]
    index = {id(group): i for i, group in enumerate(groups)}
    return Taxonomy(
        name=name,
        nodes=[Node(group.id, group.label, group.row.definition if group.row else "") for group in groups],
        parents=[-1 if group.parent is None else index[id(group.parent)] for group in groups],
        leaves=list(tiers[-1]),
        tiers=[list(tier) for tier in tiers],
    )


def from_folder_paths(paths: Sequence[tuple[str, ...]], *, name: str) -> Taxonomy:
    """Make a taxonomy of class folders, each given as the names of the folders that lead to it, outermost first."""
    deepest = max(map(len, paths))
    rows = [LeafRow(path + path[-1:] * (deepest - len(path)), id="/".join(path)) for path in paths]
    return from_rows(rows, name=name, slug=str, label=spaced)


def _merge(group: _DraftNode) -> None:
    """Merge an only child of the same name into its parent: one class that serves in both tiers."""
    for child in group.children.values():
        _merge(child)
    if list(group.children) == [group.name] and group.parent is not None:
        child = group.children[group.name]
        group.children, group.row, child.merged = child.children, child.row, group
        for below in group.children.values():
            below.parent = group


def _ordered(root: _DraftNode) -> list[_DraftNode]:
    """The groups breadth first: parents stand before their children."""
    groups = [root]
    for group in groups:
        groups.extend(group.children.values())
    return groups


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name.casefold()).strip("-_") or "class"


def _name_ids(groups: Sequence[_DraftNode], slug: Callable[[str], str]) -> None:
    """Give leaves their own ids where they have one, and other groups the path of their names."""
    taken = {group.row.id: 1 for group in groups if group.row}
    for group in groups:
        if group.row and group.row.id:
            group.id = group.row.id
            continue
        above = group.parent
        prefix = f"{above.id}/" if above is not None and above.parent is not None else ""
        group.id = _free(prefix + slug(group.name) if above else "root", taken, "-")


def _name_labels(groups: Sequence[_DraftNode], label: Callable[[str], str]) -> None:
    """Give groups unique display names: those that share one get the names of as many parents as it takes."""
    same: dict[str, list[_DraftNode]] = {}
    for group in groups[1:]:
        same.setdefault(label(group.name), []).append(group)
    taken = {name: 1 for name, sharing in same.items() if len(sharing) == 1}
    for name, sharing in same.items():
        candidates = [name] * len(sharing)
        above = [[label(upper.name) for upper in _upper(group)] for group in sharing]
        for count in range(1, max(map(len, above)) + 1):
            if len(set(candidates)) == len(sharing):
                break
            candidates = [name + (f" ({', '.join(names[:count])})" if names else "") for names in above]
        for group, candidate in zip(sharing, candidates, strict=True):
            group.label = candidate if len(sharing) == 1 else _free(candidate, taken, " ")
    groups[0].label = _free("everything", taken, " ")


def _upper(group: _DraftNode) -> list[_DraftNode]:
    """The groups above one, without the root, nearest first."""
    above = group.parent
    return [] if above is None or above.parent is None else [above, *_upper(above)]


def _free(wish: str, taken: dict[str, int], joint: str) -> str:
    """Take the wish, or the wish with the first number that makes it new; `taken` remembers the last one of each."""
    found = wish
    while found in taken:
        taken[wish] += 1
        found = f"{wish}{joint}{taken[wish]}"
    taken[found] = 1
    return found
