"""Features stored with a model, so that classes can be added and heads and calibration be fitted anew.

The file lies in the model's folder and is no part of what the model runs from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy

from hierclass.checkpoints.weights_header import open_weights
from hierclass.errors import InputError
from hierclass.files import remove_temporaries, replacing
from training.heads.features import as_half, network_key
from training.heads.logistic import Values

FILE = "features.safetensors"


@dataclass(frozen=True, slots=True)
class KeptFeatures:
    """Features of N images by every level of a model, ``levels[k]`` (N, F_k), with the node that labels each image."""

    levels: Sequence[Values]
    nodes: Sequence[str]


def keep_features(model: Path, levels: Sequence[Values], nodes: Sequence[str]) -> None:
    """Write the features of images into the folder of the model that computed them, with the id of each label's node.

    Equal levels are stored once.
    """
    tensors, names = dict[str, Values](), list[str]()
    for level, values in enumerate(levels):
        same = level > 0 and values is levels[level - 1]
        names.append(names[-1] if same else f"level{level}")
        if not same:
            tensors[names[-1]] = as_half(values)
    known = sorted(set(nodes))
    places = {node: place for place, node in enumerate(known)}
    tensors["labels"] = np.array([places[node] for node in nodes], np.int64)
    about = {"network": network_key(model), "levels": json.dumps(names), "nodes": json.dumps(known)}
    remove_temporaries(model, FILE)
    with replacing(model / FILE) as file:
        file.write_bytes(safetensors.numpy.save(tensors, metadata=about))


def read_kept_features(model: Path) -> KeptFeatures | None:
    """Read what `keep_features` wrote into a model's folder; None if there is nothing, or it is of another network.

    Raises `InputError` for a damaged file.
    """
    file = model / FILE
    if not file.is_file():
        return None
    try:
        with open_weights(file) as stream:
            about = stream.metadata() or {}
            if about.get("network") != network_key(model):
                return None
            names, known = json.loads(about["levels"]), json.loads(about["nodes"])
            stored = {name: stream.get_tensor(name).astype(np.float32) for name in dict.fromkeys(names)}
            nodes = [str(known[place]) for place in stream.get_tensor("labels")]
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise InputError(
            f"{file} is damaged ({' '.join(str(error).split())[:80]}); delete it, and give the images with `data`"
        ) from error
    return KeptFeatures([stored[name] for name in names], nodes)
