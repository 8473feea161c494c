"""The analysis of a backbone: which channels must belong to the same level.

Read it in this order: `trace` (timm's code as a graph of calls), `channel_groups` (ids of channels and what unites
them), `layer_rules` and `op_rules` with `matmul_rules` (how ids go through layers and calls), `partition` (all of it
run once, and where every value is cut), `residual_blocks` (which blocks a level may leave out).
"""
