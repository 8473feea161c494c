"""The recipe of ``fit``: all options that shape the result, stored as recipe.json beside the weights."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from hierclass.errors import BackboneError, InputError
from training.data.datasets import split_name
from training.recipe.option import as_text, list_words, option, spec
from training.recipe.stored_options import StoredOptions

SHARES = ("widths", "depths", "densities")
"""Fields of a recipe that give the size of each level as a share; a structure takes some of them."""
PER_LEVEL = (*SHARES, "sizes", "level_weights")
"""Fields of a recipe with a number per level."""
TUNE = ("none", "heads", "all")
"""What is trained of the network of a model: nothing, the heads on its features, or all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(StoredOptions):
    """All options that shape the result of ``fit``; the same recipe on the same machine gives the same weights.

    Each field declares its option (`training.recipe.option`); docs/options.md lists them all. ``widths``, ``depths``
    and ``densities`` None are those of `hierclass.nested.default_shares`.
    """

    data: tuple[str, ...] = dataclasses.field(
        metadata=spec(
            "data",
            "A folder of class folders (with train/ and val/ inside, val/ is held out), Parquet files "
            "(columns image, wnid, name), or cifar100:DIR, imagenet:DIR, imagefolder:DIR. Repeatable.",
            metavar="PATH|NAME:PATH",
            repeat=True,
        )
    )
    taxonomy: str = dataclasses.field(
        metadata=spec(
            "tree",
            "A bundled name, a .json or .csv file, or a folder tree.",
            chosen="proposed from the class folders",
        )
    )
    base: str = option(
        "",
        "network",
        "Start from the network of a model: its folder; none: a network of its own, from timm's weights or "
        "from scratch.",
        flag="--from",
        metavar="MODEL",
        chosen="the bundled model, unless options of a network are given",
    )
    tune: str = option(
        "",
        "network",
        "What is trained of that network: heads; all; none, which fits temperatures and thresholds alone.",
        choices=("", *TUNE),
        expected="none, heads or all",
        chosen="heads on a processor or of few images, else all",
    )
    backbone: str = option(
        "resnet18", "network", "timm model that is cut into levels.", chosen="by the size of the images"
    )
    backbone_args: dict[str, Any] = dataclasses.field(
        default_factory=dict,
        metadata=spec(
            "network", "KEY=VALUE for the timm model. Repeatable.", flag="--backbone-arg", repeat=True
        ),
    )
    stem_stride: int | None = option(None, "network", "Total stride of the stem: 1, 2 or 4.")
    pretrained: bool = option(
        False,
        "network",
        "Start from timm's pretrained weights.",
        chosen="if they are in the local cache or can be fetched",
    )
    structure: str = option(
        "slices", "network", "How levels are nested: slices, prefix, masks or depths (docs/nested.md)."
    )
    widths: tuple[float, ...] | None = option(
        None,
        "network",
        "slices, prefix: share of the channels up to each level.",
        chosen="halves, as 0.25,0.5,1",
    )
    depths: tuple[float, ...] | None = option(
        None, "network", "Share of the blocks of each stage that a level runs; also with other structures."
    )
    densities: tuple[float, ...] | None = option(
        None, "network", "masks: share of the weights that each level uses.", chosen="halves, as 0.25,0.5,1"
    )
    sizes: tuple[int, ...] | None = option(
        None, "network", "Side in pixels at which each level sees the image, such as 80,128,224."
    )
    own: tuple[str, ...] = option(
        ("norms",),
        "network",
        "What a lower level has for itself: norms, norms+depthwise, either with +rank16, or everything; "
        "one for all, or one per lower level.",
    )
    order: str = option(
        "given",
        "network",
        "slices, prefix: given, or importance: the channels that matter most over some training images to"
        " the lowest levels.",
        choices=("given", "importance"),
        chosen="importance for pretrained weights and slices",
    )
    heads: str = option(
        "leaves",
        "network",
        "Classes that the heads of lower levels score: leaves, summed up to their tier, or tiers' classes.",
        choices=("leaves", "tiers"),
    )
    size: int = option(
        64, "network", "Pixels per side.", at_least=8, at_most=4096, chosen="by the size of the images"
    )
    crop: float = option(
        1.0,
        "network",
        "Share of the shorter side that is seen in evaluation and use.",
        at_least=0.05,
        at_most=1,
    )
    start_size: int | None = option(
        None,
        "schedule",
        "Pixels per side at first, growing by 8 to --size.",
        expected="8 up to `size`",
        example="48",
    )
    grow: float = option(
        0.65,
        "schedule",
        "Share of the epochs over which the size grows.",
        at_least=0,
        at_most=1,
        needs=("start_size",),
    )
    dev_from: int | None = option(None, "data", "Hold out images numbered from here up by file name.")
    dev_share: float = option(
        0.1, "data", "Share of every class to hold out, without --dev-from.", more_than=0, less_than=1
    )
    limit: int | None = option(None, "data", "Use the first N training images only.", at_least=1)
    epochs: int = option(
        30, "schedule", "Passes over the images.", at_least=1, chosen="by how many there are"
    )
    batch_size: int = option(
        128, "schedule", "Images per update, over all processes.", at_least=1, chosen="by how many there are"
    )
    accumulate: int = option(
        1,
        "rare",
        "Parts in which an update is computed, to save memory; alters batch norm alone.",
        at_least=1,
        expected="1 to half of `batch_size`",
    )
    opt: str = option("sgd", "schedule", "Optimiser, as timm names it.")
    lr: float = option(0.1, "schedule", "Highest learning rate.", more_than=0, chosen="by the batch size")
    weight_decay: float = option(
        0.0005, "schedule", "Weight decay of the optimiser; biases and norms have none.", at_least=0
    )
    momentum: float = option(0.9, "schedule", "Momentum of the optimiser.", at_least=0, less_than=1)
    schedule: str = option("cosine", "schedule", "Schedule, as timm names it; stepped every update.")
    warmup_epochs: int = option(
        1, "schedule", "Epochs over which the learning rate rises from a twentieth.", at_least=0
    )
    clip_grad: float | None = option(None, "schedule", "Highest norm of the gradient.", more_than=0)
    smoothing: float = option(
        0.0,
        "rare",
        "Label smoothing, on every tier.",
        at_least=0,
        less_than=1,
        expected="0 up to less than 1",
        example="0.1",
    )
    smoothing_along: str = option(
        "tier",
        "rare",
        "Where smoothing goes: over the classes of the tier, or along the tree.",
        choices=("tier", "tree"),
        needs=("smoothing",),
    )
    balance: str = option(
        "none",
        "rare",
        "Make up for large and small classes: none, loss (logit adjustment) or sampling.",
        choices=("none", "loss", "sampling"),
    )
    level_weights: tuple[float, ...] = option(
        (), "rare", "Weight of each level's loss, such as 1,1,1 (the default)."
    )
    finest_weight: float = option(
        1.0, "rare", "Weight of teaching lower levels the finest labels.", at_least=0
    )
    distil: float = option(
        0.0, "rare", "Weight of teaching lower levels a higher level's answer.", at_least=0, example="0.5"
    )
    distil_from: str = option(
        "last",
        "rare",
        "Which level teaches the lower ones: last, or the next higher.",
        choices=("last", "next"),
        needs=("distil",),
    )
    distil_to: str = option(
        "tier",
        "rare",
        "Where it teaches: its answer on the lower level's tier, or on the leaves.",
        choices=("tier", "leaves"),
        needs=("distil",),
    )
    distil_teacher: str = option(
        "live",
        "rare",
        "live, or ema: the moving average teaches, at the price of one more forward pass.",
        choices=("live", "ema"),
        needs=("distil",),
    )
    consensus: float | str = option(
        "auto",
        "rare",
        "How much lower levels count in an answer: 0 not at all; auto: the best of a few on the dev split.",
        choices=("auto",),
        at_least=0,
        expected="auto, or a number from 0",
    )
    crop_scale: tuple[float, float] = option(
        (0.35, 1.0), "rare", "Area of random crops, lowest and highest share.", example="0.35,1"
    )
    color_jitter: float = option(0.0, "rare", "Strength of random changes of colour; 0: off.", at_least=0)
    auto_augment: str | None = option(None, "rare", "timm's augmentation policy, such as rand-m7-n2-mstd0.5.")
    erase: float = option(
        0.0, "rare", "Probability of erasing a random rectangle.", at_least=0, at_most=1, noun="a probability"
    )
    mixup: float = option(0.0, "rare", "Alpha of mixup; 0: off.", at_least=0, example="0.2")
    cutmix: float = option(0.0, "rare", "Alpha of cutmix; 0: off.", at_least=0, example="0.2")
    mix_prob: float = option(
        1.0,
        "rare",
        "Share of batches that are mixed, where mixing is on.",
        at_least=0,
        at_most=1,
        needs=("mixup", "cutmix"),
    )
    ema_decay: float = option(
        0.999,
        "rare",
        "Decay of the moving average that is evaluated and shipped.",
        at_least=0,
        less_than=1,
        expected="0 up to less than 1",
    )
    eval_every: int = option(1, "schedule", "Evaluate on the dev split every N epochs.", at_least=1)
    seed: int = option(0, "rare", "Seed of weights, order, augmentation and the split.", at_least=0)
    mixed_precision: str = option("no", "rare", "no, bf16 or fp16.", choices=("no", "bf16", "fp16"))
    channels_last: bool = option(True, "rare", "Memory format of images and weights.")
    sync_batch_norm: bool = option(
        True, "rare", "Batch norm over the images of all processes, or of each process by itself."
    )
    compile: bool = option(
        False, "rare", "Compile the network (torch.compile): a slow start, faster updates."
    )

    def without_paths(self) -> Recipe:
        """A copy with file names in place of paths, to ship with the weights."""
        names = tuple(name or path.name for name, path in map(split_name, self.data))
        paths = {name: Path(getattr(self, name)).name for name in ("taxonomy", "base")}
        return dataclasses.replace(self, data=names, **paths)

    def check(self) -> None:
        """Refuse values that no run can have; raises `InputError` naming the field."""
        self.check_values()
        for message, wrong in self._wrong_together().items():
            if wrong:
                raise InputError(message)
        self._check_structure()

    def check_levels(self, num_tiers: int) -> None:
        """Refuse lists that do not have one number per tier; raises `InputError` naming the field."""
        for name in PER_LEVEL:
            values = getattr(self, name)
            if values and len(values) != num_tiers:
                raise InputError(
                    f"`{name}`: give one per level, {num_tiers} for {num_tiers} tiers, not {len(values)}"
                )

    def _wrong_together(self) -> dict[str, bool]:
        """Message → whether it applies, for values that must fit each other."""
        start_size = self.size if self.start_size is None else self.start_size
        weights, scale = self.level_weights, self.crop_scale
        return {
            f"`start_size` {start_size}: give 8 up to `size`": not 8 <= start_size <= self.size,
            "`crop_scale`: give two shares, such as 0.35,1": len(scale) != 2
            or not 0 < scale[0] <= scale[1] <= 1,
            f"`accumulate` {self.accumulate}: give 1 to half of `batch_size`": self.accumulate
            > max(1, self.batch_size // 2),
            f"`level_weights` {as_text(weights)}: give 0 or more per level, and not 0 to all": bool(weights)
            and not (min(weights) >= 0 and 0 < sum(weights) < math.inf),
            "`distil_to` leaves: the last level alone teaches leaves; leave `distil_from` next out": (
                self.distil_to == "leaves" and self.distil_from == "next"
            ),
            "`distil_to` leaves needs lower levels that score leaves: give `finest_weight` more than 0": (
                self.distil_to == "leaves" and not self.finest_weight
            ),
        }

    def _check_structure(self) -> None:
        from hierclass.nested import STRUCTURES

        if self.structure not in STRUCTURES:
            raise InputError(f"`structure` {self.structure}: give {list_words(STRUCTURES)}")
        structure = STRUCTURES[self.structure]
        if self.order == "importance" and not structure.reorders:
            raise InputError(f"`order` importance does not fit `structure` {self.structure}; leave it out")
        if self.compile and self.structure == "masks":
            raise InputError("`compile` does not speed up `structure` masks; leave it out")
        for name in SHARES:
            if name not in structure.takes and getattr(self, name):
                raise InputError(
                    f"`{name}` does not fit `structure` {self.structure}; give `{structure.takes[0]}`"
                )
        self._check_sharing(shares_blocks=structure.shares_blocks)
        self._check_shares()

    def _check_sharing(self, *, shares_blocks: bool) -> None:
        """Refuse image sizes and own weights of levels that no network can have."""
        from hierclass.nested.shared_weights import OwnWeights  # imports torch, which options do without

        for name, given in (("sizes", self.sizes is not None), ("own", self.own != ("norms",))):
            if given and not shares_blocks:
                raise InputError(
                    f"`{name}` does not fit `structure` {self.structure}; prefix and depths take it"
                )
        try:
            for each in self.own:
                OwnWeights.parse(each)
        except BackboneError as error:
            raise InputError(f"`own` {','.join(self.own)}: {str(error).partition('; ')[2]}") from error
        sizes = self.sizes or (self.size,)
        if list(sizes) != sorted(sizes) or sizes[0] < 8 or sizes[-1] != self.size:
            raise InputError(
                f"`sizes` {as_text(sizes)}: give a side per level from 8 pixels, never falling, the last that of "
                f"`size`, {self.size}"
            )

    def _check_shares(self) -> None:
        """Refuse shares that no network is cut by, before anything is read or made."""
        from hierclass.nested.analysis.channel_groups import check_widths
        from hierclass.nested.analysis.residual_blocks import (
            check_depths,  # they import torch, which options do without
        )
        from hierclass.nested.masks.selection import check_densities

        checks = {"widths": check_widths, "depths": check_depths, "densities": check_densities}
        for name, check in checks.items():
            values: tuple[float, ...] = getattr(self, name) or ()
            if not all(map(math.isfinite, values)):
                raise InputError(f"`{name}` {as_text(values)}: give shares up to 1")
            if name == "widths" and self.sizes and list(values) == sorted(values):
                values = tuple(sorted(set(values)))  # levels of different image sizes may be equally wide
            try:
                if values:
                    check(values)
            except BackboneError as error:
                advice = str(error).partition("; ")[2]
                raise InputError(f"`{name}` {as_text(values)}: {advice}") from error
        if self.widths and self.sizes and not self.base:
            from hierclass.nested.build import check_different

            check_different(self.widths, self.sizes)

    def image_size(self, epoch: int) -> int:
        """Pixels per side of the training images in an epoch, which counts from 0."""
        growing = int(self.epochs * self.grow)
        if self.start_size is None or epoch >= growing:
            return self.size
        steps = (self.size - self.start_size) // 8
        return self.start_size + 8 * (epoch * (steps + 1) // max(growing, 1))
