"""Figures of an evaluation report as SVG elements, in the colours and fonts of the page.

The page declares the colours as `--ink`, `--muted`, `--grid` and `--series0` … `--series3`, for light and dark. Class
names are escaped and never read as mathematics.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hierclass.cli.terminal import one_line
from taxonomy import Taxonomy
from training.evaluation.report_data import Counts, tree_order

COLOURS = {"#010203": "ink", "#010204": "muted", "#010205": "grid"} | {
    f"#01020{6 + index}": f"series{index}" for index in range(4)
}
"""Placeholder colours → the page's colours that replace them."""
INK, MUTED, GRID, *SERIES = COLOURS
MARKERS = "osD^"
DRAWN = 10
"""Least number of images of a bin that is drawn as a point."""
RIGHT, WRONG = (0x2F, 0x7E, 0xD8), (0xE0, 0x6C, 0x1F)
"""RGB of the cells of a confusion matrix; their opacity is the share."""
STYLE: Any = {  # matplotlib's own type of it is that of every setting's name
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def cost_accuracy(levels: Sequence[Mapping[str, Any]], intervals: Sequence[Sequence[Any]], about: str) -> str:
    """Accuracy on every tier over the cost of a level; ``intervals[k][j]``: (share, low, high) of tier j at level k."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 3.2), layout="constrained")
        axes = figure.add_subplot()
        costs = [row["macs"] / 1e6 for row in levels]
        for tier in range(len(levels)):
            points = np.array([row[tier] for row in intervals[tier:]], dtype=float) * 100
            errors = np.abs(points[:, 1:].T - points[:, 0])
            axes.errorbar(
                costs[tier:],
                points[:, 0],
                yerr=errors,
                color=SERIES[tier % 4],
                marker=MARKERS[tier % 4],
                markersize=5,
                capsize=3,
                label=f"tier {tier}: {levels[tier]['classes']} classes",
            )
        if min(costs) > 0 and max(costs) > 4 * min(costs):
            axes.set_xscale("log")
        axes.set_xticks(
            costs, [f"{cost:,.1f}\nlevel {row['level']}" for cost, row in zip(costs, levels, strict=True)]
        )
        axes.minorticks_off()
        axes.set_xlabel("million multiply-accumulates for one image")
        axes.set_ylabel("right answers, %")
        axes.legend()
        return _svg(figure, "cost", about)


def reliability_diagram(row: Mapping[str, Any], about: str) -> str:
    """Accuracy over score before and after temperature, above a histogram of the scores.

    Bins of fewer than `DRAWN` images appear in the histogram only.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.5, 4.0), layout="constrained")
        upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
        upper.plot(
            [0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (2, 2)), label="score = share right"
        )
        edges = np.linspace(0, 100, len(row["after"]["counts"]) + 1)
        for name, colour, marker in (("before", SERIES[1], "s"), ("after", SERIES[0], "o")):
            bins = {key: np.array(values) for key, values in row[name].items()}
            filled = bins["counts"] >= DRAWN
            points = (100 * bins["score"][filled], 100 * bins["accuracy"][filled])
            dashes = "-" if name == "after" else "--"
            label = f"{name} temperature"
            upper.plot(*points, color=colour, marker=marker, markersize=3.5, linestyle=dashes, label=label)
            lower.stairs(100 * bins["shares"], edges, color=colour, linestyle=dashes)
        upper.set_title(f"level {row['level']}", loc="left", fontsize=10, fontweight="bold")
        upper.set_ylabel("right answers, %")
        upper.set_ylim(0, 100)
        upper.set_xlim(0, 100)
        upper.legend(loc="upper left")
        lower.set_xlabel("score, %")
        lower.set_ylabel("images, %")
        return _svg(figure, f"reliability{row['level']}", about)


def risk_coverage_diagram(
    row: Mapping[str, Any], kept: Sequence[Mapping[str, Any]], num_classes: Sequence[int], about: str
) -> str:
    """Accuracy over coverage for each tier of a level's answer; marks show its thresholds."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.5, 3.3), layout="constrained")
        axes = figure.add_subplot()
        lowest = 100.0
        for tier, curve in enumerate(row["tiers"]):
            colour, marker = SERIES[tier % 4], MARKERS[tier % 4]
            precision = 100 * np.array(curve["precision"])
            label = f"tier {tier}: {num_classes[tier]} classes"
            axes.plot(100 * np.array(curve["coverage"]), precision, color=colour, label=label)
            lowest = min(lowest, precision[-1])
            own = [each["measured"] for each in kept if each["tier"] == tier and each["measured"]["interval"]]
            axes.plot(
                [100 * each["coverage"] for each in own],
                [100 * each["precision"] for each in own],
                color=colour,
                marker=marker,
                markersize=5,
                linestyle="",
            )
        axes.set_title(f"level {row['level']}", loc="left", fontsize=10, fontweight="bold")
        axes.set_xlim(0, 100)
        axes.set_ylim(max(0.0, 10 * np.floor(lowest / 10) - 5), 101)
        axes.set_xlabel("coverage: images answered, %")
        axes.set_ylabel("right among them, %")
        axes.legend(loc="lower left")
        return _svg(figure, f"coverage{row['level']}", about)


def confusion_matrix(counts: Counts, taxonomy: Taxonomy, tier: int, about: str) -> str:
    """Share of the images of each class (rows) answered with each class (columns), in tree order.

    Up to 20 classes are labelled with names and per cent, up to 60 with names, more with the names of tier 0.
    """
    order = tree_order(taxonomy, tier)
    shares = counts[np.ix_(order, order)] / np.maximum(counts[order].sum(axis=1, keepdims=True), 1)
    size = len(order)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        side = 7.0 if size <= 20 else 10.0
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(_cells(shares), interpolation="none")
        for spine in axes.spines.values():
            spine.set_visible(True)
            spine.set_color(GRID)
        groups = _groups(taxonomy, tier)[order]
        for edge in np.flatnonzero(np.diff(groups)) + 0.5 if tier else ():
            axes.axhline(edge, color=GRID, linewidth=0.6)
            axes.axvline(edge, color=GRID, linewidth=0.6)
        _name_axes(axes, taxonomy, tier, order, groups)
        if size <= 20:
            for place in np.argwhere(shares >= 0.005).tolist():
                text = f"{100 * shares[place[0], place[1]]:.0f}"
                axes.text(place[1], place[0], text, ha="center", va="center", fontsize=7)
        axes.set_xlabel("answered")
        axes.set_ylabel("truth")
        return _svg(figure, f"confusion{tier}", about)


def _name_axes(
    axes: Axes, taxonomy: Taxonomy, tier: int, order: npt.NDArray[np.int64], groups: npt.NDArray[np.int64]
) -> None:
    if len(order) <= 60:
        names = [_shorten(taxonomy.classes(tier)[index].name) for index in order]
        places = np.arange(len(order), dtype=float)
    else:
        starts = np.flatnonzero(np.diff(groups, prepend=-1))
        ends = np.append(starts[1:], len(groups))
        places = (starts + ends - 1) / 2
        names = [_shorten(taxonomy.classes(0)[group].name) for group in groups[starts]]
    size = 6.5 if 20 < len(order) <= 60 else 8
    axes.set_xticks(places, names, rotation=90, fontsize=size)
    axes.set_yticks(places, names, fontsize=size)
    axes.tick_params(length=0)


def _cells(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """RGBA cells (C, C, 4); opacity is share ** 0.4, so that a few per cent are visible."""
    cells = np.empty((*shares.shape, 4), dtype=np.uint8)
    cells[..., :3] = WRONG
    cells[np.arange(len(cells)), np.arange(len(cells)), :3] = RIGHT
    cells[..., 3] = np.round(255 * shares**0.4)
    return cells


def _groups(taxonomy: Taxonomy, tier: int) -> npt.NDArray[np.int64]:
    """The class of tier 0 of each class of a tier."""
    classes = np.arange(taxonomy.num_classes[tier])
    for above in range(tier, 0, -1):
        classes = taxonomy.parent_classes(above)[classes]
    return classes


def _shorten(name: str, length: int = 28) -> str:
    shown = one_line(name)
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def _svg(figure: Figure, name: str, about: str) -> str:
    """The figure as an SVG element; ``name`` makes its ids unique on the page."""
    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page's fonts draw the text
        figure.savefig(
            drawn,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    for stand_in, colour in COLOURS.items():
        body = body.replace(stand_in, f"var(--{colour})")
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    return f'<svg {box[0]} role="img" aria-label="{escape(about)}">{body}'
