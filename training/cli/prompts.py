"""Show a proposed taxonomy on a terminal, ask about it and open it in an editor."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.text import Text
from rich.tree import Tree

from hierclass.errors import InputError
from taxonomy import Node, Taxonomy
from taxonomy.proposal import Proposal
from taxonomy.senses import SenseChoice
from taxonomy.terminal import PlainConsole
from training.look.seen import Seen, shortened

SHOWN_LEAVES = 60
"""Taxonomies with more leaves are drawn without them."""
SHOWN_DOUBTS = 12
"""Number of doubtful senses, and of classes whose images do not fit, that are shown in full."""
INDENT = 4
"""Cells by which each tier of a drawn taxonomy is indented."""
EDITORS = ("sensible-editor", "nano", "vi", "notepad")


def draw(taxonomy: Taxonomy, doubtful: Sequence[SenseChoice] = (), *, width: int = 80) -> Tree:
    """Draw the tiers, with definitions of leaves and a mark at doubtful ones; large taxonomies without leaves.

    Definitions are shortened to the width of the console, so that no mark behind them is cut off.
    """
    marked = {choice.synset.id for choice in doubtful}
    sizes = " / ".join(map(str, taxonomy.num_classes))
    tiers = "1 tier" if taxonomy.num_tiers == 1 else f"{taxonomy.num_tiers} tiers"
    title = Text.assemble((taxonomy.name, "bold"), f"  {tiers} of {sizes} classes")
    drawing = Tree(title, guide_style="dim")
    with_leaves = len(taxonomy.leaves) <= SHOWN_LEAVES
    known = set(taxonomy.leaves)
    branches: dict[str, Tree] = {}
    for tier in range(taxonomy.num_tiers - (not with_leaves and taxonomy.num_tiers > 1)):
        counts = [0] * taxonomy.num_classes[tier]
        for index in taxonomy.projection(tier).tolist():
            counts[index] += 1
        for index, node in enumerate(taxonomy.classes(tier)):
            if node.id in branches:
                continue
            above = taxonomy.classes(tier - 1)[int(taxonomy.parent_classes(tier)[index])].id if tier else ""
            text = Text(node.name)
            if node.id not in known:
                text.append(f" {counts[index]}", "dim")
            elif node.definition:
                room = width - INDENT * (tier + 1) - cell_len(node.name) - len("  … ?")
                text.append(f" {shortened(node.definition, max(0, min(60, room)))}", "dim")
            if node.id in marked:
                text.append(" ?", "bold yellow")
            branches[node.id] = branches.get(above, drawing).add(text)
    return drawing


def show(console: PlainConsole, proposal: Proposal, seen: Seen | None = None) -> None:
    """Print a proposed taxonomy with its doubtful, unknown and synonymous names, and what was seen in their images."""
    doubtful = [choice for choice in proposal.doubtful if not (seen and seen.confirms(choice))]
    console.print(draw(proposal.taxonomy, doubtful, width=console.width))
    _tell_doubts(console, doubtful, len(proposal.choices), seen)
    if proposal.unknown:
        _plain(console, _unknown(proposal, seen))
    for first, second in proposal.same:
        _plain(console, f"{first!r} and {second!r} mean the same in WordNet; both stay classes, side by side")
    misfits = seen.misfits(proposal.taxonomy) if seen else []
    for line in misfits[:SHOWN_DOUBTS]:
        console.print(Text.assemble(("!", "bold yellow"), f" {line}"), soft_wrap=True)
    if len(misfits) > SHOWN_DOUBTS:
        _plain(console, f"  and images of {len(misfits) - SHOWN_DOUBTS} more classes")
    if misfits:
        _plain(console, "  check these images, their names, or with --pin what the names mean")


def _tell_doubts(
    console: PlainConsole, doubtful: Sequence[SenseChoice], num_choices: int, seen: Seen | None
) -> None:
    """Print the names that may mean something else, with alternatives."""
    told, more = doubtful[:SHOWN_DOUBTS], doubtful[SHOWN_DOUBTS:]
    if not told:
        return
    names = "1 name" if num_choices == 1 else f"{len(doubtful)} of {num_choices} names"
    console.print(Text.assemble(("?", "bold yellow"), f" {names} may mean something else:"))
    for choice in told:
        _plain(console, f"  {choice.name} = {_sense(choice.synset)}")
        if sight := seen and seen.sight(choice.name):
            _plain(console, f"    its images look like: {sight}")
        if choice.note:
            _plain(console, f"    {choice.note}")
        for other in choice.rejected[:2]:
            _plain(console, f"    or {_sense(other)}")
    if more:
        _plain(console, f"  and {len(more)} more: {', '.join(choice.name for choice in more)}")
    example = next((choice for choice in told if choice.rejected), None)
    if example is not None:
        _plain(console, f"  another meaning: --pin '{example.name}={example.rejected[0].id}'")


def _sense(node: Node) -> str:
    return f"{node.id} {node.name}: {shortened(node.definition, 80)}"


def _unknown(proposal: Proposal, seen: Seen | None) -> str:
    """One line about the names that WordNet lacks."""
    names = proposal.unknown
    some = ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    lacks = f"WordNet has no noun for {some}"
    if not proposal.choices and proposal.kind == "names":
        return f"{lacks}: one tier of {len(names)} classes; group them in taxonomy.csv, with a column before the others"
    grouped = len(names) > 1 and proposal.taxonomy.num_tiers > 1
    where = "classes of their own, under 'other classes'" if grouped else "a class of its own"
    sights = {name: sight for name in names[:8] if (sight := seen.sight(name) if seen else None)}
    look = f"; {', '.join(f'{name!r} looks like {sight}' for name, sight in sights.items())}"
    pin = next((f"{name}={sight.synset}" for name, sight in sights.items()), f"{names[0]}=SYNSET")
    return f"{lacks}: {where}{look if sights else ''}; move them in taxonomy.csv, or give a meaning with --pin '{pin}'"


def _plain(console: PlainConsole, text: str) -> None:
    console.print(text, soft_wrap=True)


def ask(console: PlainConsole, question: str, answers: str) -> str:
    """Ask until the answer starts with one of the letters ``answers``; end of input counts as "n"."""
    while True:
        console.print(question, end=" ")
        try:
            answer = input().strip().lower()
        except EOFError:
            console.print()
            return "n"
        if answer and answer[0] in answers:
            return answer[0]


def edit(console: PlainConsole, path: Path) -> None:
    """Open a file in the user's editor and wait; without an editor, wait for Enter.

    Raises `InputError` if the editor of $VISUAL or $EDITOR does not start.
    """
    chosen = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    command = shlex.split(chosen) if chosen else [found for found in map(shutil.which, EDITORS) if found][:1]
    if not command:
        console.print(f"edit {path} in another window, save it, and press Enter")
        ask_enter()
        return
    try:
        subprocess.run([*command, str(path)], check=False)
    except OSError as error:
        raise InputError(f"the editor {command[0]} does not start ({error.strerror}); set EDITOR") from error


def ask_enter() -> None:
    """Wait for Enter or the end of input."""
    try:
        input()
    except EOFError:
        return
