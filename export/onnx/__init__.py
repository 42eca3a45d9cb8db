"""Torch networks as ONNX graphs, and what is done to graphs."""
