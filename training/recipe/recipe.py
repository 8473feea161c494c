"""The recipe of a run: every choice that shapes the result, one frozen value, JSON beside the weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hierclass.errors import BackboneError, InputError
from training.data.datasets import split_name
from training.recipe.stored_options import StoredOptions

SHARES = ("widths", "depths", "densities")
"""Fields of a recipe that say how large levels are; structures take some of them."""
PER_LEVEL = (*SHARES, "sizes", "level_weights")
"""Fields of a recipe with a number per level."""
PARAMETERS = {"backbone_args": "backbone_arg"}
"""Field of a recipe → its parameter on the command line, where the two are called differently."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(StoredOptions):
    """What is trained, on what, and how. Two runs of one recipe on one machine give the same weights.

    ``structure``, ``widths``, ``depths``, ``densities``, ``sizes``, ``own`` and ``order`` say how levels are nested, as
    `hierclass.nested.nest` takes them: a number per level, where the structure needs it None for
    `hierclass.nested.default_shares`. ``balance`` makes up for classes with many and few images: "none", in the
    "loss", or by "sampling" (`training.data.class_balance`).
    ``dev_from`` holds out images numbered from there up by file name; without it a stratified ``dev_share``
    is held out. ``start_size`` (pixels) grows in steps of 8 to ``size`` over the first ``grow`` share of the
    epochs. ``heads`` of lower levels score "leaves" and sum them up, or the classes of their "tiers".
    ``smoothing`` goes to the classes of each "tier", or along the "tree" (``smoothing_along``).
    ``level_weights`` weigh the cross-entropy of each level on its tier, ``finest_weight`` the
    auxiliary one of each lower level on the leaves, ``distil`` what a lower level learns from the answer of a
    higher one: ``distil_from`` the "last" level or the "next", ``distil_teacher`` the "live" network or its
    moving average ("ema"). ``consensus`` is how much lower levels count in an answer, "auto" what is best on
    the dev split. Every ``eval_every`` epochs the dev split is looked at, and the best epoch kept.
    ``batch_size`` images make an update, of all processes together; each process computes its share in
    ``accumulate`` parts. ``sync_batch_norm`` normalises over the images of all processes, else each over its own.
    """

    data: tuple[str, ...]
    taxonomy: str
    backbone: str = "resnet18"
    backbone_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    stem_stride: int | None = None
    pretrained: bool = False
    structure: str = "slices"
    widths: tuple[float, ...] | None = None
    depths: tuple[float, ...] | None = None
    densities: tuple[float, ...] | None = None
    sizes: tuple[int, ...] | None = None
    own: tuple[str, ...] = ("norms",)
    order: str = "given"
    heads: str = "leaves"
    size: int = 64
    crop: float = 1.0
    start_size: int | None = None
    grow: float = 0.65
    dev_from: int | None = None
    dev_share: float = 0.1
    limit: int | None = None
    epochs: int = 30
    batch_size: int = 128
    accumulate: int = 1
    opt: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup_epochs: int = 1
    clip_grad: float | None = None
    smoothing: float = 0.0
    smoothing_along: str = "tier"
    balance: str = "none"
    level_weights: tuple[float, ...] = ()
    finest_weight: float = 1.0
    distil: float = 0.0
    distil_from: str = "last"
    distil_to: str = "tier"
    distil_teacher: str = "live"
    consensus: float | str = "auto"
    crop_scale: tuple[float, float] = (0.35, 1.0)
    color_jitter: float = 0.0
    auto_augment: str | None = None
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    ema_decay: float = 0.999
    eval_every: int = 1
    seed: int = 0
    mixed_precision: str = "no"
    channels_last: bool = True
    sync_batch_norm: bool = True
    compile: bool = False

    def without_paths(self) -> Recipe:
        """The recipe as it goes out with the weights: files by their last names, no folder of this machine."""
        names = tuple(name or path.name for name, path in map(split_name, self.data))
        return dataclasses.replace(self, data=names, taxonomy=Path(self.taxonomy).name)

    def check(self) -> None:
        """Refuse values that no run can have; raises `InputError` naming the option."""
        for message, failed in {**self._wrong_data(), **self._wrong_training()}.items():
            if failed:
                raise InputError(message)
        self._check_structure()

    def check_levels(self, num_tiers: int) -> None:
        """Refuse numbers of which there is not one per tier; raises `InputError` naming the option."""
        for name in PER_LEVEL:
            values = getattr(self, name)
            if values and len(values) != num_tiers:
                raise InputError(
                    f"{option_of(name)}: give one per level, {num_tiers} for {num_tiers} tiers, not {len(values)}"
                )

    def _check_structure(self) -> None:
        from hierclass.nested import STRUCTURES

        if self.structure not in STRUCTURES:
            raise InputError(f"--structure {self.structure}: give {_choice(STRUCTURES)}")
        if self.order not in ("given", "importance"):
            raise InputError(f"--order {self.order}: give given or importance")
        if self.order == "importance" and not STRUCTURES[self.structure].reorders:
            raise InputError(f"--order importance does not fit --structure {self.structure}; leave it out")
        if self.compile and self.structure == "masks":
            raise InputError("--compile does not speed up --structure masks; leave it out")
        taken = STRUCTURES[self.structure].takes
        for name in SHARES:
            if name not in taken and getattr(self, name):
                raise InputError(
                    f"{option_of(name)} does not fit --structure {self.structure}; give {option_of(taken[0])}"
                )
        self._check_sharing(shares_blocks=STRUCTURES[self.structure].shares_blocks)
        self._check_shares()

    def _check_sharing(self, *, shares_blocks: bool) -> None:
        """Refuse image sizes and own weights of levels that no network can have."""
        from hierclass.nested.shared_weights import OwnWeights  # imports torch, which options do without

        for name, given in (("sizes", self.sizes is not None), ("own", self.own != ("norms",))):
            if given and not shares_blocks:
                raise InputError(
                    f"{option_of(name)} does not fit --structure {self.structure}; prefix and depths take it"
                )
        try:
            for each in self.own:
                OwnWeights.parse(each)
        except BackboneError as error:
            raise InputError(f"--own {','.join(self.own)}: {str(error).partition('; ')[2]}") from error
        sizes = self.sizes or (self.size,)
        if list(sizes) != sorted(sizes) or sizes[0] < 8 or sizes[-1] != self.size:
            raise InputError(
                f"--sizes {_text(sizes)}: give a side per level from 8 pixels, never falling, the last that of --size, "
                f"{self.size}"
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
                raise InputError(f"{option_of(name)} {_text(values)}: give shares up to 1")
            if name == "widths" and self.sizes and list(values) == sorted(values):
                values = tuple(sorted(set(values)))  # levels of different image sizes may be equally wide
            try:
                if values:
                    check(values)
            except BackboneError as error:
                advice = str(error).partition("; ")[2]
                raise InputError(f"{option_of(name)} {_text(values)}: {advice}") from error

    def _wrong_data(self) -> dict[str, bool]:
        """Message → whether it applies, for images, sizes and what is held out."""
        start_size = self.size if self.start_size is None else self.start_size
        return {
            f"--size {self.size}: give 8 to 4096": not 8 <= self.size <= 4096,
            f"--start-size {self.start_size}: give 8 up to --size": not 8 <= start_size <= self.size,
            f"--crop {self.crop}: give 0.05 to 1": not 0.05 <= self.crop <= 1,
            f"--dev-share {self.dev_share}: give more than 0, less than 1": not 0 < self.dev_share < 1,
            f"--limit {self.limit}: give at least 1": self.limit is not None and self.limit < 1,
            f"--grow {self.grow}: give a share from 0 to 1": not 0 <= self.grow <= 1,
            f"--erase {self.erase}: give a probability from 0 to 1": not 0 <= self.erase <= 1,
            f"--mix-prob {self.mix_prob}: give a share from 0 to 1": not 0 <= self.mix_prob <= 1,
            f"--color-jitter {self.color_jitter}: give 0 or more": not 0 <= self.color_jitter < math.inf,
            f"--mixup {self.mixup}: give 0 or more": not 0 <= self.mixup < math.inf,
            f"--cutmix {self.cutmix}: give 0 or more": not 0 <= self.cutmix < math.inf,
            "--crop-scale: give two shares, such as 0.35,1": len(self.crop_scale) != 2
            or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1,
        }

    def _wrong_training(self) -> dict[str, bool]:
        """Message → whether it applies, for the loss and the updates."""
        return {
            f"--epochs {self.epochs}: give at least 1": self.epochs < 1,
            f"--batch-size {self.batch_size}: give at least 1": self.batch_size < 1,
            f"--accumulate {self.accumulate}: give 1 to half of --batch-size": self.batch_size >= 1
            and not 1 <= self.accumulate <= max(1, self.batch_size // 2),
            f"--lr {self.lr}: give more than 0": not 0 < self.lr < math.inf,
            f"--ema-decay {self.ema_decay}: give 0 up to less than 1": not 0 <= self.ema_decay < 1,
            f"--clip-grad {self.clip_grad}: give more than 0": self.clip_grad is not None
            and not self.clip_grad > 0,
            f"--seed {self.seed}: give 0 or more": self.seed < 0,
            f"--eval-every {self.eval_every}: give at least 1": self.eval_every < 1,
            f"--balance {self.balance}: give none, loss or sampling": self.balance
            not in ("none", "loss", "sampling"),
            f"--smoothing {self.smoothing}: give 0 up to less than 1": not 0 <= self.smoothing < 1,
            f"--smoothing-along {self.smoothing_along}: give tier or tree": self.smoothing_along
            not in ("tier", "tree"),
            f"--heads {self.heads}: give leaves or tiers": self.heads not in ("leaves", "tiers"),
            f"--mixed-precision {self.mixed_precision}: give no, bf16 or fp16": self.mixed_precision
            not in ("no", "bf16", "fp16"),
            f"--level-weights {_text(self.level_weights)}: give 0 or more per level, and not 0 to all": bool(
                self.level_weights
            )
            and not (min(self.level_weights) >= 0 and 0 < sum(self.level_weights) < math.inf),
            f"--distil {self.distil}: give 0 or more": not 0 <= self.distil < math.inf,
            f"--distil-from {self.distil_from}: give last or next": self.distil_from not in ("last", "next"),
            f"--distil-to {self.distil_to}: give tier or leaves": self.distil_to not in ("tier", "leaves"),
            "--distil-to leaves: the last level alone teaches leaves; leave --distil-from next out": (
                self.distil_to == "leaves" and self.distil_from == "next"
            ),
            "--distil-to leaves needs lower levels that score leaves: give --finest-weight more than 0": (
                self.distil_to == "leaves" and not self.finest_weight
            ),
            f"--finest-weight {self.finest_weight}: give 0 or more": not 0 <= self.finest_weight < math.inf,
            f"--momentum {self.momentum}: give 0 or more, less than 1": not 0 <= self.momentum < 1,
            f"--weight-decay {self.weight_decay}: give 0 or more": not 0 <= self.weight_decay < math.inf,
            f"--warmup-epochs {self.warmup_epochs}: give 0 or more": self.warmup_epochs < 0,
            f"--distil-teacher {self.distil_teacher}: give live or ema": self.distil_teacher
            not in ("live", "ema"),
            f"--consensus {self.consensus}: give auto, or a number from 0": self.consensus != "auto"
            and (isinstance(self.consensus, str) or not 0 <= self.consensus < math.inf),
        }

    def image_size(self, epoch: int) -> int:
        """Pixels per side of the training images in an epoch (0, 1, …)."""
        growing = int(self.epochs * self.grow)
        if self.start_size is None or epoch >= growing:
            return self.size
        steps = (self.size - self.start_size) // 8
        return self.start_size + 8 * (epoch * (steps + 1) // max(growing, 1))


def option_of(field: str) -> str:
    """The option of ``hierclass-train fit`` that sets a field of a recipe."""
    return "--" + PARAMETERS.get(field, field).replace("_", "-")


def _text(numbers: Iterable[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _choice(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}"
