"""Trees of classes with nested tiers: load, build, check and draw them.

Importing this package costs NumPy and nothing else; WordNet is read when a tree is built from it.
"""

from typing import TYPE_CHECKING, Any

from taxonomy.errors import HierclassError, TaxonomyError
from taxonomy.tree import Node, Taxonomy

if TYPE_CHECKING:
    from taxonomy.build import from_names

__all__ = ["HierclassError", "Node", "Taxonomy", "TaxonomyError", "from_names"]


def __getattr__(name: str) -> Any:
    if name == "from_names":
        from taxonomy import build

        return build.from_names
    raise AttributeError(f"module 'taxonomy' has no attribute {name!r}")
