"""The model for visitors: cost and accuracy of its levels, its classes, its card."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hierclass.errors import InputError
from hierclass.files import open_regular
from hierclass.page.drawing import draw_table
from hierclass.page.messages import as_html, count, percent

if TYPE_CHECKING:
    from hierclass.classifier import Classifier
    from taxonomy import Node, Taxonomy

MOST_FOUND = 50
LONGEST_QUERY = 200
_LARGEST_CARD = 1 << 20


def model_name(classifier: Classifier) -> str:
    """Return the name of a model: its backbone and its taxonomy."""
    return f"{classifier.model.architecture.backbone} for {classifier.taxonomy.name or 'its own classes'}"


def read_card(folder: Path) -> str:
    """Return the model card (Markdown) in a model's folder, or a sentence that there is none.

    It may be a stranger's: HTML in it is shown, not read, and pictures become links, since they would tell other
    servers who looks at the page.
    """
    try:
        with open_regular(folder / "MODEL_CARD.md") as file:
            text = file.read(_LARGEST_CARD).decode("utf-8", "replace")
    except OSError:
        return "This model has no card."
    return text.replace("<", "‹").replace("![", "[")


def draw_levels(classifier: Classifier) -> str:
    """Draw the table of levels: number of classes, accuracy, cost."""
    names = ("step", "names one of", "right, when measured", "multiply-accumulates", "of the full work")
    rows = [
        (
            str(level.index + 1),
            f"{level.num_classes:,}",
            "not measured" if level.accuracy is None else f"{level.accuracy:.1%}",
            count(level.macs),
            percent(level.share),
        )
        for level in classifier.levels
    ]
    return draw_table(names, rows)


@functools.lru_cache(maxsize=2)
def draw_tree_list(taxonomy: Taxonomy) -> str:
    """Draw the tiers as nested lists that can be opened and closed."""
    return f'<div class="hc-tree">{_branch(taxonomy, 0, range(taxonomy.num_classes[0]))}</div>'


def search(taxonomy: Taxonomy, query: object) -> list[Node]:
    """Find classes by name, synset id or words of the definition; names that begin with the query come first.

    Returns at most `MOST_FOUND` nodes; none for an empty query.

    Raises:
        InputError: the query is no text, or too long.
    """
    if not isinstance(query, str) or len(query) > LONGEST_QUERY:
        raise InputError(f"a search is a text of up to {LONGEST_QUERY} letters")
    wanted = " ".join(query.casefold().replace("_", " ").split())
    if not wanted:
        return []
    found: list[tuple[int, int, Node]] = []
    for index, node in enumerate(taxonomy.nodes):
        name = node.name.casefold()
        if wanted in (name, node.id.casefold()):
            rank = 0
        elif name.startswith(wanted):
            rank = 1
        elif wanted in name:
            rank = 2
        elif wanted in node.definition.casefold():
            rank = 3
        else:
            continue
        found.append((rank, index, node))
    return [node for _, _, node in sorted(found, key=lambda each: each[:2])[:MOST_FOUND]]


def draw_found(taxonomy: Taxonomy, query: str) -> str:
    """Draw the classes that a search found."""
    nodes = search(taxonomy, query)
    if not query.strip():
        return '<p class="hc-note" role="status"></p>'
    if not nodes:
        return f'<p class="hc-note" role="status">No class is called “{as_html(query.strip())}”.</p>'
    items = []
    for node in nodes:
        tiers, path = describe_tiers(taxonomy, node)
        place = " › ".join(as_html(above.name) for above in path)
        kind = f"step {tiers[0] + 1}" if tiers else "only a branch of the tree"
        items.append(
            f"<li><strong>{as_html(node.name)}</strong> <span>{place and f'in {place} · '}{kind} · "
            f"<code>{as_html(node.id)}</code></span><div>{as_html(node.definition)}</div></li>"
        )
    more = f" (the first {MOST_FOUND})" if len(nodes) == MOST_FOUND else ""
    return f'<p class="hc-note" role="status">{len(nodes)} found{more}</p><ul class="hc-found">{"".join(items)}</ul>'


def describe_tiers(taxonomy: Taxonomy, node: Node) -> tuple[list[int], list[Node]]:
    """Return the tiers of which a node is a class, and its ancestors that are classes, coarse first."""
    tiers = [tier for tier, classes in enumerate(taxonomy.tiers) if node.id in classes]
    above = {each.id for each in taxonomy.ancestors(node.id)}
    path: list[Node] = []
    for classes in taxonomy.tiers:
        for node_id in classes:
            if node_id in above and (not path or path[-1].id != node_id):
                path.append(taxonomy.node(node_id))
    return tiers, path


def _branch(taxonomy: Taxonomy, tier: int, classes: Sequence[int]) -> str:
    items = []
    for index in classes:
        node = taxonomy.classes(tier)[index]
        title = f'{as_html(node.name)} <span class="meaning">{as_html(node.definition)}</span>'
        inner_tier, below = _below(taxonomy, tier, index)
        if not below:
            items.append(f"<li>{title}</li>")
            continue
        inner = _branch(taxonomy, inner_tier, below)
        items.append(
            f'<li><details><summary>{title} <span class="many">{len(below)}</span></summary>{inner}</details></li>'
        )
    return f"<ul>{''.join(items)}</ul>"


def _below(taxonomy: Taxonomy, tier: int, index: int) -> tuple[int, list[int]]:
    """The next tier that divides a class and its classes there; no classes if none divides it."""
    while tier + 1 < taxonomy.num_tiers:
        parents = taxonomy.parent_classes(tier + 1).tolist()
        below = [child for child, parent in enumerate(parents) if parent == index]
        if len(below) > 1 or taxonomy.tiers[tier + 1][below[0]] != taxonomy.tiers[tier][index]:
            return tier + 1, below
        tier, index = tier + 1, below[0]
    return tier, []
