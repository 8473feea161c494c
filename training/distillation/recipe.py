"""The recipe of a distillation: every choice that shapes the result, one frozen value, JSON beside the weights."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

from hierclass.errors import InputError
from training.recipe.stored_options import StoredOptions

IDENTITY = (
    *("timm", "weights", "classes", "teacher", "start", "taxonomy", "images", "structure", "widths", "sizes"),
    *("own", "frozen", "crop_scale", "val_share", "batch_size", "opt", "train_heads", "seed"),
)
"""Fields that say what a run is; the others may change when it is continued."""
COMMON = (
    *("timm", "weights", "classes", "teacher", "start", "taxonomy", "images", "structure", "widths", "sizes"),
    *("own", "frozen", "crop_scale", "val_share", "seed"),
)
"""Fields that all levels of one output folder have in common."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilRecipe(StoredOptions):
    """What is made nested, with which photographs, and how it is trained.

    The teacher is a timm model ``timm`` with a file of ``weights``, whose outputs are an ImageNet's classes or those
    that the file ``classes`` lists, or ``teacher``, a model folder. ``taxonomy`` is a bundled tree or a file, None the
    tree of ImageNet-1k or the teacher's own. ``start``, a model folder made this way before, gives the weights to begin
    with.

    ``structure``, ``widths``, ``sizes``, ``own`` (one, or one per lower level) and ``frozen`` are those of
    `hierclass.nested.nest`. ``images`` are folders and Parquet files; of every photograph ``crops_per_photo`` random
    resized crops with an area from ``crop_scale`` are kept, in the folder ``cache`` (None: in that of the run), and a
    share ``val_share`` of the photographs is held out.

    ``crops`` (None: 16 times all that there are) are trained on, ``batch_size`` per update: warm-up for ``warmup``
    updates, then ``lr``, falling to almost nothing over the last ``decay`` share. ``leaf_weight`` and ``tier_weight``
    weigh the divergence from the teacher's answer on the leaves and on the level's tier. ``statistics`` says what norms
    normalise by: those of each "batch", measured again whenever the level is kept, or the "pretrained" ones; "auto"
    takes what is nearer to the teacher before training, or what ``start`` was trained with. ``train_heads`` False
    leaves the heads as they begin. A level is kept with weights that lie a share ``interpolate`` of the way from those
    that it began with to the trained ones. ``mixup`` is the alpha of mixing images, in a share ``mix_prob`` of the
    updates; ``flip`` mirrors half of them. Every ``eval_every`` crops the held-out ones are looked at.
    """

    images: tuple[str, ...]
    timm: str | None = None
    weights: str | None = None
    classes: str | None = None
    teacher: str | None = None
    start: str | None = None
    taxonomy: str | None = None
    structure: str = "prefix"
    widths: tuple[float, ...] | None = None
    sizes: tuple[int, ...] | None = None
    own: tuple[str, ...] = ("norms+depthwise",)
    frozen: bool = True
    cache: str | None = None
    crops_per_photo: int = 4
    crop_scale: tuple[float, ...] = (0.25, 1.0)
    val_share: float = 0.0025
    crops: int | None = None
    batch_size: int = 64
    opt: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 1e-4
    clip_grad: float | None = None
    warmup: int = 100
    decay: float = 0.5
    ema_decay: float = 0.999
    leaf_weight: float = 1.0
    tier_weight: float = 1.0
    statistics: str = "auto"
    train_heads: bool = True
    interpolate: float = 1.0
    mixup: float = 0.0
    mix_prob: float = 1.0
    flip: bool = True
    eval_every: int = 25_600
    seed: int = 0
    mixed_precision: str = "no"
    channels_last: bool = True
    sync_batch_norm: bool = True

    def without_paths(self) -> DistilRecipe:
        """The recipe as it goes out with the weights: files by their last names, no folder of this machine."""
        names: dict[str, Any] = {
            name: Path(value).name
            for name in ("weights", "classes", "teacher", "start", "taxonomy", "cache")
            if (value := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, images=tuple(Path(path).name for path in self.images), **names)

    def total_updates(self) -> int:
        """Updates of the whole run; only of a recipe whose crops are known."""
        assert self.crops is not None
        return max(self.crops // self.batch_size, 1)

    def rate(self, update: int) -> float:
        """Learning rate of an update (0, 1, …): warm-up, constant, then down to a hundredth in a straight line."""
        total = self.total_updates()
        up = min(1.0, (update + 1) / max(self.warmup, 1))
        left = (total - update) / max(self.decay * total, 1)
        return self.lr * up * min(1.0, max(0.01, left))

    def check(self) -> None:
        """Refuse values that no run can have; raises `InputError` naming the option."""
        self._check_teacher()
        for message, failed in self._wrong().items():
            if failed:
                raise InputError(message)

    def check_levels(self, num_tiers: int) -> None:
        """Refuse numbers of which there is not one per tier; raises `InputError` naming the option."""
        for option, values in (("--widths", self.widths), ("--sizes", self.sizes)):
            if values is not None and len(values) != num_tiers:
                raise InputError(
                    f"{option}: give one per level, {num_tiers} for {num_tiers} tiers, not {len(values)}"
                )
        if num_tiers < 2:
            raise InputError("a tree of one tier has nothing to nest; give --taxonomy with two tiers or more")

    def _check_teacher(self) -> None:
        if not self.images:
            raise InputError("give the photographs with --images")
        if (self.timm is None) == (self.teacher is None):
            raise InputError("give the teacher: --timm NAME with --weights FILE, or --teacher MODEL")
        for option, value in (("--weights", self.weights), ("--classes", self.classes)):
            if self.teacher is not None and value is not None:
                raise InputError(f"{option} has no effect with --teacher; leave it out")
        if self.classes is not None and self.taxonomy is None:
            raise InputError("--classes needs --taxonomy, a tree over these classes")
        if self.structure != "prefix":
            raise InputError(
                f"--structure {self.structure}: distil makes structure prefix alone; leave it out"
            )

    def _wrong(self) -> dict[str, bool]:
        """Message → whether it applies."""
        sizes, widths = self.sizes or (64,), self.widths or (1.0,)
        rising = all(low < high or (low == high and self.sizes) for low, high in itertools.pairwise(widths))
        return {
            f"--sizes {_text(sizes)}: give 8 to 4096 pixels, never falling": list(sizes) != sorted(sizes)
            or not 8 <= sizes[0] <= sizes[-1] <= 4096,
            f"--widths {_text(widths)}: give rising shares up to 1, such as 0.5,0.75,1, with --sizes equal ones too": (
                not (rising and widths[0] > 0 and widths[-1] == 1)
            ),
            f"--crops-per-photo {self.crops_per_photo}: give at least 1": self.crops_per_photo < 1,
            "--crop-scale: give two shares, such as 0.25,1": len(self.crop_scale) != 2
            or not 0 < self.crop_scale[0] <= self.crop_scale[-1] <= 1,
            f"--val-share {self.val_share}: give more than 0, at most 0.5": not 0 < self.val_share <= 0.5,
            f"--crops {self.crops}: give at least 1": self.crops is not None and self.crops < 1,
            f"--batch-size {self.batch_size}: give at least 2": self.batch_size < 2,
            f"--lr {self.lr}: give more than 0": not 0 < self.lr < math.inf,
            f"--weight-decay {self.weight_decay}: give 0 or more": not 0 <= self.weight_decay < math.inf,
            f"--clip-grad {self.clip_grad}: give more than 0": self.clip_grad is not None
            and not self.clip_grad > 0,
            f"--warmup {self.warmup}: give 0 or more updates": self.warmup < 0,
            f"--decay {self.decay}: give a share from 0 to 1": not 0 <= self.decay <= 1,
            f"--ema-decay {self.ema_decay}: give 0 up to less than 1": not 0 <= self.ema_decay < 1,
            "--leaf-weight and --tier-weight: give 0 or more, and not 0 to both": not (
                min(self.leaf_weight, self.tier_weight) >= 0
                and 0 < self.leaf_weight + self.tier_weight < math.inf
            ),
            f"--mixup {self.mixup}: give 0 or more": not 0 <= self.mixup < math.inf,
            f"--mix-prob {self.mix_prob}: give a share from 0 to 1": not 0 <= self.mix_prob <= 1,
            f"--statistics {self.statistics}: give auto, batch or pretrained": self.statistics
            not in ("auto", "batch", "pretrained"),
            f"--interpolate {self.interpolate}: give more than 0, at most 1": not 0 < self.interpolate <= 1,
            f"--eval-every {self.eval_every}: give at least 1": self.eval_every < 1,
            f"--seed {self.seed}: give 0 or more": self.seed < 0,
            f"--mixed-precision {self.mixed_precision}: give no, bf16 or fp16": self.mixed_precision
            not in ("no", "bf16", "fp16"),
        }


def untrained_levels(trained: set[int], num_tiers: int, recipe: DistilRecipe) -> list[int]:
    """The levels of a model that were never trained; none where it began with those of another model."""
    wanted = range(num_tiers - 1 if recipe.frozen else num_tiers)
    return [] if recipe.start else [level for level in wanted if level not in trained]


def _text(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
