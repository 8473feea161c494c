"""The options of ``hierclass-train distil`` that other commands don't have, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Timm = Annotated[
    str | None, typer.Option("--timm", metavar="NAME", help="A timm classifier that is made nested.")
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Its weights: .safetensors, or .pth that holds tensors alone. Default: timm's, in the local cache.",
    ),
]
Classes = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="What its outputs mean, a line for each. Default: the classes of ImageNet, by their number.",
    ),
]
Teacher = Annotated[
    Path | None,
    typer.Option(
        metavar="MODEL", help="In place of --timm: a model folder, whose last level is made nested."
    ),
]
Start = Annotated[
    Path | None,
    typer.Option(metavar="MODEL", help="Begin with the levels of a model that was made this way before."),
]
Images = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH",
        help="Photographs without labels: folders, or Parquet files with a column image. Repeatable.",
    ),
]
Tree = Annotated[
    str | None,
    typer.Option(
        "--taxonomy",
        help="A bundled name, or a .json or .csv file, over the teacher's classes. Default: imagenet-1k; of a model, "
        "its own.",
    ),
]
Structure = Annotated[str, typer.Option(help="How levels are nested: prefix.")]
Widths = Annotated[
    str,
    typer.Option(
        help="Share of the channels of each level, such as 0.5,0.75,1; with --sizes they may stay equal."
    ),
]
Frozen = Annotated[
    bool, typer.Option(help="Keep the last level as the teacher is, number for number, or train it too.")
]
Level = Annotated[
    int | None, typer.Option(min=0, help="Train this level alone. Default: one after the other.")
]
Out = Annotated[Path, typer.Option(help="Folder of the run; the model is left in OUT/model.")]
Cache = Annotated[
    Path | None, typer.Option(help="Folder for crops and the teacher's answers. Default: OUT/crops.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --out, for longer if --crops is larger now.")
]
CropsPerPhoto = Annotated[int, typer.Option(help="Crops that are kept of each photograph; may grow later.")]
CropScale = Annotated[str, typer.Option(help="Area of a crop, lowest and highest share of the photograph's.")]
ValShare = Annotated[
    float, typer.Option(help="Share of the photographs that is held out: 64 at least, at most a tenth.")
]
Crops = Annotated[
    int | None,
    typer.Option(min=1, help="Crops to train on, for each level. Default: 16 times all there are."),
]
Updates = Annotated[
    int | None, typer.Option(min=1, help="In place of --crops: updates, of --batch-size crops each.")
]
Minutes = Annotated[
    float | None, typer.Option(min=0, help="End after so many minutes; --resume goes on from there.")
]
BatchSize = Annotated[int, typer.Option(help="Crops per update, over all processes.")]
Lr = Annotated[float, typer.Option(help="Highest learning rate.")]
Warmup = Annotated[int, typer.Option(help="Updates over which the learning rate rises.")]
Decay = Annotated[
    float, typer.Option(help="Share of the updates, the last ones, over which the learning rate falls.")
]
LeafWeight = Annotated[
    float, typer.Option(help="Weight of the divergence from the teacher's answer on leaves.")
]
TierWeight = Annotated[
    float, typer.Option(help="Weight of the divergence from its answer on the level's own tier.")
]
Statistics = Annotated[
    str,
    typer.Option(
        help="What norms normalise by: batch, pretrained (the statistics that they begin with), or auto: what is "
        "nearer to the teacher before training; with --start what that model was trained with."
    ),
]
TrainHeads = Annotated[
    bool,
    typer.Option(
        help="Train the classifiers of the levels, or leave them as they begin: as the teacher's own, or --start's."
    ),
]
Interpolate = Annotated[
    float,
    typer.Option(
        help="Keep weights that lie at this share of the way from those that a level begins with to the trained ones."
    ),
]
Mixup = Annotated[float, typer.Option(help="Alpha of mixup, answers mixed alike; 0: off.")]
MixProb = Annotated[float, typer.Option(help="Share of updates that are mixed, where mixing is on.")]
Flip = Annotated[bool, typer.Option(help="Mirror half of the crops in every update.")]
EvalEvery = Annotated[
    int, typer.Option(help="Look at the held-out crops, and keep the model, every so many crops.")
]
EvalData = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH|NAME:PATH",
        help="Labelled photographs, as fit's --data, to measure and calibrate the model with at the end. Repeatable.",
    ),
]
