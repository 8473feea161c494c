"""Find timm's published weights in the local cache, and their names on the hub; download nothing."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import torch
from timm.models import PretrainedCfg


class HubFile(NamedTuple):
    """A file on the Hugging Face hub."""

    repository: str
    name: str
    revision: str | None


def hub_files(published: PretrainedCfg) -> tuple[HubFile, ...]:
    """Return the files with a model's weights, the one that timm prefers first; empty if it is not on the hub."""
    if not published.hf_hub_id:
        return ()
    repository, _, revision = published.hf_hub_id.partition("@")
    file = published.hf_hub_filename or "pytorch_model.bin"
    safe = Path(file).with_suffix(".safetensors").name if published.hf_hub_filename else "model.safetensors"
    return tuple(HubFile(repository, name, revision or None) for name in (safe, file))


def find_cached(published: PretrainedCfg) -> Path | None:
    """Return the file of timm's own weights in the local cache, None if it is not there."""
    for repository, name, revision in hub_files(published):
        found = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(found, str):
            return Path(found)
    if isinstance(published.url, str) and published.url:
        downloaded = Path(torch.hub.get_dir()) / "checkpoints" / published.url.rpartition("/")[2]
        if downloaded.is_file():
            return downloaded
    return None
