"""Train a network on labelled images.

In reading order: `loop` (`fit`: data, epochs, evaluation), `network` (before training), `trainer` and `supervised` (one
update), `losses`, `optimizer`, `updates` (a sequence of updates), `export` (the model that is shipped), `run_dir`,
`resume_state` and `autosave` (files of a run, saving and resuming). `processes`, `sync_batchnorm` and `batch_dropout`
make a run independent of the number of processes; `pretrained` finds timm's weights, `interrupts` handles Ctrl-C,
`throughput` measures speed.
"""
