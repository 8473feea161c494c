"""Train and measure nested coarse-to-fine classifiers; the command line is ``hierclass-train``.

`recipe` holds the options of a run and `data` the labelled images. `trainer` fits a network to labels; `distillation`
nests a pretrained classifier without labels. `evaluation` measures, calibrates and reports; `cli` is the command line.
Read `recipe.recipe`, then `trainer.loop`: `fit` calls everything else.
"""
