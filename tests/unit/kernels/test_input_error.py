from __future__ import annotations

import pytest

from cuda_kernels.cuda_module import CudaUnavailableError
from cuda_kernels.errors import InputError
from cuda_kernels.folding import SceneError
from models.bundle_files import BundleError
from models.onnx_graph import OnnxGraphError
from models.settings import SettingsError
from models.speaker_folders import UnknownSpeakerError
from preparation.media import MediaError
from streaming.errors import NetworkFailureError
from streaming.pipeline.onnx_engine import EngineError


def parts(error):
    return error.file, error.field, error.expected, error.got


def test_the_parts_make_up_the_line():
    error = InputError(file="a.json", field="size", expected="3", got="4", way_out="copy it again")
    assert str(error) == "a.json: size: expected 3, got 4; copy it again"
    assert parts(error) == ("a.json", "size", "3", "4")
    assert str(InputError(expected="a head", got="none")) == "expected a head, got none"


def test_a_line_of_its_own_stays():
    error = InputError("--input is missing", field="--input")
    assert (str(error), error.field) == ("--input is missing", "--input")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SettingsError("size", "3", "4"), ("", "size", "3", "4")),
        (OnnxGraphError("size", "3", "4"), ("", "size", "3", "4")),
        (BundleError("a.json", "size", "3", "4"), ("a.json", "size", "3", "4")),
        (
            NetworkFailureError("motion.onnx", speaker="May", expected="3", got="4"),
            ("May", "motion.onnx", "3", "4"),
        ),
    ],
)
def test_those_that_know_more_tell_their_parts(error, told):
    assert isinstance(error, InputError)
    assert parts(error) == told


@pytest.mark.parametrize(
    "kind", [SceneError, CudaUnavailableError, UnknownSpeakerError, MediaError, EngineError]
)
def test_what_a_user_can_mend_has_one_base(kind):
    assert issubclass(kind, InputError)
