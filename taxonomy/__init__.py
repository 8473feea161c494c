"""Trees of classes with nested tiers: load, build, check and draw them.

Importing this package costs NumPy and nothing else; WordNet is read when a tree is built from it.
"""

from taxonomy.build import from_names, from_synsets
from taxonomy.errors import HierclassError, TaxonomyError
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
