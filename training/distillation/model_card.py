"""The model card of a distilled model: levels, closeness to the teacher, training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taxonomy import Taxonomy
from training.distillation.recipe import DistilRecipe, untrained_levels
from training.evaluation.console import clock
from training.evaluation.model_card import HOW_MADE, hardware_lines, option_table


def distilled_card(facts: Mapping[str, Any], taxonomy: Taxonomy) -> str:
    """Markdown of the facts of a distillation (training.json)."""
    found, recipe = facts["distillation"], facts["recipe"]
    classes = " / ".join(map(str, taxonomy.num_classes))
    return "\n".join(
        [
            f"# Model card: {taxonomy.name or 'own classes'}",
            "",
            f"A nested classifier of {len(taxonomy.num_classes)} levels ({classes} classes), made of the pretrained "
            f"classifier `{found['teacher']['name']}`: "
            + (
                "its last level is that classifier as it was"
                if recipe["frozen"]
                else "all levels were trained further"
            )
            + ", and the lower ones learned from its answers on unlabelled photographs. Level k answers tier k of the "
            "taxonomy stored with the weights.",
            "",
            "## How near the levels come to the teacher",
            "",
            f"On {found['val_crops']} crops of {found['val_photographs']} photographs that were held out: the "
            "divergence from the teacher's answer in nats, and how often both have the same best class. This says "
            "nothing of how often the teacher is right.",
            "",
            *_level_table(found["levels"]),
            "",
            *_untrained_lines(found["levels"], taxonomy.num_tiers, recipe),
            HOW_MADE,
            "",
            f"- {found['photographs']} photographs, {found['crops']} crops",
            *_training_lines(found["levels"]),
            *hardware_lines(facts),
            "",
            *option_table(recipe),
            "",
        ]
    )


def _level_table(rows: list[dict[str, Any]]) -> list[str]:
    return [
        "| level | divergence, leaves | divergence, tier | same leaf | same class of the tier |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {row['level']} | {row['kl_leaf']:.3f} | {row['kl_tier']:.3f} | {row['agree_leaf']:.1%} | "
            f"{row['agree_tier']:.1%} |"
            for row in rows
            if "kl_leaf" in row
        ),
    ]


def _training_lines(rows: list[dict[str, Any]]) -> list[str]:
    return [
        f"- level {row['level']}: {row['crops_trained']} crops trained on in {clock(row['seconds'])}{_how(row)}"
        for row in rows
        if "crops_trained" in row
    ]


def _how(row: Mapping[str, Any]) -> str:
    """Options of a level's own recipe that may differ between levels."""
    told = []
    if "statistics" in row:
        told.append(f"{row['statistics']} statistics")
    if not row.get("train_heads", True):
        told.append("head as it began")
    if row.get("interpolate", 1.0) != 1:
        told.append(f"kept {row['interpolate']:g} of the way from its beginning")
    return "".join(f"; {each}" for each in told)


def _untrained_lines(rows: list[dict[str, Any]], num_tiers: int, recipe: Mapping[str, Any]) -> list[str]:
    levels = untrained_levels({row["level"] for row in rows}, num_tiers, DistilRecipe.from_dict(dict(recipe)))
    missing = [f"- level {level} has not been trained" for level in levels]
    return [*missing, ""] if missing else []
