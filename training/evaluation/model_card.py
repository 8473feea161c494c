"""The model card of ``fit``: what the model is, how it was made, how good it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taxonomy import Taxonomy
from training.evaluation.console import (
    Rows,
    alone_rows,
    alone_sentence,
    answer_rows,
    calibration_rows,
    clock,
    counts_sentence,
    coverage_rows,
    level_rows,
    threshold_rows,
    weighting_sentence,
)
from training.recipe.recipe import Recipe
from training.trainer.network import make_architecture

CALIBRATION = "## Calibration"
HOW_MADE = "## How it was made"
RESULTS = "## Results on labelled photographs"


def model_card(facts: Mapping[str, Any], taxonomy: Taxonomy) -> str:
    """Markdown of the facts of a run (training.json): recipe, hardware, duration, dev-split results."""
    recipe, best = facts["recipe"], facts["best"]
    results = best["results"]
    classes = " / ".join(map(str, taxonomy.num_classes))
    return "\n".join(
        [
            f"# Model card: {taxonomy.name or 'own classes'}",
            "",
            f"A nested classifier of {len(taxonomy.num_classes)} levels ({classes} classes): timm's "
            f"`{recipe['backbone']}` {_nesting(recipe, taxonomy.num_tiers)}, input {recipe['size']} x "
            f"{recipe['size']} pixels. Level k answers tier k of the taxonomy stored with the weights.",
            "",
            "## Results on the dev split",
            "",
            f"{results['images']} held-out images, never trained on. The dev split chose the epoch"
            + (" and the weight of the lower levels" if recipe.get("consensus", "auto") == "auto" else "")
            + ", so these figures are slightly optimistic.",
            "",
            *result_sections(results),
            HOW_MADE,
            "",
            f"- {facts['epochs_done']} of {recipe['epochs']} epochs in {clock(facts['seconds'])}; epoch "
            f"{best['epoch']} is stored; seed {recipe['seed']}",
            *hardware_lines(facts),
            "",
            *option_table(recipe),
            "",
        ]
    )


def result_sections(results: Mapping[str, Any]) -> list[str]:
    """Tables of the results, and the section on calibration if there is one."""
    return [
        *_table(level_rows(results["levels"])),
        "",
        *_counts(results),
        *_answer_table(results),
        "",
        *_consensus_table(results),
        "",
        *_measure_table(results["finest"]),
        "",
        *_alone_section(results.get("alone")),
        *_calibration_section(results.get("calibration"), _unseen(results)),
    ]


def hardware_lines(facts: Mapping[str, Any]) -> list[str]:
    """Hardware and versions as list items."""
    hardware = facts["hardware"]
    return [
        f"- {hardware['name']} ({hardware['device']}), {hardware['cpus']} processors, "
        f"{hardware['threads']} threads",
        *(f"- {name} {version}" for name, version in facts["versions"].items()),
    ]


def option_table(recipe: Mapping[str, Any]) -> list[str]:
    """All options of a recipe as a table."""
    return [
        "The whole recipe:",
        "",
        "| option | value |",
        "| --- | --- |",
        *(f"| {name} | {_list(value)} |" for name, value in recipe.items() if value not in (None, {}, [])),
    ]


def replace_calibration(card: str, found: Mapping[str, Any]) -> str:
    """Replace the section on calibration of a model card, or insert it before how the model was made."""
    return replace_section(card, CALIBRATION, _calibration_section(found))


def replace_results(card: str, results: Mapping[str, Any]) -> str:
    """Replace the section on labelled photographs that the model was measured on after training."""
    section = [
        RESULTS,
        "",
        f"{results['images']} photographs that were not trained on.",
        "",
        *_table(level_rows(results["levels"])),
        "",
        *_counts(results),
        *_answer_table(results),
        "",
    ]
    return replace_section(card, RESULTS, section)


def replace_section(card: str, head: str, section: Sequence[str]) -> str:
    """Replace the section with the heading ``head``, or insert it before how the model was made."""
    lines = [*card.rstrip("\n").splitlines(), ""]
    heads = [index for index, line in enumerate(lines) if line.startswith("## ")]
    ours = [index for index in heads if lines[index] == head]
    if ours:
        start = ours[0]
        end = next((index for index in heads if index > start), len(lines))
    else:
        start = end = next((index for index in heads if lines[index] == HOW_MADE), len(lines))
    return "\n".join([*lines[:start], *section, *lines[end:]]).rstrip("\n") + "\n"


def _nesting(recipe: Mapping[str, Any], num_levels: int) -> str:
    architecture = make_architecture(Recipe.from_dict(dict(recipe)), num_levels)
    shares = {name: getattr(architecture, name) for name in ("widths", "depths", "densities")}
    given = " and ".join(f"{name} {_list(values)}" for name, values in shares.items() if values)
    return f"cut by structure `{architecture.structure}` at {given}"


def _answer_table(results: Mapping[str, Any]) -> list[str]:
    weighted = "; in brackets with images weighted as below" if results.get("weighted_answers") else ""
    return [
        "How often each tier of the answer is right, by the level that is asked (lower levels count with "
        f"weight {results['lower_weight']:g}{weighted}):",
        "",
        *_table(answer_rows(results)),
    ]


def _table(heads_and_rows: Rows) -> list[str]:
    heads, rows = heads_and_rows
    lines = [heads, ["---"] * len(heads), *rows]
    return ["|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines]


def _consensus_table(results: Mapping[str, Any]) -> list[str]:
    heads = ["weight", *(f"level {row['level']}" for row in results["levels"])]
    rows = [
        [f"{row['lower_weight']:g}", *(f"{top1:.1%}" for top1 in row["top1"])]
        for row in results.get("consensus", ())  # absent from runs of older versions
    ]
    return [
        f"What a consensus of the levels is worth: top-1 of each level by the weight of the levels below it; 0: "
        f"it answers alone. The model uses {results['lower_weight']:g}.",
        "",
        *_table((heads, rows)),
    ]


def _measure_table(measures: Mapping[str, Any]) -> list[str]:
    rows = [[name.replace("_", " "), f"{value:.4f}"] for name, value in measures.items() if value is not None]
    return [
        "The finest level's answer, by the measures of `training/evaluation/metrics.py`:",
        "",
        *_table((["measure", "value"], rows)),
    ]


def _counts(results: Mapping[str, Any]) -> list[str]:
    said = counts_sentence(results["levels"])
    return [said, ""] if said else []


def _alone_section(alone: Mapping[str, Any] | None) -> list[str]:
    if not alone:  # runs of older versions
        return []
    return [
        "Each level taken alone, its own best class of its own tier; no answer is made so:",
        "",
        *_table(alone_rows(alone)),
        "",
        f"{alone_sentence(alone).capitalize()}.",
        "",
    ]


def _unseen(results: Mapping[str, Any]) -> str:
    """What the images are that temperatures were fitted to."""
    fitted = results.get("strengths")
    return "images, each scored by heads that were not fitted to it" if fitted else "held-out images"


def _calibration_section(found: Mapping[str, Any] | None, images: str = "held-out images") -> list[str]:
    if not found:  # runs of older versions, or too few images
        return []
    return [
        CALIBRATION,
        "",
        f"Each level's scores are divided by a temperature on the logarithmic scale, fitted to {found['images']} "
        f"{images}. What ships is fitted to all of them; what it is worth was measured cross-fitted: fitted "
        f"on a random half, measured on the other, both ways{_often(found)}. Calibration error: 15 bins of equal "
        "width, of the score of the level's answer on its own tier.",
        "",
        *([weighting_sentence(known, found["images"]), ""] if (known := found.get("known_top1")) else []),
        *_table(calibration_rows(found["levels"])),
        "",
        "Thresholds: answers to a tier whose score reaches the threshold are right at the wanted rate (on all the "
        "images, the lower end of the one-sided 95% Wilson interval of their share of right ones reaches it). "
        "Coverage: share of the images whose answer is given. What was measured is cross-fitted.",
        "",
        *_table(threshold_rows(found["thresholds"])),
        "",
        "Coverage by the wanted rate of right answers: of what ships, on all the images, and in brackets cross-fitted.",
        "",
        *_table(coverage_rows(found["thresholds"])),
        "",
    ]


def _often(found: Mapping[str, Any]) -> str:
    """The number of splits into halves, if more than one."""
    splits = found.get("splits", 1)  # absent from models of older versions
    return f" (thresholds: mean of {splits} such splits)" if splits > 1 else ""


def _list(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
