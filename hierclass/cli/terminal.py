"""Drawings of the command line (rich), for a `PlainConsole`: progress bar, path of a prediction, tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from hierclass.errors import InputError
from hierclass.images.discovery import display_name
from taxonomy.streams import plural

if TYPE_CHECKING:
    from hierclass.checkpoints.compress import Footprint
    from hierclass.costs import Level
    from hierclass.decisions.prediction import Prediction
    from hierclass.timm_models.backbone_probe import ProbeResult
    from hierclass.timm_models.backbone_table import BackboneFamily, BackboneTable
    from taxonomy import Taxonomy

SAVES_NOTHING = "Every level runs the whole network: a coarser answer costs the same."

_BAR_WIDTH = 10


def one_line(text: str) -> str:
    """Return text as one line, with control characters escaped."""
    shown = display_name(text)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in shown)


def progress_bar(console: Console) -> Progress:
    """Return a bar with images done, rate, errors and time left; it is drawn on terminals only."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _RateColumn())
    rest = (TextColumn("{task.fields[errors]}"), TimeRemainingColumn())
    return Progress(*columns, *rest, console=console, disable=not console.is_terminal, transient=True)


def task_bar(console: Console) -> Progress:
    """Return a bar that says what is being done, how far, and the time left; it is drawn on terminals only."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "")


def draw_path(path: str, prediction: Prediction, levels: Sequence[Level], *, unicode: bool) -> RenderableType:
    """Draw a prediction: a line per tier, coarse first, with score, bar and cost of its level.

    Why no finer level was computed follows where that is said, and the total cost if it is more than the last level
    alone costs.
    """
    full, empty = "█░" if unicode else "#."
    grid = Table.grid(padding=(0, 2))
    for tier, step in enumerate(prediction.path):
        filled = round(step.score * _BAR_WIDTH)
        cost = f"{'+' if tier else ''}{levels[tier].step_share:.0%} of the cost"
        grid.add_row(
            Text(f"tier {tier}", "dim"),
            Text(step.label, "bold" if step is prediction.path[-1] else ""),
            Text(full * filled + empty * (_BAR_WIDTH - filled), "green"),
            f"{step.score:.2f}",
            Text(cost, "dim"),
        )
    drawn: list[RenderableType] = [one_line(path), grid]
    last = prediction.level
    if prediction.stop_reason is not None:
        guess = ", so that this is a guess" if prediction.sure is False else ""
        drawn.append(Text(f"{prediction.stop_reason} at level {last}{guess}", "dim"))
    total, alone = sum(level.step_share for level in levels[: last + 1]), levels[last].share
    if total > alone * 1.005:
        drawn.append(Text(f"in all {total:.0%} of the cost; level {last} alone costs {alone:.0%}", "dim"))
    return Group(*drawn)


def draw_levels(levels: Sequence[Level]) -> RenderableType:
    """Draw the table of levels: tier, classes, cost for one image, parameters, accuracy."""
    from hierclass.costs import cost_alike

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("level", "tier", "classes", "MMACs", "cost", "parameters", "dev accuracy"):
        table.add_column(title, justify="right", no_wrap=True)
    for level in levels:
        table.add_row(
            str(level.index),
            str(level.index),
            f"{level.num_classes:,}",
            f"{level.macs / 1e6:,.1f}",
            f"{level.share:.1%}",
            f"{level.parameters:,}",
            "not measured" if level.accuracy is None else f"{level.accuracy:.1%}",
        )
    return Group(table, SAVES_NOTHING) if cost_alike(levels) else table


def draw_classes(taxonomy: Taxonomy, part: str) -> RenderableType:
    """Draw the classes with `part` in their name or id, and the coarser classes that contain each.

    Classes of all tiers come first, then the nodes of the tree that are in no tier.

    Raises:
        InputError: no class matches.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("tier", justify="right")
    for title in ("id", "class", "in"):
        table.add_column(title, no_wrap=title == "id")
    rows = [(str(tier), node) for tier in range(taxonomy.num_tiers) for node in taxonomy.classes(tier)]
    in_tiers = {node.id for _, node in rows}
    rows += [("-", node) for node in taxonomy.nodes[1:] if node.id not in in_tiers]
    for tier, node in rows:
        if part.casefold() in f"{node.id} {node.name}".casefold():
            above = [each.name for each in reversed(taxonomy.ancestors(node.id)) if each.id in in_tiers]
            table.add_row(tier, node.id, node.name, Text(" › ".join(above), "dim"))
    if not table.row_count:
        raise InputError(f"no class has {part!r} in its name or id; hierclass classes lists all")
    return table


def draw_footprints(footprints: Sequence[Footprint]) -> RenderableType:
    """Draw a column per footprint; further columns give the last one relative to the others."""
    *others, last = footprints
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    headings = [footprint.name for footprint in footprints] + [f"of {other.name}" for other in others]
    table.add_column("")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    rows: list[tuple[str, str, list[float]]] = [
        ("kB on disk", "{:,.0f}", [footprint.bytes / 1e3 for footprint in footprints]),
        ("parameters", "{:,.0f}", [footprint.parameters for footprint in footprints]),
        ("MMACs", "{:,.1f}", [footprint.macs / 1e6 for footprint in footprints]),
    ]
    for batch in last.seconds:
        times = [1e3 * footprint.seconds[batch] for footprint in footprints]
        rows.append((f"ms, {plural(batch, 'image')}", "{:,.2f}", times))
    for name, form, values in rows:
        shares = [f"{values[-1] / value:.3f}" for value in values[:-1]]
        table.add_row(name, *(form.format(value) for value in values), *shares)
    return table


def draw_families(backbones: BackboneTable) -> RenderableType:
    """Draw which families of timm can be nested, with the most frequent reason where some models can't."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("family", no_wrap=True)
    table.add_column("nest", justify="right", no_wrap=True)
    table.add_column("structures", no_wrap=True)
    table.add_column("where not, why")
    for family in backbones.families:
        count = f"{len(family.nests)} of {family.num_models}"
        table.add_row(family.name, count, " ".join(family.proven), one_line(family.reason))
    hint = "hierclass backbones NAME tries one model."
    return Group(table, f"{backbones.summary()}. {hint}")


def draw_probe_result(result: ProbeResult, family: BackboneFamily | None) -> RenderableType:
    """Draw the result of probing one model: the costs of its levels, or why it can't be nested."""
    height, width = result.input_size[1:]
    proven = f"Proven in its family: {', '.join(family.proven)}." if family and family.proven else ""
    if result.reason:
        return f"{result.name} can't be cut into slices: {one_line(result.reason)}. {proven}".rstrip()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("level", "MMACs", "cost", "parameters", "of all"):
        table.add_column(title, justify="right", no_wrap=True)
    for level, (macs, parameters) in enumerate(zip(result.macs, result.parameters, strict=True)):
        shares = (
            f"{macs / max(result.macs[-1], 1):.1%}",
            f"{parameters / max(result.parameters[-1], 1):.1%}",
        )
        table.add_row(str(level), f"{macs / 1e6:,.1f}", shares[0], f"{parameters:,}", shares[1])
    head = f"{result.name} can be cut into slices; one image of {height} x {width}, without heads:"
    return Group(head, table, *([proven] if proven else []))
