"""Structure `masks`: a higher level uses the weights of a lower one, and more."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from hierclass.errors import BackboneError
from hierclass.nested.analysis.trace import trace
from hierclass.nested.extract import with_classifier
from hierclass.nested.level_graph import Kept, Level, fold, foldable
from hierclass.nested.masks.codec import check_fit
from hierclass.nested.masks.module import MaskedModule
from hierclass.nested.masks.module_view import TransientDict
from hierclass.nested.network import NestedNetwork, evaluating


class MaskedNetwork(NestedNetwork):
    """Nested masks over a timm backbone; all levels have pooled features of the same number.

    A higher level costs more parameters and bytes, not more operations: dense hardware multiplies zeros as well.
    """

    structure = "masks"

    def __init__(
        self,
        backbone: nn.Module,
        densities: Sequence[float],
        num_classes: Sequence[int],
        input_size: tuple[int, int, int],
        *,
        born: Mapping[str, int] | None = None,
    ):
        """Copy and mask `backbone`, (B, 3, H, W) → (B, F); `num_classes[k]` is the number of classes of level k.

        For `densities` and `born` see `MaskedModule`.

        Raises:
            BackboneError: they do not fit, or the backbone does not give pooled features.
        """
        masked = MaskedModule(backbone, densities, born=born)
        if len(num_classes) != masked.num_levels or min(num_classes, default=0) < 1:
            raise BackboneError(
                f"{masked.num_levels} densities need {masked.num_levels} class counts of at least 1, "
                f"not {list(num_classes)}"
            )
        features = _num_features(backbone, input_size)
        super().__init__([features] * masked.num_levels, num_classes, input_size)
        self.masked = masked
        self.heads.to(next(backbone.parameters()))
        self._plain: TransientDict | None = None
        self._pairs: list[tuple[str, str]] = []

    def level_functions(self, last: int) -> Sequence[Level]:
        """Return what computes levels 0 … `last`; these keep nothing."""
        return [functools.partial(self._run, level) for level in range(last + 1)]

    def _run(self, level: int | Sequence[int], image: Tensor, kept: Kept) -> tuple[Tensor, Kept]:
        if self._plain is None or not isinstance(level, int):
            return self.masked(image, level=level), ()
        plain = self._plain.get(level)
        if plain is None:  # two threads may both make it
            with torch.inference_mode(False), torch.no_grad():
                plain = self._plain[level] = fold(self.masked.extract(level), self._pairs)
        return plain(image), ()

    def level_module(self, level: int) -> nn.Module:
        """Return a level that masks copies of the weights, which all levels have alike, when it is called."""
        backbone = self.masked.extract(level)
        for name, weight, lowest in self.masked.weights():
            path, _, attribute = name.rpartition(".")
            try:
                part = backbone.get_submodule(path)
            except AttributeError:  # in a block that the level leaves out
                continue
            setattr(part, attribute, nn.Parameter(weight.detach().clone(), requires_grad=False))
            register_parametrization(part, attribute, _Mask(lowest, level), unsafe=True)
        return _Alone(backbone)

    def fused(self) -> MaskedNetwork:
        """Return a copy for inference, in evaluation mode, whose levels are plain backbones: calls mask nothing.

        Each backbone is made when its level is first run, with zeros for unused weights and batch norms folded into
        convolutions, and again after weights were loaded or moved; other changes of weights are not noticed.
        """
        network = copy.deepcopy(self).eval()
        network._plain = TransientDict()
        network._pairs = _foldable(network.masked.extract(), self.input_size)
        return network

    def _apply(self, fn: Any, recurse: bool = True) -> MaskedNetwork:
        applied: MaskedNetwork = super()._apply(fn, recurse)
        self._changed()
        return applied

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights; see `torch.nn.Module`."""
        loaded = super().load_state_dict(*args, **kwargs)
        self._changed()
        return loaded

    def _changed(self) -> None:
        if self._plain is not None:
            self._plain.clear()

    def forward(self, image: Tensor, level: int | Sequence[int] | None = None) -> Tensor:
        """Return the logits (B, num_classes[level]) of one level for normalised images (B, 3, H, W).

        With a list, stage s of the backbone (`masked.stages` names them) runs at `level[s]`, and the head of the last
        stage's level answers (NestedNet's rerouting).

        Raises:
            LevelError: there is no such level, or the list has not one for every stage.
        """
        if isinstance(level, (list, tuple)):
            last = self.masked.stage_levels(level)[-1]
            return self.classify(self._run(level, image, ())[0], last)
        return super().forward(image, level)  # type: ignore[arg-type]

    def train_progress(self, progress: float) -> None:
        """Prune for training progress `progress` (0 to 1); see `MaskedModule.prune`."""
        self.masked.prune(progress)
        self._changed()

    def level_tensors(self, level: int) -> Iterator[tuple[str, Tensor, bool]]:
        """Yield name, value and whether it is trained of all that `level` uses; of masked weights the used values."""
        for name, value, trained in self.masked.level_tensors(level):
            yield f"masked.{name}", value, trained

    def spoil_above(self, level: int) -> None:
        """Set every weight and statistic of a higher level to NaN."""
        self.masked.spoil_above(level)
        self._changed()

    def truncate(self, level: int) -> MaskedNetwork:
        """Return a stand-alone network of levels 0 … `level`: weights above are zero; norms and blocks are dropped."""
        keep = self.check_level(level) + 1
        network = copy.deepcopy(self, {id(self.masked): self.masked.truncate(level)})
        network.heads = network.heads[:keep]
        network.num_classes = self.num_classes[:keep]
        network.num_features = self.num_features[:keep]
        return network

    def extract(self, level: int) -> nn.Module:
        """Return a level as an ordinary model, (B, 3, H, W) → logits: masked weights zero, its own norms and head.

        The head becomes the classifier of a timm model; behind other backbones it follows in an `nn.Sequential`.
        """
        level = self.check_level(level)
        return with_classifier(self.masked.extract(level), self.heads[level], self.input_size)

    def stored(self) -> dict[str, Tensor]:
        """Return what a checkpoint stores: the heads whole, the rest as `MaskedModule.stored` returns it."""
        heads = self.heads.state_dict(prefix="heads.")
        return {**heads, **{f"masked.{name}": value for name, value in self.masked.stored().items()}}

    def load_stored(self, tensors: dict[str, Tensor]) -> None:
        """Load what `stored` gave, floating-point numbers of any precision.

        Raises:
            ValueError: the tensors do not fit this network, which stays as it is.
        """
        heads = {name: value for name, value in tensors.items() if not name.startswith("masked.")}
        check_fit(self.heads.state_dict(prefix="heads."), heads)
        self.masked.load_stored(
            {name.removeprefix("masked."): value for name, value in tensors.items() if name not in heads}
        )
        self.heads.load_state_dict({name.removeprefix("heads."): value for name, value in heads.items()})
        self._changed()


class _Mask(nn.Module):
    """Sets what a level does not use of a weight to zero."""

    lowest: Tensor

    def __init__(self, lowest: Tensor, level: int):
        super().__init__()
        self.level = level
        self.register_buffer("lowest", lowest.clone())

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.lowest.int() <= self.level, weight, torch.zeros_like(weight))


class _Alone(nn.Module):
    """A level that keeps nothing."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor, kept: Kept) -> tuple[Tensor, Kept]:
        return self.backbone(image), ()


def _num_features(backbone: nn.Module, input_size: tuple[int, int, int]) -> int:
    with evaluating(backbone), torch.no_grad():
        features = backbone(torch.zeros(2, *input_size).to(next(backbone.parameters())))
    if not isinstance(features, Tensor) or features.dim() != 2:
        raise BackboneError(
            f"{type(backbone).__name__} gives no pooled features (B, F); create it without a classifier"
        )
    return features.shape[1]


def _foldable(module: nn.Module, input_size: tuple[int, int, int]) -> list[tuple[str, str]]:
    """Return the pairs of `foldable`, none where the code can't be traced; no other thread may run a module then."""
    try:
        return foldable(trace(module, input_size).graph, module)
    except BackboneError:
        return []
