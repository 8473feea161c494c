"""Interactive figures: the tree of classes coloured by probability, and accuracy against cost."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hierclass.page.messages import percent
from taxonomy.streams import visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hierclass.costs import Level
    from hierclass.page.single import Stage
    from taxonomy import Taxonomy

INK = "#7688a1"
"""Colour of lines and axes, for light and dark background; texts get theirs from style.css."""
UNKNOWN = "#cbd5e1"
PALE, STRONG = (226, 232, 240), (15, 118, 110)
DARK, BRIGHT = "#000000", "#ffffff"
CHOSEN = "#f59e0b"
"""The outline of the chosen path."""
HEIGHT = 460
_LONGEST = 18
_NARROWEST = 90
"""Classes below 1/N of the circle show their names only on hovering."""
_OUTLINED = 720
"""Classes below 1/N of the circle are outlined in their own colour, which a bright line would hide."""
_LONGEST_MEANING = 96
_CURVED = 0.35
"""Exponent of scores for their colour; makes a probability of 0.05 visible."""


@functools.lru_cache(maxsize=2)
def draw_blank_tree(taxonomy: Taxonomy) -> go.Figure:
    """Draw the tree without an answer; the figure is shared."""
    return draw_tree(taxonomy)


def draw_tree(taxonomy: Taxonomy, stages: Sequence[Stage] = ()) -> go.Figure:
    """Draw the tree as a sunburst: tier 0 inside, width by number of leaves, colour by probability.

    Tiers that were not computed are grey. The path of the last stage is outlined as far as it is the answer.
    """
    import plotly.graph_objects as go

    wheel = _wheel(taxonomy)
    scores, path = dict[str, float](), dict[str, str]()
    if stages:
        last = stages[-1]
        for tier in range(last.level + 1):
            nodes, values = taxonomy.classes(tier), last.prediction.scores(tier).tolist()
            scores |= {f"{tier}/{node.id}": score for node, score in zip(nodes, values, strict=True)}
        for tier, step in enumerate(last.prediction.path):
            given = not last.enough or (last.tier is not None and tier <= last.tier)
            path[f"{tier}/{step.synset}"] = "answer" if given else "guess"
    colours = [_colour(scores[each]) if each in scores else UNKNOWN for each in wheel.ids]
    hover = [
        f"<b>{name}</b><br>{percent(scores[each]) if each in scores else 'not computed'}"
        + (f"<br>{meaning}" if meaning else "")
        for each, name, meaning in zip(wheel.ids, wheel.names, wheel.meanings, strict=True)
    ]
    burst = go.Sunburst(
        ids=wheel.ids,
        labels=wheel.names,
        text=_texts(wheel, path),
        textinfo="text",
        parents=wheel.parents,
        values=wheel.leaves,
        branchvalues="total",
        sort=False,
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
        insidetextorientation="radial",
        textfont={"color": [_readable(scores.get(each, 0.0)) for each in wheel.ids]},
        marker={"colors": colours, "line": _outlines(wheel, colours, path)},
        leaf={"opacity": 1},
    )
    return _framed(go.Figure(burst), HEIGHT)


def draw_curve(levels: Sequence[Level]) -> go.Figure:
    """Draw the accuracy of each level on its own tier against its cost; leave out levels that were not measured."""
    import plotly.graph_objects as go

    measured = [level for level in levels if level.accuracy is not None]
    figure = go.Figure(
        go.Scatter(
            x=[level.macs / 1e6 for level in measured],
            y=[100 * (level.accuracy or 0) for level in measured],
            text=[f"one of {level.num_classes:,}" for level in measured],
            mode="lines+markers+text",
            textposition="top center",
            line={"color": "#0d9488", "width": 3},
            marker={"size": 11},
            hovertemplate="%{text}: %{y:.1f}% right<br>%{x:.1f} million multiply-accumulates<extra></extra>",
            cliponaxis=False,
        )
    )
    grid = {
        "gridcolor": "rgba(148, 163, 184, 0.3)",
        "zeroline": False,
        "rangemode": "tozero",
        "automargin": True,
    }
    figure.update_xaxes(title="million multiply-accumulates", **grid)
    figure.update_yaxes(title="right answers (%)", range=[0, 100], **{**grid, "rangemode": "normal"})
    if not measured:
        figure.add_annotation(text="This model was not measured.", showarrow=False)
    return _framed(figure, 340, margin=50)


class _Sunburst:
    """Data of the sunburst: the classes of all tiers as parallel lists."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.ids: list[str] = []
        self.names: list[str] = []
        self.labels: list[str] = []
        self.meanings: list[str] = []
        self.parents: list[str] = []
        self.leaves: list[int] = []
        for tier in range(taxonomy.num_tiers):
            projection = taxonomy.projection(tier).tolist()
            above = taxonomy.parent_classes(tier).tolist() if tier else []
            for index, node in enumerate(taxonomy.classes(tier)):
                self.ids.append(f"{tier}/{node.id}")
                self.names.append(_plain(node.name))
                self.labels.append(_plain(textwrap.shorten(node.name, _LONGEST, placeholder="…")))
                meaning = textwrap.shorten(_plain(node.definition), _LONGEST_MEANING, placeholder=" …")
                self.meanings.append("<br>".join(textwrap.wrap(meaning, 48)))
                self.parents.append(
                    f"{tier - 1}/{taxonomy.classes(tier - 1)[above[index]].id}" if tier else ""
                )
                self.leaves.append(projection.count(index))


def _outlines(wheel: _Sunburst, colours: Sequence[str], path: Mapping[str, str]) -> dict[str, list[Any]]:
    """Colours and widths of the outlines, with the answer's path highlighted."""
    total, lines, widths = _total(wheel), [], []
    for each, colour, leaves in zip(wheel.ids, colours, wheel.leaves, strict=True):
        answered, wide = path.get(each) == "answer", leaves * _OUTLINED >= total
        lines.append(CHOSEN if answered else BRIGHT if wide else colour)
        widths.append(3 if answered else 0.5)
    return {"color": lines, "width": widths}


def _texts(wheel: _Sunburst, path: Container[str]) -> list[str]:
    """Names that are written into the sunburst: those with enough room, and those of the path."""
    total, texts = _total(wheel), []
    for each, short, leaves in zip(wheel.ids, wheel.labels, wheel.leaves, strict=True):
        roomy = leaves * _NARROWEST >= total
        texts.append(f"<b>{short}</b>" if each in path else short if roomy else "")
    return texts


def _total(wheel: _Sunburst) -> int:
    """Number of leaves."""
    return sum(count for count, parent in zip(wheel.leaves, wheel.parents, strict=True) if not parent)


@functools.lru_cache(maxsize=4)
def _wheel(taxonomy: Taxonomy) -> _Sunburst:
    return _Sunburst(taxonomy)


def _plain(text: str) -> str:
    """Replace angle brackets, since plotly reads some tags, and characters that hide others."""
    return visible(text).replace("<", "‹").replace(">", "›")


def _mixed(score: float) -> list[float]:
    """Red, green and blue (0 … 255) of a probability."""
    part = max(0.0, min(1.0, score)) ** _CURVED
    return [a + (b - a) * part for a, b in zip(PALE, STRONG, strict=True)]


def _colour(score: float) -> str:
    return "#" + "".join(f"{round(value):02x}" for value in _mixed(score))


def _readable(score: float) -> str:
    """Letter colour, dark or bright, with more contrast on the colour of a probability (WCAG 2.2)."""
    linear = [((v / 255 + 0.055) / 1.055) ** 2.4 for v in _mixed(score)]
    luminance = sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return DARK if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else BRIGHT


def _framed(figure: go.Figure, height: int, *, margin: int = 4) -> go.Figure:
    """Set the layout that all figures share; no background, to fit light and dark pages."""
    figure.update_layout(
        height=height,
        margin={"l": margin, "r": margin, "t": 24 if margin > 4 else 4, "b": margin},
        font={"family": "system-ui, sans-serif", "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        dragmode=False,
    )
    return figure
