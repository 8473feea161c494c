"""The one place that knows how a backbone is cut into nested levels.

Read it in this order: `boundaries` (where channels are cut), `rules` (how each layer type is cut), `graph`
(how a timm model becomes steps), `network` (how levels run), `proof` (what must hold), `build` (`nest` puts
them together).
"""

from hierclass.nested.build import DEFAULT_SHARES, create_backbone, nest
from hierclass.nested.network import Cost, NestedNetwork, State

__all__ = ["DEFAULT_SHARES", "Cost", "NestedNetwork", "State", "create_backbone", "nest"]
