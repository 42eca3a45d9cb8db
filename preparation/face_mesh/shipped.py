"""The models that ship with the project, opened with ONNX Runtime; their README says where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cuda_kernels.arrays import F32
from models.onnx_runtime import load_onnxruntime

if TYPE_CHECKING:
    import onnxruntime

MODELS = Path(__file__).with_name("models")
MESH_FILE, DETECTOR_FILE, CANONICAL_FILE = "face_mesh.onnx", "face_detector.onnx", "canonical_face.npy"
MESH_SIDE_PX, DETECTOR_SIDE_PX = 192, 128  # of the pictures that they take
ANCHORS = 896  # boxes that the detector gives
MESH_POINTS, IRIS_POINTS = 468, 5
POINTS = MESH_POINTS + 2 * IRIS_POINTS


def open_model(name: str) -> onnxruntime.InferenceSession:
    """Returns a session of a model that ships, on one thread."""
    runtime = load_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return runtime.InferenceSession(MODELS / name, options, providers=["CPUExecutionProvider"])


def canonical_face() -> F32:
    """Returns the mean face's vertices (468, 3) in cm: x to the face's left, y up, z towards the viewer."""
    vertices: F32 = np.load(MODELS / CANONICAL_FILE, allow_pickle=False)
    return vertices
