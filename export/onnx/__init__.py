"""Export of torch networks to ONNX, and passes over the graphs."""
