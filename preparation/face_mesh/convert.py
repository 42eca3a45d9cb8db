"""`python -m preparation.face_mesh.convert --source face_mesh.tgz --out DIR`: the models from npm's package.

`npm pack @mediapipe/face_mesh@0.4.1657299874` fetches it (Apache-2.0). Of what it packs into one file these
are taken: the face mesh with attention, the short-range detector, the mean face. The graphs take pictures as
bytes and give points, so that no table of theirs stands in our code.
"""

from __future__ import annotations

import functools
import hashlib
import io
import sys
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from cuda_kernels.arrays import F32
from cuda_kernels.errors import InputError
from models.partial_files import atomic_write
from models.settings import BAD_INPUT, Parser, escaped
from models.terminal import with_safe_streams

from ..errors import FileError
from .shipped import ANCHORS, CANONICAL_FILE, DETECTOR_FILE, DETECTOR_SIDE_PX, MESH_FILE, MESH_SIDE_PX
from .tflite_reader import TfliteError, read_tflite
from .tflite_to_onnx import OnnxGraph, add_tflite

VERSION = "0.4.1657299874"
PACKED_FILE = "package/face_mesh_solution_packed_assets.data"
PACKED_SHA256 = "dbe5905c582c0462cdaea17e7e6ecea92edaa8cccc515c5e2e7291f2cbb5fb99"
"""Of the packed file; the places in it hold for this one only."""
MESH, GEOMETRY, DETECTOR = slice(0, 2495952), slice(3737848, 3757224), slice(3757224, 3986256)
_WAY_OUT = f"fetch it with npm pack @mediapipe/face_mesh@{VERSION}"
_PROGRAM = "python -m preparation.face_mesh.convert"
_POINTS, _IRIS_POINTS, _EYE_CONTOUR = 468, 5, 16
_PARTS = ("lips", "left_eye", "right_eye")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 bad input (line on stderr), 1 else, or stopped by a signal."""
    return with_safe_streams(_PROGRAM, functools.partial(_run, argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = Parser(prog=_PROGRAM, description="Converts npm's package to the models that stand here.")
    parser.add_argument("--source", type=Path, required=True, help=f"npm's archive, version {VERSION}")
    parser.add_argument("--out", type=Path, required=True, help="folder for the models")
    given = parser.parse_args(argv)
    try:
        convert(given.source, given.out)
    except (InputError, OSError) as error:
        print(f"{_PROGRAM}: {escaped(str(error))}", file=sys.stderr)  # noqa: T201 -- a command line prints
        return BAD_INPUT
    return 0


def convert(source: Path, out: Path) -> None:
    """Writes the models of npm's archive `source` into the folder `out`; the same bytes each time.

    Raises:
        FileError: the archive is absent, broken or of another version.
    """
    packed = _packed(source)
    try:
        models = {
            MESH_FILE: mesh_model(packed[MESH]),
            DETECTOR_FILE: detector_model(packed[DETECTOR]),
            CANONICAL_FILE: _npy(canonical_face(packed[GEOMETRY])),
        }
    except TfliteError as error:
        raise FileError(source, PACKED_FILE, error.expected, error.got, _WAY_OUT) from error
    out.mkdir(parents=True, exist_ok=True)
    for name, content in models.items():
        with atomic_write(out / name) as part:
            part.write_bytes(content)


def mesh_model(tflite: bytes) -> bytes:
    """Returns the face mesh with attention as ONNX, of its TFLite file.

    `picture` (n, 192, 192, 3) uint8, RGB, becomes `points` (n, 478, 3) float32 in pixels of the picture, the
    irises' last, z towards the viewer negative; and `face` (n,), the probability that a face is there.
    Lips and eyes are the refined ones in x and y; an iris has its eye contour's mean z.
    """
    onnx = OnnxGraph()
    outputs = add_tflite(onnx, tflite, _picture(onnx, scale=1 / 255, shift=0))
    subsets = [
        operator.options.custom["subset_idxs"]
        for operator in read_tflite(tflite).operators
        if operator.kind == "Landmarks2TransformMatrix"
    ]
    mesh = _reshaped(onnx, outputs["output_mesh_identity"], _POINTS, 3)
    irises = [_reshaped(onnx, outputs[f"output_{side}_iris"], _IRIS_POINTS, 2) for side in ("left", "right")]
    refined = [
        _reshaped(onnx, outputs[f"output_{part}"], len(subset), 2)
        for part, subset in zip(_PARTS, subsets, strict=True)
    ]
    plane = onnx.node("Gather", mesh, onnx.constant([0, 1], np.int64), axis=2)
    depth = onnx.node("Gather", mesh, onnx.constant([2], np.int64), axis=2)
    candidates = onnx.node("Concat", plane, *irises, *refined, axis=1)
    total = _POINTS + 2 * _IRIS_POINTS
    chosen = np.arange(total)
    chosen[np.concatenate(subsets)] = total + np.arange(sum(map(len, subsets)))
    best = onnx.node("Gather", candidates, onnx.constant(chosen, np.int64), axis=1)
    means = [
        onnx.node(
            "ReduceMean",
            onnx.node("Gather", depth, onnx.constant(subset[:_EYE_CONTOUR], np.int64), axis=1),
            axes=[1],
        )
        for subset in subsets[1:]
    ]
    depths = onnx.node("Concat", depth, *(m for mean in means for m in [mean] * _IRIS_POINTS), axis=1)
    onnx.node("Concat", best, depths, axis=2, name="points")
    flag = onnx.node("Reshape", outputs["conv_faceflag"], onnx.constant([-1], np.int64))
    onnx.node("Sigmoid", flag, name="face")
    return onnx.content(
        "face_mesh",
        [_picture_info(MESH_SIDE_PX)],
        [_info("points", total, 3), _info("face")],
    )


def detector_model(tflite: bytes) -> bytes:
    """Returns the short-range face detector as ONNX, of its TFLite file.

    `picture` (n, 128, 128, 3) uint8, RGB, becomes `boxes` (n, 896, 16) and `scores` (n, 896, 1) float32 as
    `detector.py` decodes them.
    """
    onnx = OnnxGraph()
    outputs = add_tflite(onnx, tflite, _picture(onnx, scale=2 / 255, shift=-1))
    onnx.node("Identity", outputs["regressors"], name="boxes")
    onnx.node("Identity", outputs["classificators"], name="scores")
    return onnx.content(
        "face_detector",
        [_picture_info(DETECTOR_SIDE_PX)],
        [_info("boxes", ANCHORS, 16), _info("scores", ANCHORS, 1)],
    )


def canonical_face(geometry: bytes) -> F32:
    """Returns the mean face's vertices (468, 3) in cm, of the metadata's protocol buffer.

    Raises:
        TfliteError: it holds something else.
    """
    mesh = b"".join(value for field, value in _fields(geometry) if field == 1)
    numbers = [value for field, value in _fields(mesh) if field == 3]
    if len(numbers) != _POINTS * 5:
        raise TfliteError(f"{_POINTS} vertices of five numbers", f"{len(numbers)} numbers")
    vertices = np.frombuffer(b"".join(numbers), "<f4").reshape(_POINTS, 5)
    return vertices[:, :3].astype(np.float32)  # the rest is the texture's place


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the number and bytes of a protocol buffer's fields of fixed width or with a length."""
    stream = io.BytesIO(message)
    while (tag := _varint(stream)) is not None:
        kind = tag & 7
        if kind == 0:
            _varint(stream)
        else:
            yield tag >> 3, stream.read({1: 8, 5: 4}.get(kind) or _varint(stream) or 0)


def _varint(stream: io.BytesIO) -> int | None:
    number = shift = 0
    while byte := stream.read(1):
        number |= (byte[0] & 127) << shift
        shift += 7
        if byte[0] < 128:
            return number
    return None


def _picture(onnx: OnnxGraph, *, scale: float, shift: float) -> str:
    """Adds the way from bytes (n, H, W, 3) to the network's input (n, 3, H, W)."""
    numbers = onnx.node("Cast", "picture", to=TensorProto.FLOAT)
    numbers = onnx.node("Transpose", numbers, perm=[0, 3, 1, 2])
    numbers = onnx.node("Mul", numbers, onnx.constant(scale))
    return onnx.node("Add", numbers, onnx.constant(shift)) if shift else numbers


def _picture_info(side_px: int) -> ValueInfoProto:
    return helper.make_tensor_value_info("picture", TensorProto.UINT8, ["n", side_px, side_px, 3])


def _info(name: str, *shape: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])


def _reshaped(onnx: OnnxGraph, value: str, *shape: int) -> str:
    return onnx.node("Reshape", value, onnx.constant([0, *shape], np.int64))


def _npy(array: F32) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def _packed(source: Path) -> bytes:
    """Returns the packed file out of npm's archive."""
    if not source.is_file():
        raise FileError(source, "", "npm's archive", "no such file", _WAY_OUT)
    try:
        with tarfile.open(source, "r:gz") as archive:
            member = archive.extractfile(PACKED_FILE)
            packed = b"" if member is None else member.read()
    except (tarfile.TarError, KeyError, EOFError, OSError, zlib.error) as error:
        raise FileError(source, PACKED_FILE, "npm's archive", f"another file ({error})", _WAY_OUT) from error
    digest = hashlib.sha256(packed).hexdigest()
    if digest != PACKED_SHA256:
        expected = f"SHA-256 {PACKED_SHA256[:12]}... of version {VERSION}"
        raise FileError(source, PACKED_FILE, expected, f"{digest[:12]}...", _WAY_OUT)
    return packed


if __name__ == "__main__":
    sys.exit(main())
