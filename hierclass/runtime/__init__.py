"""Run the levels of a model: on a processor by ONNX Runtime, on accelerators and where there are no graphs by torch.

Read in this order: `interface` (what a level is to everything above it), `onnx_runtime` and `torch_runtime` (its two
implementations), `choice` (which of them runs a model folder). Only `torch_runtime` needs torch.
"""
