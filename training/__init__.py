"""Training and evaluation of nested coarse-to-fine classifiers; its command line is ``hierclass-train``."""
