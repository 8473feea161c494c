"""How long training a nested network takes beside training its dense backbone once: `python benchmarks/updates.py`.

Timed is one whole update as `hierclass-train fit` does it (`SupervisedTrainer.step`: forward, loss, backward,
optimiser, moving average) on images that are in memory already. The dense network is the same backbone, uncut,
learning the leaves alone with the same recipe. Both run in one process and in rounds, in an order shuffled
anew each round.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from timing import Call, describe_machine, measure_rounds

from hierclass.errors import HierclassError
from hierclass.files import replacing
from taxonomy import Taxonomy, load_taxonomy
from training.data.batches import TrainingBatch
from training.data.sampler import BatchShare
from training.recipe.presets import read_recipe_file
from training.recipe.recipe import Recipe
from training.trainer.supervised import SupervisedTrainer

STEPS = 1_000_000
"""Of an epoch that never ends: a schedule of its length hardly moves."""


def leaves_alone(taxonomy: Taxonomy) -> Taxonomy:
    """The tree with the leaves as its only tier."""
    return Taxonomy(
        name=f"{taxonomy.name}-leaves",
        nodes=taxonomy.nodes,
        parents=taxonomy.parents.tolist(),
        leaves=taxonomy.leaves,
        tiers=taxonomy.tiers[-1:],
    )


def read_recipe(name: str) -> Recipe:
    """The recipe of a run, or a preset's for the classes of Tiny ImageNet."""
    if Path(name).suffix == ".json":
        return Recipe.load(Path(name))
    return Recipe(**{"data": (), "taxonomy": "tiny-imagenet", **read_recipe_file(name)})


def make_runs(recipe: Recipe) -> dict[str, SupervisedTrainer]:
    """A run of the recipe, and one of its dense backbone."""
    taxonomy = load_taxonomy(recipe.taxonomy)
    recipe = dataclasses.replace(recipe, warmup_epochs=0)
    dense = dataclasses.replace(
        recipe,
        structure="prefix",
        widths=(1.0,),
        depths=None,
        densities=None,
        level_weights=(1.0,),
        distil=0.0,
        order="given",
    )
    accelerator = Accelerator(mixed_precision=recipe.mixed_precision, cpu=not torch.cuda.is_available())
    return {
        "nested": SupervisedTrainer(recipe, taxonomy, steps_per_epoch=STEPS, accelerator=accelerator),
        "dense": SupervisedTrainer(
            dense, leaves_alone(taxonomy), steps_per_epoch=STEPS, accelerator=accelerator
        ),
    }


def measure_size(
    runs: dict[str, SupervisedTrainer], size: int, batch: int, rounds: int
) -> list[dict[str, Any]]:
    """Time an update of every run on images of one size."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, 3, size, size), generator=generator, dtype=torch.uint8)
    leaves = torch.randint(len(runs["nested"].taxonomy.leaves), (batch,), generator=generator)
    places = list(range(batch))
    share = BatchShare(indices=places, positions=places, batch=batch, epoch=0, side=size)
    whole = TrainingBatch(images, leaves, torch.arange(batch), share, errors=[])
    calls: dict[str, Call] = {
        name: functools.partial(run.step, whole, epoch=0, step=0) for name, run in runs.items()
    }
    device = runs["nested"].accelerator.device
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    samples = measure_rounds(calls, rounds, wait)
    base = statistics.median(samples["dense"])
    rows = []
    for name, values in samples.items():
        low, median, high = (1e3 * value for value in statistics.quantiles(values, n=4, method="inclusive"))
        network = runs[name].smoothed
        rows.append(
            {
                "size": size,
                "batch": batch,
                "name": name,
                "macs": network.cost(network.num_levels - 1).macs,
                "milliseconds": median,
                "low": low,
                "high": high,
                "images_per_second": batch / median * 1e3,
                "ratio": median / 1e3 / base,
            }
        )
    return rows


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(title=f"Training updates of {report['backbone']}")
    for column in ("pixels", "batch", "network", "ms", "quartiles", "images/s", "of dense"):
        table.add_column(column, justify="right")
    for row in report["rows"]:
        table.add_row(
            str(row["size"]),
            str(row["batch"]),
            row["name"],
            f"{row['milliseconds']:.1f}",
            f"{row['low']:.1f} to {row['high']:.1f}",
            f"{row['images_per_second']:.0f}",
            f"{row['ratio']:.2f}",
        )
    console = Console()
    console.print(table)
    machine = report["machine"]
    console.print(
        f"Medians of {report['rounds']} interleaved rounds; {machine['device']}, {machine['threads']} threads, "
        f"torch {machine['torch']}{', compiled' if report['compile'] else ''}"
    )


def main(
    recipe: Annotated[
        str, typer.Option(help="A bundled recipe, a .toml file, or the recipe.json of a run.")
    ] = "small-images",
    size: Annotated[list[int] | None, typer.Option(min=8, help="Pixels; may be given again.")] = None,
    batch: Annotated[int, typer.Option(min=2, help="Images per update.")] = 64,
    rounds: Annotated[int, typer.Option(min=2)] = 20,
    threads: Annotated[int | None, typer.Option(min=1, help="All cores if left out.")] = None,
    compile_: Annotated[bool, typer.Option("--compile/--no-compile", help="Compile both networks.")] = False,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Time updates of a nested network and of its dense backbone."""
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        chosen = dataclasses.replace(read_recipe(recipe), compile=compile_, start_size=None)
        machine = describe_machine("cuda" if torch.cuda.is_available() else "cpu")
        rows: list[dict[str, Any]] = []
        for pixels in size or [chosen.size]:
            runs = make_runs(dataclasses.replace(chosen, size=pixels))
            rows += measure_size(runs, pixels, batch, rounds)
    except HierclassError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    report = {
        "machine": machine,
        "rounds": rounds,
        "backbone": chosen.backbone,
        "widths": chosen.widths,
        "compile": compile_,
        "rows": rows,
    }
    show(report)
    if json_ is not None:
        with replacing(json_) as file:
            file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
