"""The recipe of ``distil``: all options that shape the result, stored as recipe.json beside the weights."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from hierclass.errors import InputError
from training.recipe.option import as_text, like, option, spec
from training.recipe.recipe import Recipe
from training.recipe.stored_options import StoredOptions

IDENTITY = (
    *("timm", "weights", "classes", "teacher", "start", "taxonomy", "images", "structure", "widths", "sizes"),
    *("own", "frozen", "crop_scale", "val_share", "batch_size", "opt", "train_heads", "seed"),
)
"""Fields that must stay the same when a run is continued."""
COMMON = (
    *("timm", "weights", "classes", "teacher", "start", "taxonomy", "images", "structure", "widths", "sizes"),
    *("own", "frozen", "crop_scale", "val_share", "seed"),
)
"""Fields that all levels of one output folder share."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilRecipe(StoredOptions):
    """All options that shape the result of ``distil``: the teacher, its photographs, and how levels are trained.

    Each field declares its option (`training.recipe.option`); docs/options.md lists them all. The teacher is a timm
    model ``timm`` with ``weights``, or a model folder ``teacher``. ``structure``, ``widths``, ``sizes``, ``own`` and
    ``frozen`` are those of `hierclass.nested.nest`.
    """

    images: tuple[str, ...] = dataclasses.field(
        metadata=spec(
            "photographs",
            "Photographs without labels: folders, or Parquet files with a column image. Repeatable.",
            metavar="PATH",
            repeat=True,
            path=True,
        )
    )
    timm: str | None = option(None, "teacher", "A timm classifier that is made nested.", metavar="NAME")
    weights: str | None = option(
        None,
        "teacher",
        "Its weights: .safetensors, or .pth that holds tensors alone. Default: timm's, in the local cache.",
        metavar="FILE",
        path=True,
    )
    classes: str | None = option(
        None,
        "teacher",
        "What its outputs mean, a line for each. Default: the classes of ImageNet, by their number.",
        metavar="FILE",
        path=True,
    )
    teacher: str | None = option(
        None,
        "teacher",
        "In place of --timm: a model folder, whose last level is made nested.",
        metavar="MODEL",
        path=True,
    )
    start: str | None = option(
        None,
        "teacher",
        "Begin with the levels of a model that was made this way before.",
        metavar="MODEL",
        path=True,
    )
    taxonomy: str | None = option(
        None,
        "teacher",
        "A bundled name, or a .json or .csv file, over the teacher's classes. Default: imagenet-1k; of a "
        "model, its own.",
    )
    structure: str = option("prefix", "network", "How levels are nested: prefix.")
    widths: tuple[float, ...] | None = option(
        None,
        "network",
        "Share of the channels of each level, such as 0.5,0.75,1; with --sizes they may stay equal.",
    )
    sizes: tuple[int, ...] | None = like(Recipe, "sizes", None)
    own: tuple[str, ...] = like(Recipe, "own", ("norms+depthwise",))
    frozen: bool = option(
        True, "network", "Keep the last level as the teacher is, number for number, or train it too."
    )
    cache: str | None = option(
        None, "photographs", "Folder for crops and the teacher's answers. Default: OUT/crops.", path=True
    )
    crops_per_photo: int = option(
        4, "photographs", "Crops that are kept of each photograph; may grow later.", at_least=1
    )
    crop_scale: tuple[float, ...] = option(
        (0.25, 1.0),
        "photographs",
        "Area of a crop, lowest and highest share of the photograph's.",
        example="0.25,1",
    )
    val_share: float = option(
        0.0025,
        "photographs",
        "Share of the photographs that is held out: 64 at least, at most a tenth.",
        more_than=0,
        at_most=0.5,
    )
    crops: int | None = option(
        None, "schedule", "Crops to train on, for each level. Default: 16 times all there are.", at_least=1
    )
    batch_size: int = option(64, "schedule", "Crops per update, over all processes.", at_least=2)
    opt: str = like(Recipe, "opt", "adamw")
    lr: float = like(Recipe, "lr", 2e-3, chosen="")
    weight_decay: float = like(Recipe, "weight_decay", 1e-4)
    clip_grad: float | None = like(Recipe, "clip_grad", None)
    warmup: int = option(100, "schedule", "Updates over which the learning rate rises.", at_least=0)
    decay: float = option(
        0.5,
        "schedule",
        "Share of the updates, the last ones, over which the learning rate falls.",
        at_least=0,
        at_most=1,
    )
    ema_decay: float = like(Recipe, "ema_decay", 0.999)
    leaf_weight: float = option(
        1.0, "rare", "Weight of the divergence from the teacher's answer on leaves.", at_least=0
    )
    tier_weight: float = option(
        1.0, "rare", "Weight of the divergence from its answer on the level's own tier.", at_least=0
    )
    statistics: str = option(
        "auto",
        "rare",
        "Statistics that norms normalise by: batch, pretrained (those that they begin with), or auto: "
        "those nearer to the teacher before training; with --start those that model was trained with.",
        choices=("auto", "batch", "pretrained"),
    )
    train_heads: bool = option(
        True,
        "rare",
        "Train the classifiers of the levels, or leave them as they begin: as the teacher's own, or "
        "--start's.",
    )
    interpolate: float = option(
        1.0,
        "rare",
        "Keep weights that lie at this share of the way from those that a level begins with to the "
        "trained ones.",
        more_than=0,
        at_most=1,
    )
    mixup: float = like(Recipe, "mixup", 0.0, help="Alpha of mixup, answers mixed alike; 0: off.")
    mix_prob: float = like(
        Recipe,
        "mix_prob",
        1.0,
        help="Share of updates that are mixed, where mixing is on.",
        needs=("mixup",),
    )
    flip: bool = option(True, "rare", "Mirror half of the crops in every update.")
    eval_every: int = option(
        25600, "schedule", "Look at the held-out crops, and keep the model, every N crops.", at_least=1
    )
    seed: int = like(Recipe, "seed", 0)
    mixed_precision: str = like(Recipe, "mixed_precision", "no")
    channels_last: bool = like(Recipe, "channels_last", True)
    sync_batch_norm: bool = like(Recipe, "sync_batch_norm", True)

    def without_paths(self) -> DistilRecipe:
        """A copy with file names in place of paths, to ship with the weights."""
        names: dict[str, Any] = {
            name: Path(value).name
            for name in ("weights", "classes", "teacher", "start", "taxonomy", "cache")
            if (value := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, images=tuple(Path(path).name for path in self.images), **names)

    def total_updates(self) -> int:
        """Updates of the whole run; ``crops`` must be set."""
        assert self.crops is not None
        return max(self.crops // self.batch_size, 1)

    def rate(self, update: int) -> float:
        """Learning rate of an update (from 0): warm-up, constant, then linear decay to a hundredth."""
        total = self.total_updates()
        up = min(1.0, (update + 1) / max(self.warmup, 1))
        left = (total - update) / max(self.decay * total, 1)
        return self.lr * up * min(1.0, max(0.01, left))

    def check(self) -> None:
        """Refuse values that no run can have; raises `InputError` naming the field."""
        self._check_teacher()
        self.check_values()
        for message, wrong in self._wrong_together().items():
            if wrong:
                raise InputError(message)
        if self.widths and self.sizes:
            from hierclass.nested.build import check_different  # imports torch, which options do without

            check_different(self.widths, self.sizes)

    def check_levels(self, num_tiers: int) -> None:
        """Refuse lists that do not have one number per tier; raises `InputError` naming the field."""
        for name, values in (("widths", self.widths), ("sizes", self.sizes)):
            if values is not None and len(values) != num_tiers:
                raise InputError(
                    f"`{name}`: give one per level, {num_tiers} for {num_tiers} tiers, not {len(values)}"
                )
        if num_tiers < 2:
            raise InputError("a tree of one tier has nothing to nest; give `taxonomy` with two tiers or more")

    def _check_teacher(self) -> None:
        if not self.images:
            raise InputError("give the photographs with `images`")
        if (self.timm is None) == (self.teacher is None):
            raise InputError("give the teacher: `timm` NAME with `weights` FILE, or `teacher` MODEL")
        for name, value in (("weights", self.weights), ("classes", self.classes)):
            if self.teacher is not None and value is not None:
                raise InputError(f"`{name}` has no effect with `teacher`; leave it out")
        if self.classes is not None and self.taxonomy is None:
            raise InputError("`classes` needs `taxonomy`, a tree over these classes")
        if self.structure != "prefix":
            raise InputError(
                f"`structure` {self.structure}: distil makes structure prefix alone; leave it out"
            )

    def _wrong_together(self) -> dict[str, bool]:
        """Message → whether it applies, for lists and for values that must fit each other."""
        sizes, widths, scale = self.sizes or (64,), self.widths or (1.0,), self.crop_scale
        rising = all(low < high or (low == high and self.sizes) for low, high in itertools.pairwise(widths))
        return {
            f"`sizes` {as_text(sizes)}: give 8 to 4096 pixels, never falling": list(sizes) != sorted(sizes)
            or not 8 <= sizes[0] <= sizes[-1] <= 4096,
            f"`widths` {as_text(widths)}: give rising shares up to 1, such as 0.5,0.75,1, with `sizes` "
            "equal ones too": (not (rising and widths[0] > 0 and widths[-1] == 1)),
            "`crop_scale`: give two shares, such as 0.25,1": len(scale) != 2
            or not 0 < scale[0] <= scale[-1] <= 1,
            "`leaf_weight` and `tier_weight`: give 0 or more, and not 0 to both": not (
                self.leaf_weight + self.tier_weight
            ),
        }


def untrained_levels(trained: set[int], num_tiers: int, recipe: DistilRecipe) -> list[int]:
    """Levels that were never trained; none where training began with another model (``start``)."""
    wanted = range(num_tiers - 1 if recipe.frozen else num_tiers)
    return [] if recipe.start else [level for level in wanted if level not in trained]
