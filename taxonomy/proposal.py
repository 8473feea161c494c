"""Proposing a taxonomy for class folders, for a person to approve or change.

Folders may be synset ids, English names, both, or a tree of folders that is the user's own hierarchy. Nothing is lost:
a name that WordNet lacks becomes a class of its own, under "other classes" where there are several.
"""

import itertools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from taxonomy import senses, wordnet
from taxonomy.build import from_synsets
from taxonomy.errors import TaxonomyError
from taxonomy.files import bundled, load_taxonomy
from taxonomy.labels import LeafNames, key, leading_id
from taxonomy.rows import from_folder_paths, spaced
from taxonomy.senses import Evidence, SenseChoice
from taxonomy.tree import Taxonomy
from taxonomy.validation import UNPRINTABLE, listed

OTHER = "x-other"
FolderPath = tuple[str, ...]
"""Names of the folders that lead to a class folder, outermost first, its own last."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A taxonomy for class folders, and what a person should know to judge it."""

    taxonomy: Taxonomy
    kind: str
    """What the folders are: "bundled" (exactly the classes of a bundled taxonomy), "ids", "names", or "folders"."""
    choices: tuple[SenseChoice, ...] = ()
    """Of names: the sense chosen for each that WordNet has, in the order of the folders. Else the ids in folder names
    that the rest of the name contradicts."""
    unknown: tuple[str, ...] = ()
    """Names that WordNet lacks; each is a class of its own."""
    same: tuple[tuple[str, str], ...] = ()
    """Pairs of names that mean one synset; the second is a class of its own beside the first."""

    @property
    def doubtful(self) -> tuple[SenseChoice, ...]:
        """Choices that a person should check."""
        return tuple(choice for choice in self.choices if choice.doubtful)


def propose(
    paths: Sequence[FolderPath],
    *,
    name: str,
    tiers: Sequence[int] | None = None,
    pins: Mapping[str, str] | None = None,
    evidence: Evidence | None = None,
) -> Proposal:
    """Propose a taxonomy for the folders that hold images.

    Folders that all paths have in common, at their start or end ("images"), are ignored. If paths then have several
    folders, these are the tiers; a folder that holds images beside further ones is an inner node. Else the folders are
    classes, and WordNet gives the tiers; where they are exactly the classes of a bundled taxonomy, that is it. Folders
    that differ only by case, hyphens or underscores are one class.

    Args:
        paths: per class folder the names of the folders that lead to it, outermost first; no two are the same.
        name: name of the taxonomy.
        tiers: wanted numbers of classes of the coarser tiers; None takes `taxonomy.tiers.automatic_sizes`.
        pins: synset id for each name whose sense the caller decides.
        evidence: what speaks for a sense of a class folder's name, as in `taxonomy.senses.choose_senses`; of no
            effect where the folders are a bundled taxonomy or a hierarchy.

    Raises:
        TaxonomyError: fewer than two classes, images beside all class folders, pins or tiers that do not fit; the
        message says what to do.
    """
    for path in paths:
        if UNPRINTABLE.search("".join(path)):
            text = "/".join(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            raise TaxonomyError(f"class folder {text!r} has an unprintable character in its name; rename it")
    trimmed = trim(paths)
    above = {path[:end] for path in trimmed for end in range(1, len(path))}
    inner = above.intersection(trimmed)
    for path in inner:
        if all(each[: len(path)] == path for each in trimmed):
            text = f"folder {'/'.join(path)!r} holds images beside all class folders"
            raise TaxonomyError(f"{text}; move them into one, or into a class folder of their own")
    trimmed = [path for path in trimmed if path not in above]
    if len(trimmed) < 2:
        found = f"one class, {trimmed[0][-1]!r}" if trimmed and trimmed[0] else "no class"
        raise TaxonomyError(f"there is {found}; a classifier needs a folder for each of two or more classes")
    if max(map(len, trimmed)) > 1:
        if pins or tiers:
            given = "--pin" if pins else "--tiers"
            raise TaxonomyError(f"the folders lie in folders, which are the tiers; leave {given} out")
        return Proposal(
            _of_folders(trimmed, name, inner), "folders", _contradicted([path[-1] for path in trimmed])
        )
    labels = list({key(path[0]): path[0] for path in reversed(trimmed)}.values())[::-1]
    if len(labels) < 2:
        raise TaxonomyError(f"all folders read {labels[0]!r}; a classifier needs two or more classes")
    if not tiers and not pins and (known := _bundled_with(labels)) is not None:
        return Proposal(known, "bundled", _contradicted(labels))
    return _of_labels(labels, name, tiers, pins or {}, evidence or {})


def trim(paths: Sequence[FolderPath]) -> list[FolderPath]:
    """Remove the folders that all paths have in common at their start, and at their end ("images")."""
    trimmed = list(paths)
    for place, rest in ((0, slice(1, None)), (-1, slice(None, -1))):
        while len(trimmed) > 1 and min(map(len, trimmed)) > 1 and len({path[place] for path in trimmed}) == 1:
            trimmed = [path[rest] for path in trimmed]
    return [path[-1:] for path in trimmed] if len(trimmed) == 1 else trimmed


def _bundled_with(labels: Sequence[str]) -> Taxonomy | None:
    """The bundled taxonomy whose leaves are exactly these, if there is one."""
    for name in bundled():
        taxonomy = load_taxonomy(name)
        if len(taxonomy.leaves) == len(labels):
            leaves = LeafNames(taxonomy)
            if len({leaves.find(label) for label in labels} - {None}) == len(labels):
                return taxonomy
    return None


# ---------------------------------------------------------------- a tree of folders


def _of_folders(paths: Sequence[FolderPath], name: str, inner: Set[FolderPath]) -> Taxonomy:
    """The user's own hierarchy, without tiers that say no more than the one before or than the leaves.

    So folders in which each has only one other, "animal/mammal/cat", keep the name of the topmost as their class. An
    ``inner`` folder, which has images of its own, stays a class or lies below one.
    """
    tree = from_folder_paths(paths, name=name)
    data = tree.to_dict()
    *tiers, last = data["tiers"]
    own = {"/".join(path) for path in inner}
    kept: list[list[str]] = []
    for tier in tiers:
        covered = {node for coarse in kept for node in coarse}
        needed = [node for node in own.intersection(tier) if covered.isdisjoint(_and_above(node))]
        if needed or (len(kept[-1]) if kept else 0) < len(tier) < len(last):
            kept.append(tier)
    data["tiers"] = [*kept, last]
    return Taxonomy.from_dict(data)


def _and_above(node: str) -> list[str]:
    """The ids of a folder and of those that it lies in."""
    return list(itertools.accumulate(node.split("/"), "{}/{}".format))


# ---------------------------------------------------------------- names and ids


def _of_labels(
    labels: Sequence[str],
    name: str,
    tiers: Sequence[int] | None,
    pins: Mapping[str, str],
    evidence: Evidence,
) -> Proposal:
    pinned = _pinned(labels, pins)
    by_key = {key(label): label for label in labels}
    seen = {by_key[key(label)]: bonus for label, bonus in evidence.items() if key(label) in by_key}
    known = [label for label in labels if label in pinned or senses.is_known(label)]
    choices = senses.choose_senses(known, pins=pinned, evidence=seen) if known else ()
    first: dict[str, str] = {}
    same: list[tuple[str, str]] = []
    for choice in sorted(choices, key=lambda choice: _by_id(choice) is None):  # an id is its own leaf
        other = first.setdefault(choice.synset.id, choice.name)
        if other != choice.name:
            same.append((other, choice.name))
    names = {synset: _display(label, synset) for synset, label in first.items()}
    read = set(known)
    unknown = tuple(label for label in labels if label not in read)
    if first:
        tree = _with_folders_names(from_synsets(list(first), tiers=tiers, name=name, names=names), first)
    else:
        tree = from_folder_paths([(label,) for label in unknown], name=name)
    synsets = {label: synset for synset, label in first.items()}
    tree = _with_own(tree, [(b, synsets[a]) for a, b in same], unknown if first else ())
    kind = "ids" if all(_by_id(choice) is not None for choice in choices) and first else "names"
    told = tuple(choice for choice in choices if choice.note) if kind == "ids" else choices
    return Proposal(tree, kind, told, unknown, tuple(same))


def _with_folders_names(tree: Taxonomy, labels: Mapping[str, str]) -> Taxonomy:
    """The tree with leaves, synset id -> folder's name, called as the folder where no label would find them else.

    So a folder "crane" beside "n02012849-crane" is "crane", and the other "crane (animal)".
    """
    leaves = LeafNames(tree)
    lost = {synset: spaced(label) for synset, label in labels.items() if leaves.find(label) is None}
    data = tree.to_dict()
    for node in data["nodes"]:
        node["name"] = lost.get(node["id"], node["name"])
    return Taxonomy.from_dict(data) if lost else tree


def _by_id(choice: SenseChoice) -> str | None:
    """The synset id in a folder's name that decided its meaning."""
    return choice.synset.id if leading_id(choice.name) == choice.synset.id else None


def _contradicted(labels: Sequence[str]) -> tuple[SenseChoice, ...]:
    """The ids that the rest of the folder's name contradicts."""
    wrong = [label for label in labels if leading_id(label) and senses.contradiction(label)]
    return senses.choose_senses(wrong)


def _pinned(labels: Sequence[str], pins: Mapping[str, str]) -> dict[str, str]:
    by_key = {key(label): label for label in labels}
    wrong = [pin for pin in pins if key(pin) not in by_key]
    if wrong:
        raise TaxonomyError(f"--pin {wrong[0]}: no class is called so; the classes are {listed(labels)}")
    return {by_key[key(pin)]: synset for pin, synset in pins.items()}


def _display(label: str, synset: str) -> str:
    """What a class is called: the synset's own spelling of the folder's name, else the folder's name without its id."""
    lemmas = wordnet.known(synset).lemmas
    own = label
    if leading_id(label) == synset:
        own = label[len(synset) :].strip(" _-.,:")
        if not own or senses.contradiction(label):
            return lemmas[0]
    return next((lemma for lemma in lemmas if key(lemma) == key(own)), spaced(own))


def _with_own(tree: Taxonomy, beside: Sequence[tuple[str, str]], apart: Sequence[str]) -> Taxonomy:
    """The tree with further leaves: labels with the leaf they stand beside, and labels under "other classes"."""
    data = tree.to_dict()
    names = {node["name"] for node in data["nodes"]}
    parents = {node["id"]: node["parent"] for node in data["nodes"]}
    root = data["nodes"][0]["id"]
    coarse: list[list[str]] = data["tiers"][:-1]
    above = root
    if len(apart) > 1 and coarse:
        above = OTHER
        data["nodes"].append(_node(OTHER, _free("other classes", names), root))
        for tier in coarse:
            tier.append(OTHER)
    for label, neighbour in [*beside, *((label, "") for label in apart)]:
        data["nodes"].append(_node(label, _free(spaced(label), names), parents.get(neighbour, above)))
        for tier in coarse:
            if neighbour in tier or (not neighbour and above == root):
                tier.append(label)
        data["leaves"].append(label)
        data["tiers"][-1].append(label)
    return Taxonomy.from_dict(data)


def _node(node_id: str, name: str, parent: str) -> dict[str, Any]:
    return {"id": node_id, "name": name, "definition": "", "parent": parent}


def _free(wish: str, taken: set[str]) -> str:
    """Take the wish, or the wish with the first number that makes it new."""
    others = (f"{wish} {number}" for number in itertools.count(2))
    found = next(text for text in itertools.chain([wish], others) if text not in taken)
    taken.add(found)
    return found
