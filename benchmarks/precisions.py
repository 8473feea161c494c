"""Whether thresholds hold what they promise at precisions that they were not fitted for, but interpolated between.

    python benchmarks/precisions.py MODEL DATA [--known-top1 P] [--json OUT]

Temperatures and thresholds are fitted to a random half of the labelled images and measured on the other, both ways and
several times, as `hierclass-train calibrate` measures those of its own precisions. Of every level, tier and wanted
precision: the share of right answers among those given, its 95% interval, and the share of images that get an answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import RepeatedKFold

from hierclass.decisions.calibration import Decision
from training.evaluation.calibration import (
    MOST_SPLITS,
    PRECISIONS,
    SPLIT_IMAGES,
    ThresholdOutcome,
    add_outcomes,
    apply_threshold,
    find_thresholds,
    fit_temperature,
    level_scores,
    score_answers,
)
from training.evaluation.evaluate import Evaluation, run_checkpoint

BETWEEN = (0.57, 0.62, 0.73, 0.78, 0.83, 0.87, 0.925, 0.935, 0.955, 0.965)
"""Wanted precisions that are interpolated."""
ASKED = (0.6, 0.75, 0.85, 0.93, 0.97)
"""Wanted precisions that are fitted themselves."""


def measure(found: Evaluation, fitted: tuple[float, ...], wanted: tuple[float, ...]) -> list[dict[str, Any]]:
    """Cross-fit thresholds for the precisions `fitted`, and measure what those for the precisions `wanted` keep."""
    taxonomy, predictions = found.checkpoint.taxonomy, found.predictions
    truth = predictions.kept_truth(taxonomy)
    weights = None if found.weighting is None else found.weighting.kept
    splits = max(1, min(MOST_SPLITS, SPLIT_IMAGES // len(truth)))
    rows = []
    for level in range(taxonomy.num_tiers):
        log_scores = level_scores(predictions, taxonomy, found.decision.lower_weight, level)
        kept: dict[tuple[int, float], list[ThresholdOutcome]] = {}
        for own, other in RepeatedKFold(n_splits=2, n_repeats=splits, random_state=0).split(truth):
            temperature = fit_temperature(
                log_scores[own], truth[own, level], None if weights is None else weights[own]
            )
            scored = score_answers(log_scores, truth, taxonomy, level, temperature, weights)
            decision = Decision(thresholds=tuple(find_thresholds(scored.rows(own), level, fitted)))
            for precision in wanted:
                for threshold in decision.at(precision)[0]:
                    outcome = apply_threshold(threshold, scored.rows(other))
                    kept.setdefault((threshold.tier, precision), []).append(outcome)
        rows += [
            {"level": level, "tier": tier, "wanted": rate, **add_outcomes(outcomes, splits).to_dict()}
            for (tier, rate), outcomes in kept.items()
        ]
    return rows


def draw(rows: list[dict[str, Any]], title: str) -> Table:
    """A row per level and tier, a column per wanted precision: right answers of those given (share of images)."""
    table, wanted = Table(title=title), sorted({row["wanted"] for row in rows})
    for head in ("level", "tier", *(f"{each:.1%}" for each in wanted)):
        table.add_column(head, justify="right")
    for level, tier in sorted({(row["level"], row["tier"]) for row in rows}):
        own = {row["wanted"]: row for row in rows if (row["level"], row["tier"]) == (level, tier)}
        cells = [
            "none" if each["precision"] is None else f"{each['precision']:.1%} ({each['coverage']:.0%})"
            for each in (own[precision] for precision in wanted)
        ]
        table.add_row(str(level), str(tier), *cells)
    return table


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a model.")],
    data: Annotated[list[str], typer.Argument(help="Labelled images that it was not trained on.")],
    known_top1: Annotated[float | None, typer.Option(help="As of hierclass-train calibrate.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write every row here.")] = None,
) -> None:
    """Print the tables and write the JSON."""
    found, console = run_checkpoint(model, data, known_top1=known_top1), Console(width=160)
    between = measure(found, PRECISIONS, BETWEEN)
    console.print(draw(between, "interpolated between what is fitted: right (share of images)"))
    asked = measure(found, PRECISIONS, ASKED)
    console.print(draw(asked, "fitted"))
    coarse = measure(found, (0.8, 0.9, 0.95, 0.99), (0.85, 0.93, 0.97))
    console.print(draw(coarse, "interpolated between 80, 90, 95 and 99%, as of models of before"))
    if json_ is not None:
        results = {
            "images": found.predictions.num_usable,
            "between": between,
            "fitted": asked,
            "coarse": coarse,
        }
        json_.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
