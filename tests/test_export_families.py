"""Levels of every structure in every family of timm: their graphs give PyTorch's numbers, or name what stops them."""

from __future__ import annotations

import pytest
from test_nested_families import CASES, built
from tiny_families import mark_full, size_of

from hierclass.errors import ExportError
from hierclass.export.graphs import make_graphs
from hierclass.images.preprocessing import Preprocessing

REFUSED: dict[str, str] = {}
"""Family → what stops it: the same in docs/export.md."""
DEFAULT = [("masks", "mixer")]


@pytest.mark.parametrize(("structure", "family"), mark_full(CASES, DEFAULT))
def test_graphs_give_what_pytorch_gives(structure: str, family: str) -> None:
    network, preprocessing = built(structure, family), Preprocessing(size_of(family)[1])
    if family in REFUSED:
        with pytest.raises(ExportError, match=REFUSED[family]):
            make_graphs(network, preprocessing, {})
    else:
        make_graphs(network, preprocessing, {})  # compares them
