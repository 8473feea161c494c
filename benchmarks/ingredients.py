"""What each ingredient of the recipe is worth: `python benchmarks/ingredients.py --data FOLDER`.

Every row trains the product's own `fit` on the same few images for the same few epochs, with one thing changed
against another row. The differences are measured on the same dev images, so their intervals are paired; one seed,
so that a difference within about one point says little. Finished rows stay in `--work`: the command goes on after an
interruption, and two of them, `--threads 1` and other `--only` rows, may run side by side. `--markdown` prints the
tables from the JSON file and trains nothing.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.markdown import Markdown
from structures_report import put_into
from torch.utils.flop_counter import FlopCounterMode
from updates import leaves_alone

from hierclass.checkpoints.checkpoint import load_checkpoint
from hierclass.decisions.prediction import combine_levels
from hierclass.errors import HierclassError
from hierclass.files import replacing
from hierclass.nested import create_backbone
from taxonomy import load_taxonomy
from taxonomy.terminal import PlainConsole
from training.data.batches import evaluation_loader, read_batches
from training.data.samples import ImageSet, read_images, split
from training.evaluation.metrics import wilson_interval
from training.recipe.recipe import Recipe
from training.trainer.loop import fit
from training.trainer.network import make_network

OUT = Path(__file__).parent / "results" / "ingredients.json"
WORK = Path("runs") / "ingredients"
SCHEDULE: dict[str, Any] = {
    "limit": 30_000,
    "epochs": 6,
    "eval_every": 6,  # no epoch is chosen by its result
    "batch_size": 64,
    "lr": 0.1,
    "size": 48,
    "start_size": 32,
    "grow": 0.67,
    "crop": 0.9,
    "crop_scale": (0.45, 1.0),
    "level_weights": (1.0, 1.0, 2.0),
    "smoothing": 0.05,
    "consensus": 0.0,
    "backbone": "resnet10t",
}
"""What all rows have in common, but for what they change."""
TREE_SMOOTHING: dict[str, Any] = {"smoothing": 0.1, "smoothing_along": "tree"}
EQUAL_WEIGHTS: dict[str, Any] = {"level_weights": (1.0, 1.0, 1.0)}
TAUGHT: dict[str, Any] = {"distil": 0.5, "distil_to": "leaves"}
"""Changes that are measured alone and together."""
LONG: dict[str, Any] = {"epochs": 18, "eval_every": 18, "size": 32, "start_size": None}
"""Of those rows that ask what helps when every image is seen often."""
COMPARED = ("leaves", "together-distil")
"""Rows whose levels are set beside plain networks of their cost: one with all their settings, and the best."""
Right = list[npt.NDArray[np.bool_]]
"""Per level, whether its answer on its own tier is right, for every dev image."""


@dataclasses.dataclass(frozen=True)
class IngredientRow:
    """One training: what is changed, against which row it is measured, and why it was tried."""

    title: str
    against: str | None = None
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    alone: int | None = None
    """A plain network that learns the leaves, as costly as this level of `against` (-1: as its backbone, uncut)."""


ROWS: dict[str, IngredientRow] = {
    "base": IngredientRow("heads on tiers, auxiliary heads on the leaves", None, {"heads": "tiers"}),
    "finest0": IngredientRow(
        "no level but the last sees leaves", "base", {"heads": "tiers", "finest_weight": 0.0}
    ),
    "stem2": IngredientRow(
        "stride 2 in the stem, half the channels: as many multiply-accumulates",
        "base",
        {"heads": "tiers", "stem_stride": 2, "backbone_args": {"channels": [32, 64, 128, 256]}},
    ),
    "leaves": IngredientRow("heads score leaves and sum them up", "base", {"heads": "leaves"}),
    "leaves-distil-leaves": IngredientRow(
        "the last level teaches its answer on the leaves", "leaves", TAUGHT
    ),
    "leaves-distil-last": IngredientRow(
        "the last level teaches its answer summed up to the tier", "leaves", {"distil": 0.5}
    ),
    "leaves-distil-ema-next": IngredientRow(
        "the moving average of the next level teaches its answer summed up to the tier",
        "leaves",
        {"distil": 0.5, "distil_from": "next", "distil_teacher": "ema"},
    ),
    "leaves-tree-smoothing": IngredientRow(
        "label smoothing 0.1 along the tree",
        "leaves",
        TREE_SMOOTHING,
    ),
    "leaves-nosmooth": IngredientRow("no label smoothing", "leaves", {"smoothing": 0.0}),
    "leaves-cutmix": IngredientRow(
        "cutmix in every second batch", "leaves", {"cutmix": 1.0, "mix_prob": 0.5}
    ),
    "leaves-weights111": IngredientRow("all levels weigh the same", "leaves", EQUAL_WEIGHTS),
    "alone-0": IngredientRow("a plain network as costly as level 0", "leaves", alone=0),
    "alone-1": IngredientRow("a plain network as costly as level 1", "leaves", alone=1),
    "alone-2": IngredientRow("a plain network as costly as level 2", "leaves", alone=2),
    "alone-dense": IngredientRow("the backbone, uncut", "leaves", alone=-1),
    "deep": IngredientRow("two blocks a stage", "leaves", {"backbone_args": {"layers": [2, 2, 2, 2]}}),
    "wide": IngredientRow("wider", "leaves", {"backbone_args": {"channels": [96, 192, 384, 640]}}),
    "leaves-fixedsize": IngredientRow("48 pixels from the first epoch on", "leaves", {"start_size": 48}),
    "together": IngredientRow(
        "smoothing along the tree and equal weights, both", "leaves", {**TREE_SMOOTHING, **EQUAL_WEIGHTS}
    ),
    "together-distil": IngredientRow(
        "the last level teaches its answer on the leaves",
        "together",
        {**TREE_SMOOTHING, **EQUAL_WEIGHTS, **TAUGHT},
    ),
    "long": IngredientRow("18 epochs, all of 32 pixels", None, LONG),
    "long-cutmix": IngredientRow(
        "cutmix in every second batch", "long", {**LONG, "cutmix": 1.0, "mix_prob": 0.5}
    ),
}


def make_recipe(name: str, data: tuple[str, ...], seed: int, work: Path) -> Recipe:
    """The recipe of a row; a plain network is trained with all of its partner's that applies to it."""
    row = ROWS[name]
    if row.alone is None:
        changes = {**SCHEDULE, **row.changes}
        return Recipe(data=data, taxonomy="tiny-imagenet", dev_from=450, seed=seed, **changes)
    assert row.against is not None
    partner = make_recipe(row.against, data, seed, work)
    return dataclasses.replace(
        partner,
        taxonomy=str(leaves_file(work)),
        structure="prefix",
        widths=(1.0,),
        heads="tiers",
        level_weights=(1.0,),
        distil=0.0,
        distil_from="last",
        distil_to="tier",
        backbone_args={**partner.backbone_args, **plain_arguments(partner, row.alone)},
    )


def leaves_file(work: Path) -> Path:
    """A tree file of the same leaves with the finest tier alone."""
    file, tree = work / "leaves.json", load_taxonomy("tiny-imagenet")
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        leaves_alone(tree).save(file)
    return file


def plain_arguments(partner: Recipe, level: int) -> dict[str, Any]:
    """Arguments of a plain ResNet of about the multiply-accumulates of a level; level -1 changes nothing."""
    if level < 0:
        return {}
    image = torch.zeros(1, 3, partner.size, partner.size)
    channels = partner.backbone_args.get("channels", (64, 128, 256, 512))
    wanted = make_network(partner, load_taxonomy(partner.taxonomy)).cost(level).macs
    found: list[tuple[int, dict[str, Any]]] = []
    for percent in range(16, 101, 2):
        thinner = [max(2, round(count * percent / 100 / 2) * 2) for count in channels]
        arguments = {"channels": thinner, "stem_width": max(4, round(0.32 * percent / 2) * 2)}
        backbone = create_backbone(partner.backbone, **{**partner.backbone_args, **arguments}).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            backbone(image)
        found.append((abs(counter.get_total_flops() // 2 - wanted), arguments))
    return min(found, key=lambda pair: pair[0])[1]


def dev_images(recipe: Recipe) -> ImageSet:
    """The held-out images of a recipe."""
    images = read_images(recipe.data, load_taxonomy(recipe.taxonomy))
    _, dev = split(images, dev_from=recipe.dev_from, dev_share=recipe.dev_share, seed=recipe.seed)
    return images.subset(dev)


def judged(model: Path, dev: ImageSet) -> Right:
    """`right_answers`, kept in a file beside the model."""
    file = model.with_name("right.npz")
    if not file.exists() or file.stat().st_mtime < (model / "training.json").stat().st_mtime:
        with replacing(file) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, *right_answers(model, dev))
    with np.load(file) as stored:
        return [stored[name] for name in sorted(stored.files)]


@torch.inference_mode()
def right_answers(model: Path, dev: ImageSet) -> Right:
    """Judge every level of a stored model on the dev images, each level alone; a plain one on every tier."""
    checkpoint, tree = load_checkpoint(model), load_taxonomy("tiny-imagenet")
    parts: list[list[npt.NDArray[np.bool_]]] = []
    loader = evaluation_loader(dev, checkpoint.preprocessing, batch_size=256, workers=1)
    for batch, leaves, _ in read_batches(loader):
        logits = [values.numpy() for values in checkpoint.network.forward_all(batch)]
        if len(logits) == 1:
            shares = combine_levels(
                logits * tree.num_tiers, tree
            )  # the last alone counts, summed up the tree
        else:
            shares = [combine_levels(logits[: tier + 1], tree)[tier] for tier in range(tree.num_tiers)]
        truth = [tree.projection(tier)[leaves] for tier in range(tree.num_tiers)]
        parts.append([share.argmax(1) == wanted for share, wanted in zip(shares, truth, strict=True)])
    return [np.concatenate(level) for level in zip(*parts, strict=True)]


def accuracy(right: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Share of right answers, with its 95% interval."""
    share = float(right.mean())
    return {"top1": share, "interval": wilson_interval(share, len(right))}


def paired(ours: npt.NDArray[np.bool_], theirs: npt.NDArray[np.bool_]) -> tuple[float, float, float]:
    """Difference of two shares on the same images, with its 95% interval (normal approximation, paired)."""
    difference = ours.astype(np.float64) - theirs
    half = 1.959963984540054 * float(difference.std(ddof=1)) / len(difference) ** 0.5
    return float(difference.mean()), float(difference.mean()) - half, float(difference.mean()) + half


def train_row(name: str, data: tuple[str, ...], seed: int, work: Path, workers: int) -> None:
    """Train a row, or go on with it; a finished one returns at once."""
    folder = work / (name if seed == 0 else f"{name}-{seed}")
    fit(
        make_recipe(name, data, seed, work),
        folder,
        resume=True,
        workers=workers,
        console=PlainConsole(soft_wrap=True),
    )


def judge_rows(data: tuple[str, ...], work: Path) -> dict[str, Any]:
    """Compare all rows whose training is finished."""
    dev = dev_images(make_recipe("base", data, 0, work))
    right: dict[str, Right] = {}
    rows = []
    for name, row in ROWS.items():
        facts_file = work / name / "model" / "training.json"
        if not facts_file.exists():
            continue
        facts = json.loads(facts_file.read_text(encoding="utf-8"))
        right[name] = judged(work / name / "model", dev)
        levels = facts["best"]["results"]["levels"]
        result: dict[str, Any] = {
            "name": name,
            "title": row.title,
            "against": row.against,
            "changes": row.changes,
            "levels": [
                {**accuracy(found), "macs": level["macs"]}
                for found, level in zip(right[name], levels * (len(right[name]) // len(levels)), strict=True)
            ],
        }
        if row.against in right:
            pairs = zip(right[name], right[row.against], strict=True)
            result["differences"] = [paired(ours, theirs) for ours, theirs in pairs]
        rows.append(result)
    return {
        "schedule": SCHEDULE,
        "dev_images": len(dev),
        "seeds": 1,
        "rows": rows,
        "equal_cost": [pair for name in COMPARED for pair in compare(name, right)],
    }


def compare(name: str, right: dict[str, Right]) -> list[dict[str, Any]]:
    """Each level of a nested row on its own tier, beside the plain network of its cost and the uncut backbone."""
    pairs = []
    for level in range(len(right.get(name, ()))):
        for other in (f"alone-{level}", "alone-dense"):
            if other in right:
                ours, theirs = right[name][level], right[other][level]
                about = {"name": name, "level": level, "other": other}
                shares = {"nested": accuracy(ours), "alone": accuracy(theirs)}
                pairs.append({**about, **shares, "difference": paired(ours, theirs)})
    return pairs


def report(results: dict[str, Any]) -> str:
    """The rows, and the levels beside plain networks, as Markdown tables."""
    return report_rows(results) + "\n\n" + report_equal_cost(results)


def report_equal_cost(results: dict[str, Any]) -> str:
    """Each level of the compared rows on its own tier, beside networks trained alone."""
    lines = [
        "| nested row | level | right on its tier | trained alone | right on the same tier | difference, points |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for pair in results["equal_cost"]:
        shares = [f"{pair[key]['top1']:.1%} ({_span(pair[key]['interval'])})" for key in ("nested", "alone")]
        cells = [f"`{pair['name']}`", str(pair["level"]), shares[0], f"`{pair['other']}`", shares[1]]
        lines.append(f"| {' | '.join(cells)} | {_points(pair['difference'])} |")
    return "\n".join(lines)


def _points(difference: Sequence[float]) -> str:
    """A difference of shares and its interval, in points."""
    middle, *ends = difference
    return f"{100 * middle:+.1f} ({_span(ends, sign='+')})"


def _span(ends: Sequence[float], sign: str = "") -> str:
    low, high = (format(100 * end, f"{sign}.1f") for end in ends)
    return f"{low} to {high}"


def report_rows(results: dict[str, Any]) -> str:
    """What every row's change is worth."""
    lines = [
        "| what is changed | against | level 0 | level 1 | level 2 | difference, points (95% interval) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["rows"]:
        accuracies = " | ".join(f"{level['top1']:.1%}" for level in row["levels"])
        differences = ", ".join(map(_points, row.get("differences", ())))
        lines.append(
            f"| `{row['name']}`: {row['title']} | {row['against'] or ''} | {accuracies} | {differences} |"
        )
    return "\n".join(lines)


def main(
    data: Annotated[
        list[str] | None, typer.Option(help="Tiny ImageNet, as hierclass-train takes it.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(ROWS)}; may be given again.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    workers: Annotated[int, typer.Option(min=0)] = 0,
    work: Annotated[Path, typer.Option(help="Folder for the trained networks.")] = WORK,
    out: Annotated[Path, typer.Option(help="JSON file of the results.")] = OUT,
    train: Annotated[bool, typer.Option(help="Train what is missing; else judge what is there.")] = True,
    judge: Annotated[bool, typer.Option(help="Judge all finished rows at the end.")] = True,
    document: Annotated[
        Path | None, typer.Option(help="Markdown file to put the tables into, between its markers.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the stored table and do no more.")
    ] = False,
) -> None:
    """Measure the ingredients of the recipe."""
    if unknown := sorted(set(only or ()) - ROWS.keys()):
        raise typer.BadParameter(f"--only {unknown[0]}: there are {', '.join(ROWS)}")
    if markdown:
        print(report(json.loads(out.read_text(encoding="utf-8"))))
        return
    if not data:
        raise typer.BadParameter("give the images with --data")
    torch.set_num_threads(threads)
    paths = tuple(data)
    try:
        for name in [name for name in ROWS if not only or name in only] if train else []:
            train_row(name, paths, seed, work, workers)
        if not judge:
            return
        results = judge_rows(paths, work)
    except HierclassError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as file:
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if document is not None:
        changed = put_into(document, report(results))
        with replacing(document) as file:
            file.write_text(changed, encoding="utf-8")
    PlainConsole().print(Markdown(report(results)))


if __name__ == "__main__":
    typer.run(main)
