"""Any timm classifier of ImageNet as it is, made hierarchical by summing its probabilities up the tree.

Nothing is trained: every level runs the whole network. Weights come from timm's local cache or from a file; nothing is
downloaded, and nothing in a file is executed. On a processor ONNX Runtime runs it, from graphs that are made once.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from hierclass.classifier import Classifier
from hierclass.errors import CheckpointError, ExportError, MissingExtraError, require
from hierclass.runtime.choice import check_options, on_accelerator
from hierclass.timm_models import TAXONOMY
from hierclass.timm_models.graph_cache import (
    CachedGraphs,
    NoCacheFolderError,
    recall_weights,
    remember_weights,
)
from taxonomy import Taxonomy, load_taxonomy

_log = logging.getLogger(__name__)


def from_timm(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    taxonomy: Taxonomy | str | os.PathLike[str] | None = None,
    device: str = "auto",
    runtime: str = "auto",
    threads: int | None = None,
) -> Classifier:
    """Make a hierarchical classifier of timm's `name` (like "resnet50.a1_in1k") without any training.

    A tier's probabilities are sums of the classifier's own. That saves nothing: every level costs the whole network.
    For levels that cost a tenth and a third of it, distil the classifier, from photographs without labels and in
    hours on a processor: `hierclass-train distil` (docs/distil.md).

    Images are prepared as timm's configuration for tests says, but always with the centre square: where timm squeezes
    the whole image into a square ("squash"), the sides are cut off here.

    On a processor ONNX Runtime runs it. The first call writes its graphs into the user's cache folder, which takes up
    to a minute; later ones with the same weights need no torch. What can't be exported is run by torch.

    Args:
        name: a model of timm.
        weights: a file, .safetensors, or PyTorch's .pth read without executing anything. None takes timm's own from
            the local cache; nothing is downloaded.
        taxonomy: a tree, or an argument of `taxonomy.load_taxonomy`, whose leaves are synset ids among the classifier's
            classes (timm's ImageNet-1k, 12k, 21k or 22k). Outputs that are no leaf are left out, the others sum to 1.
            None takes the bundled tree of ImageNet-1k.
        device, runtime, threads: as in `hierclass.load`.

    Raises:
        BackboneError: timm has no such model, or it is no classifier that the tree fits.
        CheckpointError: the weights are missing, damaged or another model's.
        TaxonomyError: there is no such taxonomy, or it has leaves that are no classes of the classifier.
        InputError: this machine has no such device.
        ExportError: `runtime` is "onnx" and the classifier can't be exported.
        MissingExtraError: torch or timm is needed and not installed.
    """
    check_options(device, runtime, threads)
    file = None if weights is None else Path(weights)
    by_onnx = runtime == "onnx" or (runtime == "auto" and not on_accelerator(device))
    if by_onnx and (found := _open_cached(name, file, taxonomy, threads)):
        return found
    require("torch", "torch", "timm", what="the first run of a timm classifier")
    from hierclass.runtime.torch_runtime import TorchRuntime
    from hierclass.timm_models.whole_network import load_whole

    checkpoint, used = load_whole(name, file, taxonomy)
    if by_onnx:
        if file is None:
            remember_weights(name, used)
        try:
            cached = CachedGraphs.of(name, used, checkpoint.taxonomy)
            if cached.open(threads) is None:
                cached.write(checkpoint)
            if made := cached.open(threads):
                return Classifier(made[0], runtime=made[1])
        except (ExportError, MissingExtraError) as error:
            if runtime == "onnx":
                raise
            _log.info("%s runs by torch: %s", name, error)
        except OSError as error:
            if runtime == "onnx":
                raise CheckpointError(f"the graphs of {name} can't be written: {error}") from error
            level = logging.DEBUG if isinstance(error, NoCacheFolderError) else logging.WARNING
            _log.log(level, "the graphs of %s can't be written, so torch runs it: %s", name, error)
    return Classifier(checkpoint, runtime=TorchRuntime(checkpoint, device, threads))


def _open_cached(
    name: str, file: Path | None, taxonomy: Taxonomy | str | os.PathLike[str] | None, threads: int | None
) -> Classifier | None:
    """Open what an earlier call has written for these weights; None if there is nothing."""
    try:
        file = recall_weights(name) if file is None else file
        if file is None or not file.is_file():
            return None
        tree = taxonomy
        if not isinstance(tree, Taxonomy):
            tree = load_taxonomy(TAXONOMY if tree is None else tree)
        found = CachedGraphs.of(name, file, tree).open(threads)
    except OSError:  # no cache folder; or a file can't be read, as loading will say
        return None
    return Classifier(found[0], runtime=found[1]) if found else None
