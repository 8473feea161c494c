"""Output on the console: progress, and tables of results per level."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from taxonomy.terminal import PlainConsole

USUAL = (0.8, 0.9, 0.95, 0.99)
"""The wanted rates of right answers that tables show; thresholds are fitted for more."""
Rows = tuple[list[str], list[list[str]]]
"""Column heads and rows of a table, as text."""
TEMPERATURE_HEADS = ["level", "temperature", "likelihood loss", "Brier score", "calibration error"]


def clock(seconds: float) -> str:
    """Format a duration as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Reporter:
    """Shows progress: a bar on a terminal, else a line at most every 30 seconds.

    The remaining time is extrapolated from the work done, in units of the task (training counts pixels). The first
    step, in which workers start and networks are compiled, is not counted.
    """

    def __init__(self, console: PlainConsole, *, quiet: bool = False) -> None:
        """Show progress on a console; ``quiet`` shows nothing."""
        self.console, self.quiet = console, quiet
        self.total_work = self.done_work = 0.0
        self.last_line = time.monotonic()
        self.timed_from: tuple[float, float] | None = None
        self.bar: Progress | None = None
        self.task: TaskID | None = None

    def start(self, total_work: float, done_work: float = 0.0) -> None:
        """Begin a task of ``total_work``, of which ``done_work`` was done by an earlier start."""
        self.total_work, self.done_work = total_work, done_work
        self.last_line, self.timed_from = time.monotonic(), None
        if self.console.is_terminal and not self.quiet:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), console=self.console, transient=True
            )
            self.task = self.bar.add_task("starting", total=self.total_work)
            self.bar.update(self.task, completed=done_work)
            self.bar.start()

    def step(self, where: str, *, loss: float, rate: float, work: float, waiting: float = 0.0) -> None:
        """Report one update: its name, mean loss, images per second (0: unknown), its work.

        ``waiting`` is the share of the time (0 to 1) spent waiting for images.
        """
        self.advance(f"{where} loss {loss:.3f}", rate=rate, work=work, waiting=waiting)

    def advance(self, what: str, *, rate: float, work: float, waiting: float = 0.0) -> None:
        """Report that ``work`` more is done; otherwise as `step`."""
        self.done_work += work
        now = time.monotonic()
        if self.timed_from is None:
            self.timed_from = (now, self.done_work)
        started, first = self.timed_from
        if self.quiet or (self.bar is None and now - self.last_line < 30):
            return
        text = what
        if self.done_work > first:
            left = (now - started) * (self.total_work - self.done_work) / (self.done_work - first)
            text += f" {rate:.0f} img/s" if rate else ""
            text += f" waiting {waiting:.0%}" if waiting >= 0.01 else ""
            text += f" left {clock(left)}"
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=self.done_work, description=text)
        else:
            self.last_line = now
            self.line(text)

    def line(self, text: str) -> None:
        """Print one plain line."""
        if not self.quiet:
            self.console.print(text, soft_wrap=True)

    def unreadable(self, errors: Sequence[str], where: str) -> None:
        """Print how many images can't be read, and the first five."""
        if errors:
            self.line(f"{len(errors)} {where} cannot be read and are left out: {'; '.join(errors[:5])}")

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def level_table(levels: Sequence[Mapping[str, Any]], *, title: str) -> Table:
    """Table of the answers by the level that is asked: tier, classes, accuracy with its interval, cost, parameters."""
    table = _table(title, *level_rows(levels))
    table.caption = counts_sentence(levels) or None
    return table


def level_rows(levels: Sequence[Mapping[str, Any]]) -> Rows:
    """Heads and rows of `level_table`."""
    heads = ["level", "tier", "classes", "accuracy", "95% interval", "MACs", "share", "parameters"]
    rows = [
        [
            str(row["level"]),
            str(row["tier"]),
            str(row["classes"]),
            with_weighted(row["top1"], row.get("weighted_top1")),
            _interval(row["interval"]),
            f"{row['macs'] / 1e6:.1f} M",
            f"{row['share']:.3f}",
            f"{row['parameters']:,}",
        ]
        for row in levels
    ]
    return heads, rows


def counts_sentence(levels: Sequence[Mapping[str, Any]]) -> str:
    """Say how many images count on each tier where these differ, else ""."""
    counts = [row["images"] for row in levels if "images" in row]  # absent from runs of older versions
    if len(set(counts)) < 2:
        return ""
    tiers = " / ".join(f"{count:,}" for count in counts)
    return f"Images that are labelled down to tier {' / '.join(map(str, range(len(counts))))}: {tiers}."


def answer_table(results: Mapping[str, Any]) -> Table:
    """Table of the accuracy on each tier, per level asked."""
    return _table("right answers to each tier by the level that is asked", *answer_rows(results))


def answer_rows(results: Mapping[str, Any]) -> Rows:
    """Heads and rows of `answer_table`."""
    levels = len(results["levels"])
    weighted = results.get("weighted_answers") or [[None] * levels] * levels
    rows = []
    for level, shares in enumerate(results["answers"]):
        cells = [with_weighted(*pair) for pair in zip(shares, weighted[level], strict=False)]
        rows.append([str(level), *cells, *[""] * (levels - len(cells))])
    return ["level asked", *(f"tier {tier}" for tier in range(levels))], rows


def with_weighted(share: float, weighted: float | None) -> str:
    """Format an accuracy, followed by the weighted one in brackets if there is one."""
    return f"{share:.1%}" if weighted is None else f"{share:.1%} ({weighted:.1%})"


def consensus_table(results: Mapping[str, Any]) -> Table:
    """Table of the accuracy per level, by the weight of lower levels."""
    table = Table(title="accuracy by how much lower levels count in an answer")
    table.add_column("lower levels count")
    for row in results["levels"]:
        table.add_column(f"level {row['level']}", justify="right")
    for row in results.get("consensus", ()):  # absent from runs of older versions
        name = f"{row['lower_weight']:g}" if row["lower_weight"] else "not at all"
        used = " (used)" if row["lower_weight"] == results["lower_weight"] else ""
        table.add_row(name + used, *(f"{top1:.1%}" for top1 in row["top1"]))
    return table


def alone_table(alone: Mapping[str, Any]) -> Table:
    """Table of the levels taken alone, from `training.evaluation.evaluate.measures_alone`."""
    table = _table("each level alone, as if there were no others (no answer is made so)", *alone_rows(alone))
    table.caption = alone_sentence(alone)
    return table


def alone_rows(alone: Mapping[str, Any]) -> Rows:
    """Heads and rows of `alone_table`."""
    pairs = enumerate(zip(alone["top1"], alone["balanced"], strict=True))
    rows = [[str(level), str(level), f"{top1:.1%}", f"{balanced:.1%}"] for level, (top1, balanced) in pairs]
    return ["level", "tier", "accuracy", "mean per class"], rows


def alone_sentence(alone: Mapping[str, Any]) -> str:
    """Explain how levels that are taken alone fit together."""
    return (
        f"all levels right at once: {alone['full_path_accuracy']:.1%}; levels that contradict one another: "
        f"{alone['inconsistency_rate']:.1%} of the images (answers never do: they are paths of the tree); the finest "
        f"level has the leaf among its best five: {alone['top5']:.1%}"
    )


def measure_table(measures: Mapping[str, Any], *, title: str) -> Table:
    """Table of the hierarchical measures of the finest level's answer."""
    table = Table(title=title)
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in measures.items():
        table.add_row(name.replace("_", " "), "none" if value is None else f"{value:.4f}")
    return table


def calibration_table(found: Mapping[str, Any]) -> Table:
    """Table of temperatures with the measures before and after, from `training.evaluation.calibration.to_results`."""
    return _table(
        f"calibration, cross-fitted on {found['images']} images", *calibration_rows(found["levels"])
    )


def calibration_rows(levels: Sequence[Mapping[str, Any]]) -> Rows:
    """Heads and rows of `calibration_table`."""
    rows = [
        [
            str(row["level"]),
            f"{row['temperature']:.3f}",
            *map("{} to {}".format, _measures(row["before"]), _measures(row["after"])),
        ]
        for row in levels
    ]
    return TEMPERATURE_HEADS, rows


def stored_table(stored: Mapping[str, Any]) -> Table:
    """Table of a model's stored temperatures, from `training.evaluation.calibration.measure_decision`."""
    rows = [[str(row["level"]), f"{row['temperature']:.3f}", *_measures(row)] for row in stored["levels"]]
    title = f"the temperatures stored in the model, on {stored['images']} images"
    return _table(title, TEMPERATURE_HEADS, rows)


def _measures(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['nll']:.3f}", f"{row['brier']:.3f}", f"{row['ece'][-1]:.1%}"]


def usual(thresholds: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows of thresholds for the rates of `USUAL`; all where none is."""
    return [row for row in thresholds if row["precision"] in USUAL] or list(thresholds)


def coverage_table(thresholds: Sequence[Mapping[str, Any]]) -> Table:
    """Table of the coverage at each wanted rate of right answers."""
    title = "coverage by the wanted rate of right answers: fitted to all images (cross-fitted)"
    return _table(title, *coverage_rows(thresholds))


def coverage_rows(thresholds: Sequence[Mapping[str, Any]]) -> Rows:
    """Heads and rows of `coverage_table`: per level and tier (rows) and wanted rate of `USUAL` (columns).

    Cells have the coverage of the shipped threshold, or "none" if the rate can't be reached, and the cross-fitted one
    in brackets.
    """
    thresholds = usual(thresholds)
    rates = sorted({row["precision"] for row in thresholds})
    cells: dict[tuple[int, int], list[str]] = {}
    for row in sorted(thresholds, key=lambda row: row["precision"]):
        shipped = "none" if row["score"] is None else f"{row['coverage']:.1%}"
        place = cells.setdefault((row["level"], row["tier"]), [])
        place.append(f"{shipped} ({row['measured']['coverage']:.1%})")
    rows = [[str(level), str(tier), *found] for (level, tier), found in sorted(cells.items())]
    return ["level asked", "tier", *(f"{rate:.0%}" for rate in rates)], rows


def threshold_table(thresholds: Sequence[Mapping[str, Any]], *, how: str = "cross-fitted") -> Table:
    """Table of thresholds with their coverage, and measured precision and coverage.

    ``how`` says on what the last three columns were measured.
    """
    title = f"scores from which on answers are right at a rate (measured: {how})"
    return _table(title, *threshold_rows(thresholds))


def threshold_rows(thresholds: Sequence[Mapping[str, Any]]) -> Rows:
    """Heads and rows of `threshold_table`, for the rates of `USUAL`."""
    heads = [
        "level",
        "tier",
        "wanted",
        "from score",
        "coverage",
        "right",
        "95% interval",
        "coverage measured",
    ]
    rows = []
    for row in usual(thresholds):
        measured = row["measured"]
        given = measured["interval"] is not None
        rows.append(
            [
                str(row["level"]),
                str(row["tier"]),
                f"{row['precision']:.0%}",
                "none" if row["score"] is None else f"{row['score']:.3f}",
                f"{row['coverage']:.1%}",
                f"{measured['precision']:.1%}" if given else "",
                _interval(measured["interval"]) if given else "",
                f"{measured['coverage']:.1%}",
            ]
        )
    return heads, rows


def _interval(ends: Sequence[float]) -> str:
    return f"{ends[0]:.1%} to {ends[1]:.1%}"


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for head in heads:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def weighting_sentence(known: Mapping[str, Any], images: int) -> str:
    """Explain the weights of `Weighting.to_dict`, for ``images`` calibration images."""
    than = "easier" if known["factor"] > 1 else "harder"
    return (
        f"These images are {than} than those the model will meet: level {known['level']} has {known['measured']:.1%} "
        f"of them right, and {known['top1']:.1%} of representative ones. So an image that it has wrong counts "
        f"{known['factor']:.2f} times as much as one that it has right, in temperatures, thresholds, precision, "
        f"coverage and calibration error; the {images:,} images say as much as {known['effective_images']:,.0f} equal "
        "ones."
    )


def show_results(console: PlainConsole, results: Mapping[str, Any], title: str) -> None:
    """Print all tables of `training.evaluation.evaluate.measures`."""
    show_notes(console, results)
    console.print(level_table(results["levels"], title=f"answers of {title}: {results['images']} images"))
    console.print(answer_table(results))
    console.print(measure_table(results["finest"], title="the finest level's answer"))
    balanced = " / ".join(f"{row['balanced']:.1%}" for row in results["levels"])
    console.print(f"mean accuracy per class: {balanced}")
    console.print(alone_table(results["alone"]))
    console.print(consensus_table(results))
    show_calibration(console, results)


def show_notes(console: PlainConsole, results: Mapping[str, Any]) -> None:
    """Print what was left out of the images."""
    for note in results.get("notes", ()):
        console.print(note, soft_wrap=True)


def show_calibration(console: PlainConsole, results: Mapping[str, Any]) -> None:
    """Print fitted and stored temperatures and thresholds, and unreadable images."""
    if found := results["calibration"]:
        if known := found["known_top1"]:
            console.print(weighting_sentence(known, found["images"]))
        console.print(calibration_table(found))
        console.print(threshold_table(found["thresholds"]))
        console.print(coverage_table(found["thresholds"]))
    if stored := results.get("stored"):
        console.print(stored_table(stored))
        console.print(threshold_table(stored["thresholds"], how="those stored in the model"))
    if results["unreadable"]:
        console.print(
            f"{len(results['unreadable'])} images could not be read: {'; '.join(results['unreadable'][:5])}"
        )
