"""timm's models: any classifier of ImageNet as it is (`from_timm`), and which backbones nest.

Read in this order: `weight_files` (where published weights lie), `pretrained_classifier` (a classifier with its
weights), `from_timm` (its probabilities summed up the tree); `backbone_probe` (does a model nest?) and
`backbone_table` (the answers for all of timm).
"""
