"""Anchors, the classes that the author of a taxonomy wants a tier to have: parsed, and given their leaves."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taxonomy import naming, wordnet
from taxonomy.errors import TaxonomyError
from taxonomy.groups import ROOT, GroupNamer, LeafGroup, SynsetTree, reached

Anchors = Sequence[Iterable[str | Mapping[str, Any]] | None]
"""Per coarser tier its anchors as an author writes them: synset ids or mappings; none where the tier is automatic."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A class that the author wants a tier to have.

    It holds the leaves that are one of the synsets `of` or reach one by any hypernym path. `under` may name an anchor
    of the tier before; then all leaves of this one belong to it, whatever else they reach.
    """

    id: str
    name: str
    of: frozenset[str]
    under: str | None = None


def read_anchors(anchors: Iterable[Iterable[str | Mapping[str, Any]]]) -> list[list[Anchor]]:
    """Parse anchors: synset ids, or mappings with "id" and, if wanted, "name", "of" and "under".

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
    """Assign an anchor to each leaf, tier by tier, so that the anchors nest.

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
    tree: SynsetTree,
    before: Sequence[LeafGroup],
    anchors: Sequence[Anchor],
    holder: Mapping[str, Anchor],
    namer: GroupNamer,
) -> list[LeafGroup]:
    """Divide the groups of the tier before among anchors.

    Leaves that no anchor holds go to the nearest node above them that also has anchored leaves below it, as "other
    <its name>"; a single leaf goes with the leftover of the whole group. A group without any anchor stays as it is.

    Raises:
        TaxonomyError: no leaf came to an anchor.
    """
    groups: list[LeafGroup] = []
    for group in before:
        held: dict[str, set[str]] = {}
        for leaf in group.leaves:
            if leaf in holder:
                held.setdefault(holder[leaf].id, set()).add(leaf)
        if not held:
            groups.append(group)
            continue
        groups += [LeafGroup(a.id, a.name, frozenset(held[a.id])) for a in anchors if a.id in held]
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


def _leftovers(tree: SynsetTree, leaves: frozenset[str], covered: frozenset[str]) -> list[frozenset[str]]:
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
    return sorted(groups, key=lambda found: tree.order[tree.first_leaf(found)])
