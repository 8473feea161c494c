"""Cut a backbone into nested levels.

Read it in this order: `analysis` (which channels must belong to the same level), `lowering` with `call_arguments`
(write one graph per level), `level_graph` (what a level is, and what is done with its graph), `network` (what all
nested networks have in common), `heads`; then the structures `slices`, `prefix` with `shared_weights`, and `masks`;
then `build` (`nest` makes a network), `verify` (what must hold), `importance` (which channels come first), `extract`
(a level as a timm model), `backbone` (timm's models), `extend` (layers of your own).
"""

from hierclass.costs import Cost, answer_costs
from hierclass.nested.backbone import create_backbone
from hierclass.nested.build import DEFAULT_SHARES, STRUCTURES, Structure, default_shares, nest
from hierclass.nested.network import NestedNetwork, State

__all__ = [
    "DEFAULT_SHARES",
    "STRUCTURES",
    "Cost",
    "NestedNetwork",
    "State",
    "Structure",
    "answer_costs",
    "create_backbone",
    "default_shares",
    "nest",
]
