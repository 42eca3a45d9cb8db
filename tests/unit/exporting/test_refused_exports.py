"""What a user gives to `geneface-export` that cannot be used: one line, and before any work."""

from __future__ import annotations

from pathlib import Path

import bundle_factory
import pytest
import refusals
import wide_speaker

from export.bundle.writer import CARD_FILE, add_figures, parts_of, seal
from export.requests import DistillationRequest, SlimRequest
from export.students.distillation import distil
from export.students.slimming import prepare
from models.bundle_files import BundleError
from models.speaker import load_speaker


@pytest.fixture
def bundle(tmp_path):
    return bundle_factory.write_tiny_bundle(tmp_path / "Tiny")


# The model card -------------------------------------------------------------------------------------


def spoilt(bundle):
    """Returns the bundle with a card in Latin-1, sealed."""
    (bundle / CARD_FILE).write_bytes("# Zoé\n".encode("latin-1"))
    seal(bundle)
    return bundle


def assert_names_the_card(refused, bundle):
    line = refusals.parts(str(refused.value))
    assert line.where == f"{bundle / CARD_FILE}: content"
    assert line.expected == "UTF-8 text"
    assert "UTF-8" in line.way_out


@pytest.mark.parametrize(
    "work", [lambda path: parts_of(load_speaker(path)), lambda path: add_figures(path, {"a": 1.0})]
)
def test_a_card_that_is_no_utf8_is_refused(bundle, work):
    spoilt(bundle)
    with pytest.raises(BundleError) as refused:
        work(bundle)
    assert_names_the_card(refused, bundle)


def test_a_card_that_is_no_utf8_is_refused_before_a_distillation(bundle, tmp_path):
    request = DistillationRequest(bundle=spoilt(bundle), speech=tmp_path / "none", out=tmp_path / "Small")
    with pytest.raises(BundleError) as refused:
        distil(request)
    assert_names_the_card(refused, bundle)


def test_a_card_that_is_no_utf8_is_refused_before_a_slim_head_is_trained(tmp_path):
    wide = spoilt(wide_speaker.write_wide_bundle(tmp_path / "Wide"))
    request = SlimRequest(bundle=wide, out=tmp_path / "Slim", speech=(Path("none.wav"),))
    with pytest.raises(BundleError) as refused:
        prepare(request, open_motion=wide_speaker.loudness_motion)
    assert_names_the_card(refused, wide)


def test_figures_for_a_bundle_without_a_card_are_refused(bundle):
    (bundle / CARD_FILE).unlink()
    with pytest.raises(BundleError) as refused:
        add_figures(bundle, {"a": 1.0})
    line = refusals.parts(str(refused.value))
    assert line.where == f"{bundle / CARD_FILE}: file"
    assert line.way_out
