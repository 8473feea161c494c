"""What a classifier of own classes is worth, made in four ways: `python benchmarks/own_classes.py DATA [--json OUT]`.

DATA has a file SET.parquet (columns image, label) for each tree benchmarks/own_classes_trees/SET.csv. A quarter of
every class is held out of everything and measured; the rest, or so many images a class, is what there is to learn from.

heads     hierclass-train fit --tune heads: heads on the features of the bundled model, its network as it is
all       hierclass-train fit --tune all: the network trained from there
scratch   hierclass-train fit --from none --no-pretrained: a network of its own
sklearn   what one would do without hierclass: the features of the same pretrained network by timm, and scikit-learn's
          logistic regression on them; one answer, no levels, not calibrated

Each is a process of its own, timed from its start to its end. Figures are of the answers that users get: the tiers of
the last level's path; `own` is what each level has right on its own tier. With --json, runs that the file has are not
repeated, so that a stopped benchmark goes on.
"""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from hierclass.errors import InputError
from taxonomy import Taxonomy, load_taxonomy

TREES = Path(__file__).parent / "own_classes_trees"
COMMANDS = {
    "heads": ("--tune", "heads"),
    "all": ("--tune", "all"),
    "scratch": ("--from", "none", "--no-pretrained"),
}
METHODS = (*COMMANDS, "sklearn")
Indices = NDArray[np.int64]


def divide(labels: NDArray[np.str_], shots: int, seed: int) -> tuple[Indices, Indices]:
    """Rows to learn from, `shots` a class (0: all), and the quarter of every class that is measured."""
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    if shots:
        draw = np.random.default_rng(seed)
        of_class = [draw.permutation(train[labels[train] == name])[:shots] for name in np.unique(labels)]
        train = np.concatenate(of_class)
    return train, test


def truth_of(labels: list[str], taxonomy: Taxonomy) -> Indices:
    """The class of every image on every tier, (N, num_tiers)."""
    leaves = [taxonomy.node(leaf).name for leaf in taxonomy.leaves]
    found = np.array([leaves.index(label) for label in labels])
    return np.stack([np.asarray(taxonomy.projection(tier))[found] for tier in range(taxonomy.num_tiers)], 1)


def by_command(method: str, folder: Path, tree: Path, minutes: float) -> dict[str, Any]:
    """Make a model with the command line; returns how long that took, and what it has right of the test images."""
    words = [sys.executable, "-m", "training", "fit", "--data", str(folder / "train.parquet")]
    words += ["--taxonomy", str(tree), "--out", str(folder / "run"), "--yes", *COMMANDS[method]]
    started = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        run = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = run.wait(60 * minutes)
        except subprocess.TimeoutExpired:  # the best epoch until then counts
            run.send_signal(signal.SIGINT)
            code = 0 if run.wait() in (0, 130) else 1
    seconds = time.perf_counter() - started
    if code or not (folder / "run" / "model").exists():
        raise InputError(f"{' '.join(words)} ended with {code}: {(folder / 'log.txt').read_text()[-400:]}")
    return {"seconds": round(seconds, 1), **_right(folder / "run" / "model", folder / "test.parquet")}


def _right(model: Path, file: Path) -> dict[str, Any]:
    import hierclass

    classifier = hierclass.load(model)
    tree, table = classifier.taxonomy, pq.read_table(file)
    truth, own, path = truth_of(table["label"].to_pylist(), tree), [], []
    for level in range(tree.num_tiers):
        answers = classifier.predict_batch(table["image"].to_pylist(), level)
        found = np.array(
            [[tree.tiers[tier].index(step.synset) for tier, step in enumerate(a.path)] for a in answers]
        )
        path = [round(float(right), 4) for right in (found == truth[:, : level + 1]).mean(axis=0)]
        own.append(path[-1])
    return {"path": path, "own": own}


def by_sklearn(folder: Path, tree: Path) -> dict[str, Any]:
    """Features by timm, a batch at a time, and a logistic regression with scikit-learn's defaults."""
    started = time.perf_counter()
    import timm
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from hierclass.checkpoints.checkpoint import load_checkpoint
    from hierclass.files import BUNDLED

    pretrained = load_checkpoint(BUNDLED).network
    model: Any = pretrained.extract(pretrained.num_levels - 1).eval()  # timm's, with the published weights
    transform = timm.data.create_transform(
        **{
            **timm.data.resolve_model_data_config(timm.create_model("tf_efficientnet_lite0")),
            "crop_pct": 0.875,
        }
    )

    @torch.inference_mode()
    def features(file: Path) -> tuple[NDArray[np.float32], list[str]]:
        table = pq.read_table(file)
        found = []
        images = table["image"].to_pylist()
        for start in range(0, len(images), 32):
            batch = [
                transform(Image.open(io.BytesIO(each)).convert("RGB")) for each in images[start : start + 32]
            ]
            pooled = model.forward_head(model.forward_features(torch.stack(batch)), pre_logits=True)
            found.append(pooled.numpy())
        return np.concatenate(found), table["label"].to_pylist()

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(*features(folder / "train.parquet"))
    seconds = time.perf_counter() - started
    values, labels = features(folder / "test.parquet")
    taxonomy = load_taxonomy(tree)
    right = truth_of(classifier.predict(values).tolist(), taxonomy) == truth_of(labels, taxonomy)
    path = [round(float(each), 4) for each in right.mean(axis=0)]
    return {"seconds": round(seconds, 1), "path": path, "own": path[-1:]}


def draw(rows: list[dict[str, Any]]) -> Table:
    """A row per set, number of images and method."""
    table = Table(
        title="Own classes: right of the held-out quarter, by the path of the last level, and by each level on its tier"
    )
    for column in ("set", "a class", "images", "method"):
        table.add_column(column, no_wrap=True)
    for column in ("path", "own", "time", "on"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in sorted(
        rows, key=lambda each: (each["set"], each["shots"] or 10**9, METHODS.index(each["method"]))
    ):
        shown = [" / ".join(f"{100 * share:.1f}" for share in row[name]) for name in ("path", "own")]
        minutes, seconds = divmod(round(row["seconds"]), 60)
        shots = str(row["shots"] or "all")
        table.add_row(
            row["set"],
            shots,
            str(row["images"]),
            row["method"],
            *shown,
            f"{minutes}:{seconds:02}",
            row["device"],
        )
    return table


def main(
    data: Annotated[Path, typer.Argument(help="Folder with SET.parquet for each tree.")],
    methods: Annotated[str, typer.Option(help="Which ways, with commas.")] = ",".join(METHODS),
    shots: Annotated[str, typer.Option(help="Images a class to learn from, with commas; 0: all.")] = "0",
    sets: Annotated[str | None, typer.Option(help="Which sets, with commas. Default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Which images a class are taken.")] = 0,
    minutes: Annotated[float, typer.Option(help="End a training then; its best epoch counts.")] = 30,
    json_: Annotated[
        Path | None, typer.Option("--json", help="Keep the figures here, run after run.")
    ] = None,
) -> None:
    """Make and measure every model that is asked for; print the table."""
    rows: list[dict[str, Any]] = json.loads(json_.read_text()) if json_ and json_.exists() else []
    console = Console()
    for name in sets.split(",") if sets else sorted(file.stem for file in TREES.glob("*.csv")):
        table = pq.read_table(data / f"{name}.parquet")
        labels = np.array(table["label"].to_pylist())
        with (TREES / f"{name}.csv").open() as file:
            assert {row[-1] for row in list(csv.reader(file))[1:]} == set(labels.tolist())
        for count in map(int, shots.split(",")):
            for method in methods.split(","):
                key = {"set": name, "shots": count, "method": method, "seed": seed}
                if any(key.items() <= row.items() for row in rows):
                    continue
                train, test = divide(labels, count, seed)
                with tempfile.TemporaryDirectory() as scratch:
                    folder = Path(scratch)
                    for part, chosen in (("train", train), ("test", test)):
                        pq.write_table(table.take(pa.array(chosen)), folder / f"{part}.parquet")
                    tree = TREES / f"{name}.csv"
                    if method == "sklearn":
                        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                            found = pool.submit(by_sklearn, folder, tree).result()
                    else:
                        found = by_command(method, folder, tree, minutes)
                rows.append({**key, "images": len(train), **found, "device": "CPU"})
                console.print(rows[-1])
                if json_:
                    json_.write_text(json.dumps(rows, indent=1) + "\n")
    console.print(draw(rows))


if __name__ == "__main__":
    typer.run(main)
