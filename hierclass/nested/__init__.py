"""The one place that knows how a backbone is cut into nested levels.

Read it in this order: `channels` (which channels must share a level), `flow` and `rules` (how a layer is cut),
`functions` (how calls of traced code are), `trace` and `graph` (a timm model is read), `program` and `slices`
(levels run), `prefix`, `blocks` and `masks` (the other structures), `proof` (what must hold), `build` (`nest` puts
them together).
"""

from hierclass.nested.build import DEFAULT_SHARES, create_backbone, nest
from hierclass.nested.network import Cost, NestedNetwork, State

__all__ = ["DEFAULT_SHARES", "Cost", "NestedNetwork", "State", "create_backbone", "nest"]
