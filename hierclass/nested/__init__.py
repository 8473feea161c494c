"""The one place that knows how a backbone is cut into nested levels.

Read it in this order: `channels` (which channels must share a level), `flow` and `rules` (how a layer is cut),
`functions` (how calls of traced code are), `trace` and `graph` (a timm model is read), `program` and `slices` (levels
run), `regroup` (images change their batch on the way), `heads` (levels answer), `prefix` with `sharing` and
`level_graph` (levels as graphs over shared weights), `blocks` and `masks` (the other structures), `structures` (the
table of them), `importance` (which channels come first), `proof` (what must hold), `backbone` (timm's models), `build`
(`nest` puts all together).
"""

from hierclass.nested.backbone import create_backbone
from hierclass.nested.build import DEFAULT_SHARES, default_shares, nest
from hierclass.nested.network import Cost, NestedNetwork, State, answer_costs
from hierclass.nested.structures import STRUCTURES, Structure

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
