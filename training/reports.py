"""What a person sees while and after training: a progress bar or log lines, and tables per level."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table


def clock(seconds: float) -> str:
    """A duration as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Reporter:
    """Shows a run: a bar on a terminal, else a line at most every 30 seconds and one per epoch.

    The time left is the time so far, scaled by the work left; work is counted in pixels, since steps of small
    images are faster. The first step of the run, in which workers start and networks are compiled, is not counted.
    """

    def __init__(self, console: Console, *, total_work: float, quiet: bool = False) -> None:
        """Show a run of so much work on a console; ``quiet`` shows nothing."""
        self.console, self.total_work, self.quiet = console, total_work, quiet
        self.done_work = 0.0
        self.last_line = time.monotonic()
        self.timed_from: tuple[float, float] | None = None
        self.bar: Progress | None = None
        self.task: TaskID | None = None

    def start(self, done_work: float) -> None:
        """Begin, or begin with something else; so much of its work was done by an earlier part of the run."""
        self.done_work = done_work
        self.last_line, self.timed_from = time.monotonic(), None
        if self.console.is_terminal and not self.quiet:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), console=self.console, transient=True
            )
            self.task = self.bar.add_task("starting", total=self.total_work)
            self.bar.update(self.task, completed=done_work)
            self.bar.start()

    def step(self, where: str, *, loss: float, rate: float, work: float, waiting: float = 0.0) -> None:
        """Report one update: which it is, mean loss so far, images per second (0: not known yet), its work.

        ``waiting`` is the share of the time, 0 to 1, that went into waiting for images.
        """
        self.advance(f"{where} loss {loss:.3f}", rate=rate, work=work, waiting=waiting)

    def advance(self, what: str, *, rate: float, work: float, waiting: float = 0.0) -> None:
        """Report that so much more work is done, and say what in a few words; else as `step`."""
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
            self.console.print(text, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def unreadable(self, errors: Sequence[str], where: str) -> None:
        """Say how many images could not be read, and which (the first five)."""
        if errors:
            self.line(f"{len(errors)} {where} cannot be read and are left out: {'; '.join(errors[:5])}")

    def stop(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def level_table(levels: Sequence[Mapping[str, Any]], *, title: str) -> Table:
    """A table of levels: tier, classes, accuracy with its interval, multiply-accumulates, parameters."""
    table = Table(title=title)
    for column in ("level", "tier", "classes", "accuracy", "95% interval", "MACs", "share", "parameters"):
        table.add_column(column, justify="right")
    for row in levels:
        low, high = row["interval"]
        table.add_row(
            str(row["level"]),
            str(row["tier"]),
            str(row["classes"]),
            f"{row['top1']:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{row['macs'] / 1e6:.1f} M",
            f"{row['share']:.3f}",
            f"{row['parameters']:,}",
        )
    return table


def consensus_table(results: Mapping[str, Any]) -> Table:
    """A table of what a consensus of the levels is worth: accuracy per level by the weight of lower levels."""
    table = Table(title="accuracy by how much lower levels count in an answer")
    table.add_column("lower levels count")
    for row in results["levels"]:
        table.add_column(f"level {row['level']}", justify="right")
    for row in results.get("consensus", ()):  # absent from runs of older versions
        name = f"{row['lower_weight']:g}" if row["lower_weight"] else "not at all"
        used = " (used)" if row["lower_weight"] == results["lower_weight"] else ""
        table.add_row(name + used, *(f"{top1:.1%}" for top1 in row["top1"]))
    return table


def measure_table(measures: Mapping[str, Any], *, title: str) -> Table:
    """A table of the finest level's hierarchical measures."""
    table = Table(title=title)
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in measures.items():
        table.add_row(name.replace("_", " "), "none" if value is None else f"{value:.4f}")
    return table


def calibration_table(found: Mapping[str, Any]) -> Table:
    """A table of temperatures and what they are worth, from what `training.calibration.to_results` gives."""
    table = Table(title=f"calibration, cross-fitted on {found['images']} images")
    for column in ("level", "temperature", "likelihood loss", "Brier score", "calibration error"):
        table.add_column(column, justify="right")
    for row in found["levels"]:
        before, after = row["before"], row["after"]
        table.add_row(
            str(row["level"]),
            f"{row['temperature']:.3f}",
            f"{before['nll']:.3f} to {after['nll']:.3f}",
            f"{before['brier']:.3f} to {after['brier']:.3f}",
            f"{before['ece'][-1]:.1%} to {after['ece'][-1]:.1%}",
        )
    return table


def stored_table(stored: Mapping[str, Any]) -> Table:
    """A table of what a model's own temperatures are worth, from `training.calibration.measure_decision`."""
    table = Table(title=f"the temperatures stored in the model, on {stored['images']} images")
    for column in ("level", "temperature", "likelihood loss", "Brier score", "calibration error"):
        table.add_column(column, justify="right")
    for row in stored["levels"]:
        numbers = (f"{row['nll']:.3f}", f"{row['brier']:.3f}", f"{row['ece'][-1]:.1%}")
        table.add_row(str(row["level"]), f"{row['temperature']:.3f}", *numbers)
    return table


def threshold_table(rows: Sequence[Mapping[str, Any]], *, how: str = "cross-fitted") -> Table:
    """A table of thresholds with the coverage they were found with, and how often answers are right and given.

    ``how`` says on what the last three columns were measured.
    """
    table = Table(title=f"scores from which on answers are right at a rate (measured: {how})")
    columns = (
        "level",
        "tier",
        "wanted",
        "from score",
        "coverage",
        "right",
        "95% interval",
        "coverage measured",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        measured = row["measured"]
        interval = measured["interval"]
        table.add_row(
            str(row["level"]),
            str(row["tier"]),
            f"{row['precision']:.0%}",
            "none" if row["score"] is None else f"{row['score']:.3f}",
            f"{row['coverage']:.1%}",
            "" if interval is None else f"{measured['precision']:.1%}",
            "" if interval is None else f"{interval[0]:.1%} to {interval[1]:.1%}",
            f"{measured['coverage']:.1%}",
        )
    return table


def show_results(console: Console, results: Mapping[str, Any], title: str) -> None:
    """Print all tables of measured results, as `training.evaluate.measures` gives them."""
    console.print(level_table(results["levels"], title=f"{title}: {results['images']} images"))
    console.print(consensus_table(results))
    console.print(measure_table(results["finest"], title="finest level"))
    balanced = " / ".join(f"{row['balanced']:.1%}" for row in results["levels"])
    console.print(f"mean accuracy per class, each level alone: {balanced}", highlight=False)
    show_calibration(console, results)


def show_calibration(console: Console, results: Mapping[str, Any]) -> None:
    """Print what was fitted to say how sure answers are, what a model has stored of that, and what was unreadable."""
    if found := results["calibration"]:
        console.print(calibration_table(found))
        console.print(threshold_table(found["thresholds"]))
    if stored := results.get("stored"):
        console.print(stored_table(stored))
        console.print(threshold_table(stored["thresholds"], how="those stored in the model"))
    if results["unreadable"]:
        console.print(
            f"{len(results['unreadable'])} images could not be read: {'; '.join(results['unreadable'][:5])}"
        )
