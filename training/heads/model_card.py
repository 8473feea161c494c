"""The model card of a model whose heads were fitted to features, or that was calibrated anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hierclass.checkpoints.description import Architecture
from taxonomy import Taxonomy
from training.evaluation.model_card import HOW_MADE, hardware_lines, option_table, result_sections


def heads_card(facts: Mapping[str, Any], taxonomy: Taxonomy, architecture: Architecture) -> str:
    """Markdown of the facts of a run (training.json): what was fitted, results and how they were measured, times."""
    recipe, results = facts["recipe"], facts["best"]["results"]
    classes = " / ".join(map(str, taxonomy.num_classes))
    return "\n".join(
        [
            f"# Model card: {taxonomy.name or 'own classes'}",
            "",
            f"A nested classifier of {taxonomy.num_tiers} levels ({classes} classes). Level k answers tier k of the "
            f"taxonomy stored with the weights. {_made(recipe, facts)}",
            "",
            "## Results",
            "",
            _measured(recipe, results),
            "",
            *result_sections(results),
            HOW_MADE,
            "",
            f"- {_seconds(facts['seconds'])}; seed {recipe['seed']}",
            f"- backbone `{architecture.backbone}`, structure `{architecture.structure}`",
            *hardware_lines(facts),
            "",
            *option_table(recipe),
            "",
        ]
    )


def _made(recipe: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    levels = ", ".join(map(str, facts["base_levels"]))
    network = f"Its network is that of `{recipe['base']}` (levels {levels}), which was not trained"
    if recipe["tune"] == "none":
        return f"{network}; its temperatures and thresholds were fitted to other images."
    strengths = ", ".join(f"{each:g}" for each in facts["best"]["results"]["strengths"])
    return (
        f"{network}; its heads are multinomial logistic regressions on the features of each level (inverse strength of "
        f"the regularisation {strengths}, chosen by cross-validation)."
    )


def _measured(recipe: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    count = results["images"]
    if results["cross_validated"]:
        return (
            f"Cross-validated over {count} images: each was scored by heads that were fitted to the other four fifths. "
            "The heads that ship are fitted to all of them, and so no image is left that they have not seen. Images "
            "that are nearly the same (a burst, frames of a video) make such figures too good."
        )
    if recipe["tune"] == "none":
        return f"{count} images, to which temperatures and thresholds were fitted."
    return f"{count} images that were held out; calibration is cross-validated over those that heads were fitted to."


def _seconds(seconds: Mapping[str, float]) -> str:
    steps = ", ".join(f"{step} {value:.1f} s" for step, value in seconds.items())
    return f"{sum(seconds.values()):.0f} s: {steps}"
