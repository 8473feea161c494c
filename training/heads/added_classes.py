"""The tree of a model with further classes: its own keep their ids and names, new ones find their place by WordNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hierclass.errors import InputError
from taxonomy import Taxonomy, wordnet
from taxonomy.labels import key
from taxonomy.proposal import OTHER, FolderPath, Proposal, propose, trim
from taxonomy.rows import spaced
from taxonomy.senses import Evidence, SenseChoice, choose_senses, is_known
from training.data.label_names import LabelNames
from training.data.samples import inner_nodes


@dataclass(frozen=True, slots=True)
class AddedClasses:
    """A tree of old and new classes, how it was made in a few words, and the names that are new."""

    proposal: Proposal
    how: str
    new: tuple[str, ...]


def add_classes(old: Taxonomy, ways: Sequence[FolderPath], evidence: Evidence | None = None) -> AddedClasses:
    """The tree of a model's classes and of those that class folders name; folders of old classes add none.

    Where the old tree is what is proposed for its classes, old and new ones get a proposal together. Any other tree,
    edited or of the user's own, stays, and a new class goes below its nearest relative among the coarser ones, or
    beside them. ``evidence`` of what names mean is that of `taxonomy.senses.choose_senses`. Raises `InputError` for no
    class at all.
    """
    labels = LabelNames(old, inner_nodes(old))
    folders, texts = labels.find_folders(ways), labels.find_texts(ways)
    names = {
        key(short[-1]): short[-1]
        for way, short in zip(ways, trim(ways), strict=True)
        if folders[way] is None and texts[way] is None
    }
    new = tuple(names.values())
    if not ways:
        raise InputError("`add` names no images; give a folder of class folders")
    if not new:
        return AddedClasses(
            Proposal(old, "folders"), "the images are of classes that it has; its tree stays", ()
        )
    if _is_proposed(old):
        found = propose([(label,) for label in (*old.leaves, *new)], name=old.name, evidence=evidence)
        tree = _renamed(found.taxonomy, old)
        if set(old.leaves) <= set(tree.leaves):
            shown = Proposal(tree, found.kind, _of(new, found.choices), found.unknown, found.same)
            return AddedClasses(shown, "a new tree for old and new classes", new)
    tree, choices, unknown = _inserted(old, new, evidence)
    return AddedClasses(
        Proposal(tree, "names", choices, unknown), "its tree stays, new classes are put into it", new
    )


def _is_proposed(tree: Taxonomy) -> bool:
    """Whether a tree is what is proposed for its leaves."""
    if len(tree.leaves) < 2:
        return False
    again = propose([(leaf,) for leaf in tree.leaves], name=tree.name).taxonomy
    return list(map(set, again.tiers)) == list(map(set, tree.tiers))


def _renamed(tree: Taxonomy, old: Taxonomy) -> Taxonomy:
    """The tree with the names that classes have in an old one."""
    names = {node.id: node.name for node in old.nodes}
    data = tree.to_dict()
    taken = {node["name"] for node in data["nodes"]}
    for node in data["nodes"]:
        wish = names.get(node["id"], node["name"])
        node["name"] = wish if wish not in taken else node["name"]
    return Taxonomy.from_dict(data)


def _of(names: Sequence[str], choices: Sequence[SenseChoice]) -> tuple[SenseChoice, ...]:
    return tuple(choice for choice in choices if choice.name in names)


def _inserted(
    old: Taxonomy, new: Sequence[str], evidence: Evidence | None
) -> tuple[Taxonomy, tuple[SenseChoice, ...], tuple[str, ...]]:
    """An old tree with further leaves; the senses that were chosen for their names; and the names without any."""
    known = [name for name in new if is_known(name)]
    company = [leaf for leaf in old.leaves if wordnet.synset(leaf) is not None]
    choices = _of(known, choose_senses([*company, *known], evidence=evidence)) if known else ()
    meant = {choice.name: choice.synset.id for choice in choices}
    apart = [name for name in new if name not in meant or _relative(old, meant[name]) is None]
    data = old.to_dict()
    used = {node["name"] for node in data["nodes"]}
    beside = _root_of_others(data, used) if len(apart) > 1 and old.num_tiers > 1 else data["nodes"][0]["id"]
    for name in new:
        parent = beside if name in apart else str(_relative(old, meant[name]))
        ids = {node["id"] for node in data["nodes"]}
        leaf = next(each for each in (meant.get(name, name), name, f"{name} (new)") if each not in ids)
        label = spaced(name)
        number = 2
        while label in used:
            label, number = f"{spaced(name)} {number}", number + 1
        used.add(label)
        data["nodes"].append({"id": leaf, "name": label, "definition": "", "parent": parent})
        line = {parent, *_above(data, parent)}
        for tier in data["tiers"][:-1]:
            if not line.intersection(tier):
                tier.append(leaf)
        data["tiers"][-1].append(leaf)
        data["leaves"].append(leaf)
    return Taxonomy.from_dict(data), choices, tuple(name for name in new if name not in meant)


def _relative(old: Taxonomy, synset: str) -> str | None:
    """The nearest class of a coarser tier that is above a synset, None if there is none."""
    above, leaves = wordnet.ancestors(synset), set(old.leaves)
    found = {node for tier in old.tiers[:-1] for node in tier if node in above and node not in leaves}
    return max(found, key=lambda node: (wordnet.depth(node), old.depth(node)), default=None)


def _root_of_others(data: dict[str, Any], used: set[str]) -> str:
    """The class that holds what has no relative; it is made if the tree has none."""
    if all(node["id"] != OTHER for node in data["nodes"]):
        name = "other classes" if "other classes" not in used else "new classes"
        used.add(name)
        data["nodes"].append({"id": OTHER, "name": name, "definition": "", "parent": data["nodes"][0]["id"]})
        for tier in data["tiers"][:-1]:
            tier.append(OTHER)
    return OTHER


def _above(data: dict[str, Any], node_id: str) -> list[str]:
    """The ids above a node of a tree's document."""
    parents = {node["id"]: node["parent"] for node in data["nodes"]}
    found = []
    while (node_id := parents[node_id]) is not None:
        found.append(node_id)
    return found
