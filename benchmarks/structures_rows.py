"""The rows of `benchmarks/structures.py`: which networks are compared, and how each is trained and judged.

Everything is trained by the product: `training.trainer.loop.fit` with a `training.recipe.recipe.Recipe`.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from accelerate import Accelerator
from structures_settings import Settings, matching_channels, matching_widths

from hierclass.checkpoints.checkpoint import load_checkpoint
from hierclass.files import WEIGHTS_FILE
from hierclass.nested import DEFAULT_SHARES
from taxonomy import Taxonomy, load_taxonomy
from taxonomy.terminal import PlainConsole
from training.data.batches import evaluation_loader, read_batches, read_training_batches, training_loader
from training.data.load import load_data
from training.data.sampler import BatchSampler
from training.data.samples import read_images, split
from training.evaluation.console import Reporter
from training.evaluation.metrics import wilson_interval
from training.recipe.recipe import Recipe
from training.trainer.loop import evaluate_run, fit
from training.trainer.network import make_architecture
from training.trainer.supervised import SupervisedTrainer

DEPTHS = (0.34, 0.67, 1.0)
DENSITIES = (0.1, 0.3, 1.0)
HEADS_LR, TUNE_LR = 0.1, 0.02
"""Learning rates for new heads on a trained network, and for tuning all of it."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where and with what the rows are trained."""

    settings: Settings
    work: Path
    console: PlainConsole
    workers: int = 1

    def folder(self, name: str, seed: int) -> Path:
        """The folder of a row's runs."""
        return self.work / f"{name}-{seed}"

    @property
    def taxonomy(self) -> Taxonomy:
        """The tree whose tiers the levels answer."""
        return load_taxonomy(self.settings.taxonomy)

    def finest(self) -> Path:
        """A tree file of the same leaves with the finest tier alone, for networks of one level."""
        path, tree = self.work / "finest.json", self.taxonomy
        if not path.exists():
            self.work.mkdir(parents=True, exist_ok=True)
            Taxonomy(
                name=f"{tree.name}-finest",
                nodes=tree.nodes,
                parents=tree.parents.tolist(),
                leaves=tree.leaves,
                tiers=tree.tiers[-1:],
            ).save(path)
        return path


def train_nested(bench: Bench, name: str, seed: int, **changes: Any) -> Result:
    """Train a nested network; every level answers alone."""
    recipe = bench.settings.recipe(seed, **changes)
    folder, load = bench.folder(name, seed), load_now()
    results = fit(recipe, folder, resume=True, workers=bench.workers, console=bench.console)
    return {
        "levels": level_rows(results),
        "consensus": results["consensus"],
        "networks": [network_row(recipe)],
        **run_row([folder], load),
    }


def train_alone(bench: Bench, name: str, seed: int, backbones: Sequence[Sequence[int] | None]) -> Result:
    """Train one plain network per backbone on the leaves; network k answers tier k, summed up the tree.

    A single backbone answers every tier.
    """
    recipes = [
        bench.settings.recipe(
            seed,
            structure="prefix",
            widths=(1.0,),
            level_weights=(1.0,),
            taxonomy=str(bench.finest()),
            backbone_args=bench.settings.backbone_args(channels),
        )
        for channels in backbones
    ]
    folders = [bench.folder(name, seed) / str(number) for number in range(len(recipes))]
    load = load_now()
    for recipe, folder in zip(recipes, folders, strict=True):
        fit(recipe, folder, resume=True, workers=bench.workers, console=bench.console)
    levels = []
    for tier in range(bench.taxonomy.num_tiers):
        folder = folders[min(tier, len(folders) - 1)]
        shares, images = summed_accuracy(bench, recipes[0], folder / "model")
        network = load_checkpoint(folder / "model").network
        cost = asdict(network.cost(0))
        levels.append(level_row({"level": tier, **cost}, shares[tier][: tier + 1], images))
    return {"levels": levels, "networks": [network_row(r) for r in recipes], **run_row(folders, load)}


def train_heads(bench: Bench, name: str, seed: int, order: str) -> Result:
    """Nest the trained dense network as slices; learn heads and norm statistics alone, in one epoch."""
    recipe = pretrained(bench, seed, order, lr=HEADS_LR)
    taxonomy, accelerator = bench.taxonomy, Accelerator(cpu=True)
    reporter = Reporter(bench.console, quiet=True)
    train, dev = load_data(recipe, taxonomy, reporter)
    batches = BatchSampler(len(train), recipe.batch_size, seed=seed)
    run = SupervisedTrainer(recipe, taxonomy, steps_per_epoch=len(batches), accelerator=accelerator)
    for weight_name, weight in run.network.named_parameters():
        weight.requires_grad_(weight_name.startswith("heads."))
    loader = training_loader(
        train,
        batches.shares(0, side=recipe.size),
        sides=[recipe.size],
        crop_scale=recipe.crop_scale,
        color_jitter=0.0,
        auto_augment=None,
        seed=seed,
        workers=bench.workers,
    )
    for step, batch in enumerate(read_training_batches(loader)):
        run.step(batch, epoch=0, step=step)
    results = evaluate_run(run, dev, workers=bench.workers)
    return {
        "levels": level_rows(results),
        "consensus": results["consensus"],
        "networks": [network_row(recipe)],
    }


def train_tuned(bench: Bench, name: str, seed: int, order: str) -> Result:
    """Nest the trained dense network as slices and train all of it for one epoch."""
    recipe = pretrained(bench, seed, order, lr=TUNE_LR)
    return train_nested(bench, name, seed, **{key: getattr(recipe, key) for key in CHANGED})


CHANGED = ("backbone_args", "order", "epochs", "warmup_epochs", "lr")
"""Options of the recipe that `pretrained` sets."""


def pretrained(bench: Bench, seed: int, order: str, *, lr: float) -> Recipe:
    """The recipe of one epoch that starts from the dense network; trains that first if it has to."""
    folder = bench.folder("dense", seed) / "0"
    weights = folder / "backbone.safetensors"
    if not weights.exists():
        if not (folder / "model" / WEIGHTS_FILE).exists():
            train_alone(bench, "dense", seed, [None])
        model = load_checkpoint(folder / "model").network.extract(0)
        state = {key: v.contiguous() for key, v in model.state_dict().items() if not key.startswith("fc.")}
        safetensors.torch.save_file(state, weights)
    arguments = {**bench.settings.backbone_args(), "checkpoint_path": str(weights)}
    return bench.settings.recipe(seed, backbone_args=arguments, order=order, warmup_epochs=0, lr=lr)


def summed_accuracy(bench: Bench, recipe: Recipe, model: Path) -> tuple[list[list[float]], int]:
    """Accuracy [k][j] on tier j of the answer on tier k of a network of the leaves, and the number of images."""
    checkpoint, taxonomy = load_checkpoint(model), bench.taxonomy
    images = read_images(recipe.data, taxonomy)
    _, dev = split(images, dev_from=recipe.dev_from, dev_share=recipe.dev_share, seed=recipe.seed)
    loader = evaluation_loader(
        images.subset(dev), checkpoint.preprocessing, batch_size=256, workers=bench.workers
    )
    right = np.zeros((taxonomy.num_tiers, taxonomy.num_tiers), dtype=np.int64)
    count = 0
    with torch.inference_mode():
        for batch, leaves, _ in read_batches(loader):
            right += summed_right(checkpoint.network(batch).softmax(1).numpy(), leaves.numpy(), taxonomy)
            count += len(leaves)
    return (right / count).tolist(), count


def summed_right(
    shares: npt.NDArray[np.float32], leaves: npt.NDArray[np.int64], taxonomy: Taxonomy
) -> npt.NDArray[np.int64]:
    """Right answers [k][j] on tier j, of the most probable class of tier k; `shares` (B, num_leaves)."""
    tiers = taxonomy.num_tiers
    right = np.zeros((tiers, tiers), dtype=np.int64)
    for k in range(tiers):
        summed = np.zeros((len(shares), taxonomy.num_classes[k]))
        np.add.at(summed.T, taxonomy.projection(k), shares.T)
        answer = summed.argmax(axis=1)
        for tier in range(k, -1, -1):
            right[k, tier] = (answer == taxonomy.projection(tier)[leaves]).sum()
            answer = taxonomy.parent_classes(tier)[answer] if tier else answer
    return right


def level_rows(results: Result) -> list[Result]:
    """The figures of all levels of an evaluation."""
    return [
        level_row(level, results["answers"][level["level"]], results["images"]) for level in results["levels"]
    ]


def level_row(level: Result, accuracies: Sequence[float], images: int) -> Result:
    """The figures of one level; `accuracies` are those of its answer on tiers 0 … its own."""
    return {
        "level": level["level"],
        "macs": level["macs"],
        "parameters": level["parameters"],
        "accuracy": accuracies[-1],
        "interval": list(wilson_interval(accuracies[-1], images)),
        "tier0": accuracies[0],
    }


def network_row(recipe: Recipe) -> Result:
    """What is needed to make the network of a recipe again, untrained."""
    architecture = asdict(make_architecture(recipe))
    architecture["backbone_args"] = {
        key: value for key, value in recipe.backbone_args.items() if key != "checkpoint_path"
    }
    return architecture


def load_now() -> float | None:
    """How busy the machine is, where the system says."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def run_row(folders: Sequence[Path], load_before: float | None) -> Result:
    """What the runs in `folders` took, one after another, from their histories: an interruption does not count."""
    histories = [
        [json.loads(line) for line in (folder / "history.jsonl").read_text("utf-8").splitlines()]
        for folder in folders
    ]
    seconds = sum(epoch["seconds"] for history in histories for epoch in history)
    rates = [statistics.median(epoch["images_per_second"] for epoch in history) for history in histories]
    return {
        "seconds": round(seconds, 1),
        "epoch_seconds": round(seconds / len(histories[0]), 1),
        "images_per_second": round(1 / sum(1 / rate for rate in rates), 1),
        "checkpoint_bytes": sum((folder / "model" / WEIGHTS_FILE).stat().st_size for folder in folders),
        "threads": torch.get_num_threads(),
        "load_before": load_before,
    }


def same_cost_prefix(bench: Bench, name: str, seed: int) -> Result:
    """Train `prefix` on a thinner backbone, so that every level costs about what that of slices does."""
    arguments = bench.settings.backbone_args(matching_channels(bench.settings)[-1])
    widths = matching_widths(bench.settings)
    return train_nested(bench, name, seed, structure="prefix", widths=widths, backbone_args=arguments)


@dataclass(frozen=True)
class StructureRow:
    """One thing that is compared."""

    title: str
    train: Callable[[Bench, str, int], Result]
    timed: bool = True
    """Whether its network is one that no other row has."""


def nested_row(title: str, *, timed: bool = True, **changes: Any) -> StructureRow:
    """A nested network with options of the recipe."""
    return StructureRow(title, lambda bench, name, seed: train_nested(bench, name, seed, **changes), timed)


ROWS: dict[str, StructureRow] = {
    "slices": nested_row("`slices`, the default"),
    "dense": StructureRow("one dense network", lambda b, name, seed: train_alone(b, name, seed, [None])),
    "prefix": nested_row("`prefix`", structure="prefix"),
    "prefix-same-cost": StructureRow("`prefix`, thinner: costs what `slices` does", same_cost_prefix),
    "separate": StructureRow(
        "three networks, each costs what the level of `slices` does",
        lambda b, name, seed: train_alone(b, name, seed, matching_channels(b.settings)),
    ),
    "depths": nested_row("`depths`", structure="depths", depths=DEPTHS),
    "masks": nested_row("`masks`", structure="masks", densities=DENSITIES),
    "slices-distil-last": nested_row("`slices`, taught by the last level", timed=False, distil=0.5),
    "slices-distil-next": nested_row(
        "`slices`, taught by the next level", timed=False, distil=0.5, distil_from="next"
    ),
    "slices-distil-ema": nested_row(
        "`slices`, taught by the last level's moving average", timed=False, distil=0.5, distil_teacher="ema"
    ),
    "given-heads": StructureRow("given", lambda b, name, seed: train_heads(b, name, seed, "given"), False),
    "importance-heads": StructureRow(
        "importance", lambda b, name, seed: train_heads(b, name, seed, "importance"), False
    ),
    "given-tuned": StructureRow("given", lambda b, name, seed: train_tuned(b, name, seed, "given"), False),
    "importance-tuned": StructureRow(
        "importance", lambda b, name, seed: train_tuned(b, name, seed, "importance"), False
    ),
    "slices-depths": nested_row("`slices` with depths", widths=DEFAULT_SHARES, depths=DEPTHS),
}
