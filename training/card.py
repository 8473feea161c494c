"""The model card that `fit` leaves beside the weights: what the model is, how it was made, how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taxonomy import Taxonomy
from training.recipe import Recipe
from training.reports import clock
from training.run import make_architecture


def model_card(facts: Mapping[str, Any], taxonomy: Taxonomy) -> str:
    """Markdown from the facts of a run (training.json): recipe, hardware, duration and dev-split results."""
    recipe, best = facts["recipe"], facts["best"]
    results, hardware = best["results"], facts["hardware"]
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
            *_level_table(results),
            "",
            *_answer_table(results),
            "",
            *_consensus_table(results),
            "",
            *_measure_table(results["finest"]),
            "",
            "## How it was made",
            "",
            f"- {facts['epochs_done']} of {recipe['epochs']} epochs in {clock(facts['seconds'])}; epoch "
            f"{best['epoch']} is stored; seed {recipe['seed']}",
            f"- {hardware['name']} ({hardware['device']}), {hardware['cpus']} processors, "
            f"{hardware['threads']} threads",
            *(f"- {name} {version}" for name, version in facts["versions"].items()),
            "",
            "The whole recipe:",
            "",
            "| option | value |",
            "| --- | --- |",
            *(
                f"| {name} | {_list(value)} |"
                for name, value in recipe.items()
                if value not in (None, {}, [])
            ),
            "",
        ]
    )


def _nesting(recipe: Mapping[str, Any], num_levels: int) -> str:
    architecture = make_architecture(Recipe.from_dict(dict(recipe)), num_levels)
    shares = {name: getattr(architecture, name) for name in ("widths", "depths", "densities")}
    given = " and ".join(f"{name} {_list(values)}" for name, values in shares.items() if values)
    return f"cut by structure `{architecture.structure}` at {given}"


def _level_table(results: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {row['level']} | {row['classes']} | {row['top1']:.1%} | {row['interval'][0]:.1%} to "
        f"{row['interval'][1]:.1%} | {row['macs'] / 1e6:.1f} M | {row['share']:.3f} | {row['parameters']:,} |"
        for row in results["levels"]
    ]
    return [
        "| level | classes | top-1 | 95% interval | multiply-accumulates | share | parameters |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *rows,
    ]


def _answer_table(results: Mapping[str, Any]) -> list[str]:
    tiers = range(len(results["levels"]))
    rows = [
        f"| {level} | " + " | ".join(f"{row[tier]:.1%}" if tier < len(row) else "" for tier in tiers) + " |"
        for level, row in enumerate(results["answers"])
    ]
    return [
        "How often each tier of the answer is right, by the level that is asked (lower levels count with "
        f"weight {results['lower_weight']:g}):",
        "",
        "| level asked | " + " | ".join(f"tier {tier}" for tier in tiers) + " |",
        "| --- | " + " | ".join("---" for _ in tiers) + " |",
        *rows,
    ]


def _consensus_table(results: Mapping[str, Any]) -> list[str]:
    levels = [f"level {row['level']}" for row in results["levels"]]
    rows = [
        f"| {row['lower_weight']:g} | " + " | ".join(f"{top1:.1%}" for top1 in row["top1"]) + " |"
        for row in results.get("consensus", ())  # absent from runs of older versions
    ]
    return [
        f"What a consensus of the levels is worth: top-1 of each level by the weight of the levels below it; 0: "
        f"it answers alone. The model uses {results['lower_weight']:g}.",
        "",
        "| weight | " + " | ".join(levels) + " |",
        "| --- | " + " | ".join("---" for _ in levels) + " |",
        *rows,
    ]


def _measure_table(measures: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in measures.items() if value is not None
    ]
    return [
        "The finest level's own head, by the measures of `training/metrics.py`:",
        "",
        "| measure | value |",
        "| --- | --- |",
        *rows,
    ]


def _list(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
