"""What loading a checkpoint need not find out again: that its network is nested, and what its levels cost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch

import hierclass
from hierclass.checkpoints.description import parse_costs
from hierclass.costs import Cost

KEY = "proven"
"""Key of the configuration under which it is stored."""


def proof_digest(architecture: Mapping[str, Any], num_classes: Sequence[int], size: int) -> str:
    """Return a digest of an architecture as it is stored, of its classes and image side, and of all versions.

    A network that was proven under the same digest is nested, whatever its weights are.
    """
    versions = (hierclass.__version__, torch.__version__, timm.__version__)
    described = json.dumps([versions, architecture, list(num_classes), size], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()


def to_json(digest: str, costs: Sequence[Cost]) -> dict[str, Any]:
    """Return what is stored of a network that was proven, and of what its levels cost."""
    return {"digest": digest, "costs": [dataclasses.asdict(cost) for cost in costs]}


def read_costs(config: Mapping[str, Any], digest: str, num_levels: int) -> tuple[Cost, ...] | None:
    """Return the costs of all levels that a configuration vouches for; None where it does not, or says it wrongly."""
    found = config.get(KEY)
    if not isinstance(found, dict) or found.get("digest") != digest:
        return None
    return parse_costs(found.get("costs"), num_levels)
