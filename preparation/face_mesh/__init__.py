"""A video's face landmarks by MediaPipe's face mesh, converted to ONNX."""
