"""From levels in PyTorch to ONNX graphs. Everything here needs torch, onnx and onnxscript; running graphs does not."""
