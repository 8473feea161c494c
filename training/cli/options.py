"""The options of ``hierclass-train``, each declared once, and how their text becomes values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from hierclass.errors import InputError

Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH|NAME:PATH",
        help="A folder of class folders (with train/ and val/ inside, val/ is held out), Parquet files (columns image, "
        "wnid, name), or cifar100:DIR, imagenet:DIR, imagefolder:DIR. Repeatable.",
    ),
]
TaxonomyName = Annotated[
    str | None,
    typer.Option(
        help="A bundled name, a .json or .csv file, or a folder tree. Default: proposed from the class folders."
    ),
]
Tiers = Annotated[
    str | None,
    typer.Option(
        help="Classes of the coarser tiers of a proposed tree, such as 10,40. Default: by how many there are."
    ),
]
Pin = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=SYNSET", help="The meaning of a class's name: crane=n03126707. Repeatable."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Take the proposed tree without asking.")]
Check = Annotated[
    str,
    typer.Option(
        help="How images are looked at before training: none, quick (header and end), full (decoded), or auto."
    ),
]
Balance = Annotated[
    str,
    typer.Option(help="Make up for large and small classes: none, loss (logit adjustment) or sampling."),
]
RecipeFile = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        help="A bundled recipe (small-images), or a .toml file with options; those given beside it win.",
    ),
]
DevFrom = Annotated[int | None, typer.Option(help="Hold out images numbered from here up by file name.")]
DevShare = Annotated[float, typer.Option(help="Share of every class to hold out, without --dev-from.")]
OnlyDevShare = Annotated[
    float | None, typer.Option("--dev-share", help="Only the share of every class that fit holds out.")
]
KnownTop1 = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Where the images are easier, or harder, than those the model will meet: the last level's top-1 on "
        "representative ones, such as 0.751. Images that it has wrong count so much that it has this top-1 here.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of weights, order, augmentation and the split.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that prepare images; 0: none.")]
AutomaticWorkers = Annotated[
    int | None,
    typer.Option(
        min=0,
        show_default="1; with a GPU, by the number of cores",
        help="Processes that prepare images for each process of the run; 0: none.",
    ),
]
SaveEvery = Annotated[
    float,
    typer.Option(min=0, help="Minutes after which the state is saved within an epoch; 0: after epochs only."),
]
Accumulate = Annotated[
    int,
    typer.Option(
        min=1, help="Parts in which an update is computed, to save memory; alters batch norm alone."
    ),
]
SyncBatchNorm = Annotated[
    bool, typer.Option(help="Batch norm over the images of all processes, or of each process by itself.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of the network.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/ and the name of the data.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --out; its recipe is read from there.")
]
EvalEvery = Annotated[int, typer.Option(min=1, help="Evaluate on the dev split every so many epochs.")]

Backbone = Annotated[
    str | None, typer.Option(help="timm model that is cut into levels. Default: by the size of the images.")
]
BackboneArg = Annotated[list[str] | None, typer.Option(help="KEY=VALUE for the timm model. Repeatable.")]
StemStride = Annotated[int | None, typer.Option(help="Total stride of the stem: 1, 2 or 4.")]
Pretrained = Annotated[
    bool | None,
    typer.Option(
        "--pretrained/--no-pretrained",
        help="Start from timm's pretrained weights. Default: if they are in the local cache or can be fetched.",
    ),
]
Structure = Annotated[
    str, typer.Option(help="How levels are nested: slices, prefix, masks or depths (docs/nested.md).")
]
Widths = Annotated[
    str,
    typer.Option(
        help="slices, prefix: share of the channels up to each level. Default: halves, as 0.25,0.5,1."
    ),
]
Sizes = Annotated[
    str, typer.Option(help="Side in pixels at which each level sees the image, such as 80,128,224.")
]
Own = Annotated[
    str,
    typer.Option(
        help="What a lower level has for itself: norms, norms+depthwise, either with +rank16, or everything; one for "
        "all, or one per lower level."
    ),
]
Depths = Annotated[
    str, typer.Option(help="Share of the blocks of each stage that a level runs; also with other structures.")
]
Densities = Annotated[
    str,
    typer.Option(help="masks: share of the weights that each level uses. Default: halves, as 0.25,0.5,1."),
]
Order = Annotated[
    str | None,
    typer.Option(
        help="slices, prefix: given, or importance: the channels that matter most over some training images to the "
        "lowest levels. Default: importance for pretrained weights and slices."
    ),
]
Heads = Annotated[
    str,
    typer.Option(
        help="What the heads of lower levels score: leaves, summed up to their tier, or tiers' classes."
    ),
]
Size = Annotated[int | None, typer.Option(help="Pixels per side. Default: by the size of the images.")]
Crop = Annotated[float, typer.Option(help="Share of the shorter side that is seen when it answers.")]
StartSize = Annotated[int | None, typer.Option(help="Pixels per side at first, growing by 8 to --size.")]
Grow = Annotated[float, typer.Option(help="Share of the epochs over which the size grows.")]
Limit = Annotated[int | None, typer.Option(help="Use the first N training images only.")]

Epochs = Annotated[
    int | None, typer.Option(min=1, help="Passes over the images. Default: by how many there are.")
]
EvaluationBatch = Annotated[
    int | None,
    typer.Option(min=1, help="Images that are answered at once. Default: by their size and the device."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Images per update, over all processes. Default: by how many there are."),
]
Opt = Annotated[str, typer.Option(help="Optimiser, as timm names it.")]
Lr = Annotated[float | None, typer.Option(help="Highest learning rate. Default: by the batch size.")]
WeightDecay = Annotated[float, typer.Option()]
Momentum = Annotated[float, typer.Option()]
Schedule = Annotated[str, typer.Option(help="Schedule, as timm names it; stepped every update.")]
WarmupEpochs = Annotated[int, typer.Option()]
ClipGrad = Annotated[float | None, typer.Option(help="Highest norm of the gradient.")]
EmaDecay = Annotated[float, typer.Option(help="Decay of the moving average that is evaluated and shipped.")]
MixedPrecision = Annotated[str, typer.Option(help="no, bf16 or fp16.")]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile/--no-compile", help="Compile the network (torch.compile): a slow start, faster updates."
    ),
]
ChannelsLast = Annotated[bool, typer.Option(help="Memory format of images and weights.")]

Smoothing = Annotated[float, typer.Option(help="Label smoothing, on every tier.")]
SmoothingAlong = Annotated[
    str, typer.Option(help="Where smoothing goes: over the classes of the tier, or along the tree.")
]
LevelWeights = Annotated[str, typer.Option(help="Weight of each level's loss, such as 1,1,1 (the default).")]
FinestWeight = Annotated[float, typer.Option(help="Weight of teaching lower levels the finest labels.")]
Distil = Annotated[float, typer.Option(help="Weight of teaching lower levels a higher level's answer.")]
DistilFrom = Annotated[
    str, typer.Option(help="Which level teaches the lower ones: last, or the next higher.")
]
DistilTo = Annotated[
    str, typer.Option(help="What it teaches: its answer on the lower level's tier, or on the leaves.")
]
DistilTeacher = Annotated[
    str, typer.Option(help="live, or ema: the moving average teaches, at the price of one more forward pass.")
]
Consensus = Annotated[
    str,
    typer.Option(help="How much lower levels count in an answer: 0 not at all; auto: the best of a few."),
]

CropScale = Annotated[str, typer.Option(help="Area of random crops, lowest and highest share.")]
ColorJitter = Annotated[float, typer.Option()]
AutoAugment = Annotated[
    str | None, typer.Option(help="timm's augmentation policy, such as rand-m7-n2-mstd0.5.")
]
Erase = Annotated[float, typer.Option(help="Probability of erasing a random rectangle.")]
MixupAlpha = Annotated[float, typer.Option("--mixup", help="Alpha of mixup; 0: off.")]
CutmixAlpha = Annotated[float, typer.Option("--cutmix", help="Alpha of cutmix; 0: off.")]
MixProb = Annotated[float, typer.Option(help="Share of batches that are mixed, where mixing is on.")]


def numbers(text: str, option: str) -> tuple[float, ...]:
    """``"0.25,0.5,1"`` as numbers, empty text as none; anything else raises `InputError` naming the option."""
    try:
        return tuple(float(part) for part in text.split(",")) if text.strip() else ()
    except ValueError as error:
        raise InputError(f"{option} {text}: give numbers separated by commas, such as 0.25,0.5,1") from error


def tier_sizes(text: str | None) -> list[int] | None:
    """``"10,40"`` as growing whole numbers from 2, None as None; anything else raises `InputError`."""
    if text is None:
        return None
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 2 or sizes != sorted(set(sizes)):
        raise InputError(f"--tiers {text}: give growing numbers of classes, coarse to fine, such as 10,40")
    return sizes


def pins(texts: list[str]) -> dict[str, str]:
    """``["crane=n03126707"]`` as name → synset id; anything else raises `InputError`."""
    found = {}
    for text in texts:
        name, _, synset = text.rpartition("=")
        if not name or not re.fullmatch(r"n\d{8}", synset):
            raise InputError(f"--pin {text}: write it as NAME=SYNSET, such as crane=n03126707")
        found[name] = synset
    return found


def number_or_auto(text: str) -> float | str:
    """``"0.25"`` as a number; other text stays, for `Recipe.check` to judge."""
    try:
        return float(text)
    except ValueError:
        return text


def arguments(pairs: list[str]) -> dict[str, Any]:
    """``["channels=32,64", "act_layer=silu"]`` as keyword arguments: numbers, booleans, lists, text."""
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--backbone-arg {pair}: write it as KEY=VALUE")
        parts = [_scalar(part) for part in text.split(",")]
        values[key.strip()] = parts if len(parts) > 1 else parts[0]
    return values


def _scalar(text: str) -> Any:
    try:
        return json.loads(text.strip().lower() if text.strip().lower() in {"true", "false"} else text)
    except ValueError:
        return text.strip()
