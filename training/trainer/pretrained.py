"""Find timm's pretrained weights: in the local cache, else on the hub if it answers within `PATIENCE` seconds."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import timm
from timm.models import PretrainedCfg

from hierclass.timm_models.weight_files import HubFile, find_cached, hub_files

PATIENCE = 5.0
"""Seconds to wait for an answer of the hub."""


class PretrainedLookup(NamedTuple):
    """Whether pretrained weights can be used, and why or where they are."""

    usable: bool
    why: str


def cached_weights(backbone: str) -> Path | None:
    """The safetensors file of a backbone's published weights in the local cache, or None."""
    published = _published(backbone)
    found = find_cached(published) if published is not None else None
    return found if found is not None and found.suffix == ".safetensors" else None


def find_pretrained(backbone: str, *, reach: bool = True, patience: float = PATIENCE) -> PretrainedLookup:
    """Find pretrained weights of a backbone; download them if they are not cached and ``reach`` allows it.

    The hub must answer within ``patience`` seconds. Raises nothing: without weights training begins from scratch.
    """
    published = _published(backbone)
    if published is None or not published.has_weights:
        return PretrainedLookup(False, f"timm publishes no weights of {backbone}")
    if find_cached(published) is not None:
        return PretrainedLookup(True, "timm's weights, from the local cache")
    if not reach:
        return PretrainedLookup(False, "timm's weights are not in the local cache")
    file = _reachable(hub_files(published), patience)
    if file is None:
        return PretrainedLookup(
            False, "timm's weights are not in the local cache, and can't be reached from here"
        )
    try:
        huggingface_hub.hf_hub_download(
            file.repository, file.name, revision=file.revision, etag_timeout=patience
        )
    except Exception as error:  # whatever a connection that breaks raises
        return PretrainedLookup(False, f"timm's weights could not be fetched ({type(error).__name__})")
    return PretrainedLookup(True, "timm's weights, fetched just now")


def _published(backbone: str) -> PretrainedCfg | None:
    try:
        return timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    except RuntimeError:  # an unknown tag: making the model says so
        return None


def _reachable(files: tuple[HubFile, ...], patience: float) -> HubFile | None:
    """The first file that the hub has, or None after ``patience`` seconds.

    Runs in a thread that is abandoned on time-out, since resolving a name can hang.
    """
    answers: list[HubFile] = []

    def ask() -> None:
        for file in files:
            url = huggingface_hub.hf_hub_url(file.repository, file.name, revision=file.revision)
            try:
                huggingface_hub.get_hf_file_metadata(url, timeout=patience)
            except Exception:  # no connection, no such file, told to stay offline: the same to us
                continue
            answers.append(file)
            return

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience)
    return answers[0] if answers else None
