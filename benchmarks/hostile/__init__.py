"""Generators of hostile files: small files that make a reader work for minutes, fill its memory, or mislead it.

Each module has a list of `HostileFile`; tests ask of each that it is bounded, `benchmarks/bounds.py` measures it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class HostileFile(NamedTuple):
    """A file that attacks what reads it."""

    name: str
    """What it is, in a few words: "progressive JPEG of 2,000 scans"."""
    write: Callable[[Path], Path]
    """Writes it into a folder, and returns the path that is to be read: of a file, or of a model's folder."""
    says: str
    """A part of the sentence with which it is refused; empty if it is read like any other file."""
