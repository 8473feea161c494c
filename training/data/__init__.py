"""Labelled images, from files to batches.

In the order of use: `datasets` lists images and labels, `tables` those of tables, whose rows `table_rows` reads,
`cifar` those of CIFAR-100; `label_names` finds what labels mean, `samples` holds labelled images and splits,
`dataset_summary` and `dataset_check` look at the files, `load` does all of it for a recipe. `sampler` and
`class_balance` choose the images of each update, `batches` decodes and augments them, `mixup` mixes them on the device.
`sample_weights` weighs images for evaluation.
"""
