"""The tables of docs/structures.md, from the JSON file of `benchmarks/structures.py`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from structures_rows import ROWS

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
"""Between these lines of a Markdown file stand the tables."""
DISTILLED = {
    "slices": "off",
    "slices-distil-last": "the last level",
    "slices-distil-next": "the next level",
    "slices-distil-ema": "the last level's moving average",
}
ORDERED = {"heads": "heads and norm statistics, one epoch", "tuned": "everything, one epoch"}

Result = dict[str, Any]


def report(results: Result) -> str:
    """All tables as Markdown; of several seeds the mean."""
    rows: dict[str, list[Result]] = {name: [] for name in ROWS}
    for row in results["rows"]:
        rows[row["name"]].append(row)
    rows = {name: found for name, found in rows.items() if found}
    times = {(t["name"], t["what"], t["batch"]): t for t in results.get("times", {}).get("rows", ())}
    parts = [
        _heading("Accuracy and cost of every level", level_table(rows, times)),
        _heading("Climbing through all levels", climb_table(rows, times)),
        _heading("Training and storing", training_table(rows, times)),
        _heading("Compressed to one level", compressed_table(results.get("compressed", {}).get("rows", ()))),
        _heading("Distillation inside the network", distil_table(rows)),
        _heading("Lower levels count in the answer", consensus_table(rows)),
        _heading("Slices of a network that was trained dense", order_table(rows)),
    ]
    return "\n\n".join(part for part in parts if part)


def put_into(document: Path, tables: str) -> str:
    """The text of a document with its tables replaced."""
    text = document.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{document} has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def level_table(rows: dict[str, list[Result]], times: dict[Any, Result]) -> list[list[str]]:
    """A line per level of every network that is different from the others."""
    lines = [
        [
            "network", "level", "MMACs", "parameters", "own tier, % (95% interval)", "tier 0, %",
            "time of dense, batch 1", "batch 32",
        ]
    ]  # fmt: skip
    for name, found in rows.items():
        if not ROWS[name].timed:
            continue
        for k, level in enumerate(found[0]["levels"]):
            # A network of one level runs whole, whatever is asked.
            what = f"level {k}" if name != "dense" else f"level {len(found[0]['levels']) - 1}"
            lines.append(
                [
                    ROWS[name].title if not k else "",
                    str(k),
                    f"{level['macs'] / 1e6:.2f}",
                    f"{level['parameters']:,}",
                    _accuracy(found, k),
                    _percent(_mean(row["levels"][k]["tier0"] for row in found)),
                    *(_ratio(times, name, what, batch) for batch in (1, 32)),
                ]
            )
    return lines


def climb_table(rows: dict[str, list[Result]], times: dict[Any, Result]) -> list[list[str]]:
    """What an answer costs that begins at level 0 and goes on to the last, beside asking the last level directly."""
    lines = [["network", "MMACs, climbing", "directly", "time of dense, climbing, batch 1", "batch 32"]]
    for name, found in rows.items():
        if ROWS[name].timed and name != "dense":
            macs = [level["macs"] for level in found[0]["levels"]]
            reuses = found[0]["networks"][0]["structure"] == "slices"
            climbed = macs[-1] if reuses else sum(macs)
            ratios = [_ratio(times, name, "climb", batch) for batch in (1, 32)]
            lines.append([ROWS[name].title, f"{climbed / 1e6:.2f}", f"{macs[-1] / 1e6:.2f}", *ratios])
    return lines


def training_table(rows: dict[str, list[Result]], times: dict[Any, Result]) -> list[list[str]]:
    """What training took, and the bytes of the weights on disk; rows without times were trained beside other work."""
    updates = {name: time["ratio"] for (name, what, _), time in times.items() if what == "update"}
    lines = [["network", "images/s", "s per epoch", "s in all", "an update, of dense", "weights, kB"]]
    for name, found in rows.items():
        if (name in DISTILLED or ROWS[name].timed) and found[0]["seconds"] is not None:
            lines.append(
                [
                    ROWS[name].title,
                    f"{_mean(row['images_per_second'] for row in found):.0f}",
                    f"{_mean(row['epoch_seconds'] for row in found):.0f}",
                    f"{_mean(row['seconds'] for row in found):.0f}",
                    f"{updates[name]:.2f}" if updates.get(name) else "–",
                    f"{found[0]['checkpoint_bytes'] / 1e3:,.0f}",
                ]
            )
    return lines


def compressed_table(rows: Sequence[Result]) -> list[list[str]]:
    """What `hierclass compress` makes of every network; times in relation to the whole network's last level."""
    header = ["network", "level", "kB on disk", "of the whole", "time alone, batch 1", "batch 32"]
    lines = [[*header, "inside the whole, batch 1", "batch 32"]]
    for row in rows:
        times = [f"{row[kind][batch]:.2f}" for kind in ("ratio", "inside_ratio") for batch in ("1", "32")]
        size = [f"{row['bytes'] / 1e3:,.0f}", f"{row['bytes_ratio']:.2f}"]
        lines.append(["" if row["level"] else ROWS[row["name"]].title, str(row["level"]), *size, *times])
    return lines


def distil_table(rows: dict[str, list[Result]]) -> list[list[str]]:
    """Accuracy of `slices` by who teaches the lower levels."""
    return _by_level("taught by", {title: rows.get(name, []) for name, title in DISTILLED.items()})


def order_table(rows: dict[str, list[Result]]) -> list[list[str]]:
    """Accuracy of slices that began as a trained dense network, by the order of channels."""
    chosen = {
        f"{trained}, order {order}": rows.get(f"{order}-{kind}", [])
        for kind, trained in ORDERED.items()
        for order in ("given", "importance")
    }
    return _by_level("trained after nesting", chosen)


def consensus_table(rows: dict[str, list[Result]]) -> list[list[str]]:
    """Accuracy by how much lower levels count in an answer; level 0 has none below it."""
    found = {name: runs for name, runs in rows.items() if ROWS[name].timed and "consensus" in runs[0]}
    if not found:
        return []
    weights = [entry["lower_weight"] for entry in next(iter(found.values()))[0]["consensus"]]
    lines = [["network", "level", *(f"{weight:g}" for weight in weights)]]
    for name, runs in found.items():
        for level in range(1, len(runs[0]["levels"])):
            values = [
                _percent(_mean(row["consensus"][number]["top1"][level] for row in runs))
                for number in range(len(weights))
            ]
            lines.append([ROWS[name].title if level == 1 else "", str(level), *values])
    return lines


def _by_level(first: str, chosen: dict[str, list[Result]]) -> list[list[str]]:
    found = {title: runs for title, runs in chosen.items() if runs}
    if not found:
        return []
    levels = range(len(next(iter(found.values()))[0]["levels"]))
    lines = [[first, *(f"level {k}, % (95% interval)" for k in levels)]]
    return lines + [[title, *(_accuracy(runs, k) for k in levels)] for title, runs in found.items()]


def _accuracy(runs: Sequence[Result], level: int) -> str:
    """Mean accuracy of a level on its tier, and its interval."""
    mean: Callable[[int], float] = lambda end: _mean(run["levels"][level]["interval"][end] for run in runs)  # noqa: E731
    accuracy = _mean(run["levels"][level]["accuracy"] for run in runs)
    return f"{_percent(accuracy)} ({_percent(mean(0))} – {_percent(mean(1))})"


def _ratio(times: dict[Any, Result], name: str, what: str, batch: int) -> str:
    ratio = times.get((name, what, batch), {}).get("ratio")
    return "–" if ratio is None else f"{ratio:.2f}"


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return statistics.fmean(listed) if listed else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _heading(title: str, lines: Sequence[Sequence[str]]) -> str:
    """A table under a heading; its first line are the columns' names. Nothing, if it has no other line."""
    if len(lines) < 2:
        return ""
    header, *body = ["| " + " | ".join(line) + " |" for line in lines]
    rule = "| --- |" + " ---: |" * (len(lines[0]) - 1)
    return "\n".join([f"### {title}", "", header, rule, *body])
