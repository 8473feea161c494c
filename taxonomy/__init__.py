"""Trees of classes with nested tiers: load, build, check and draw them.

Importing this package costs nothing; NumPy is imported when a name of it is first used, and WordNet is read when a tree
is built from it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from taxonomy.errors import HierclassError, TaxonomyError

if TYPE_CHECKING:
    from taxonomy.build import from_names, from_synsets
    from taxonomy.files import from_csv, load_taxonomy
    from taxonomy.folders import from_folder
    from taxonomy.proposal import Proposal, propose
    from taxonomy.senses import SenseChoice
    from taxonomy.tree import Node, Taxonomy

__all__ = [
    "HierclassError",
    "Node",
    "Proposal",
    "SenseChoice",
    "Taxonomy",
    "TaxonomyError",
    "from_csv",
    "from_folder",
    "from_names",
    "from_synsets",
    "load_taxonomy",
    "propose",
]

_LAZY = {
    "Node": "taxonomy.tree",
    "Proposal": "taxonomy.proposal",
    "SenseChoice": "taxonomy.senses",
    "Taxonomy": "taxonomy.tree",
    "from_csv": "taxonomy.files",
    "from_folder": "taxonomy.folders",
    "from_names": "taxonomy.build",
    "from_synsets": "taxonomy.build",
    "load_taxonomy": "taxonomy.files",
    "propose": "taxonomy.proposal",
}


def __getattr__(name: str) -> Any:
    """Import what needs NumPy on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'taxonomy' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
