"""From levels in PyTorch to ONNX graphs, to graphs in 8 bits, and to folders that run without hierclass.

`graphs` and what it reads need torch, onnx and onnxscript, `int8` needs onnx, `deployed_folder` neither. `example.py`
is copied into such folders, as a program of its own. Running graphs needs nothing of this.
"""
