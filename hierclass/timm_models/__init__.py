"""timm's models: any classifier of ImageNet as it is (`from_timm`), and which backbones nest.

Read in this order: `weight_files` (where published weights lie), `pretrained_classifier` (a classifier with its
weights), `whole_network` (its probabilities summed up the tree), `graph_cache` (its graphs in the user's cache folder),
`from_timm` (the three together); `backbone_probe` (does a model nest?) and `backbone_table` (the answers for all of
timm).
"""

TAXONOMY = "imagenet-1k"
"""The bundled tree of ImageNet's 1,000 classes."""
