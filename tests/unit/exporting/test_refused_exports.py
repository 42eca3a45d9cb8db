"""What a user gives to `geneface-export` that cannot be used: one line, and before any work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import bundle_factory
import feature_bundle
import numpy as np
import pytest
import refusals
import wide_speaker
from safetensors.numpy import save

from cuda_kernels.errors import InputError
from export.bundle.assembly import AssemblyError, make_bundle, read_figures, read_origin
from export.bundle.writer import CARD_FILE, add_figures, parts_of, seal, write_bundle
from export.geneface.importer import import_geneface
from export.recorded_cases import read_cases
from export.requests import BundleRequest, DistillationRequest, GenefaceRequest, SlimRequest
from export.students import distillation
from export.students.distillation import DistillationError, distil
from export.students.slimming import prepare
from export.verification import verify_bundle
from models.bundle_files import BundleError
from models.speaker import load_speaker


def repr_start(content):
    return repr(content[:20]) if isinstance(content, (bytes, str)) else None


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


# Names and texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["\udcff", "", "a\nb", "x" * 101])
@pytest.mark.parametrize("make", [make_bundle, import_geneface])
def test_a_name_that_no_bundle_may_have_is_refused_first(tmp_path, make, name):
    common = {"out": tmp_path / "Out", "data": tmp_path, "name": name, "origin": tmp_path / "no"}
    if make is make_bundle:
        request = BundleRequest(**common, audio2motion=tmp_path, head=tmp_path)
    else:
        request = GenefaceRequest(**{**common, "name": None}, speaker=name, checkpoints=tmp_path)
    with pytest.raises(InputError, match=r"^name: expected 1 to 100 printable characters, got "):
        make(request)


@pytest.mark.parametrize("key", ["subject", "licence"])
def test_an_origin_of_half_characters_is_refused(tmp_path, key):
    file = tmp_path / "origin.json"
    texts = dict.fromkeys(("subject", "consent", "data", "recipe", "licence"), "x")
    file.write_text(json.dumps({**texts, "synthetic": True, key: "a\ud800"}))
    with pytest.raises(AssemblyError) as refused:
        read_origin(file)
    assert refusals.parts(str(refused.value)).where == f"{file}: {key}"
    file.write_text(json.dumps({**texts, "synthetic": True, key: "Zoé 😀"}))
    assert getattr(read_origin(file), key) == "Zoé 😀"


def test_a_figure_named_by_half_a_character_is_refused(tmp_path):
    file = tmp_path / "figures.json"
    file.write_text('{"a": {"\\ud800": 1}}')
    with pytest.raises(AssemblyError) as refused:
        read_figures((file,))
    assert refusals.parts(str(refused.value)).where == f"{file}: a.\\ud800"


# Sealing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"fps": 25', '"fps": NaN'),
        ('"fps": 25', '"fps": 1e999'),
        ('"fps": 25', '"fps": 25, "fps": 25'),
        ('"fps": 25', '"fps": ' + "[" * 200_000),
        ('"fps": 25', '"fps": ' + "9" * 5000),
        ('"name": "Tiny"', '"name": "\\ud800"'),
        ('"fps": 25', "\udcff"),
    ],
    ids=["NaN", "infinite", "twice", "deep", "long", "half a character", "no UTF-8"],
)
def test_sealing_refuses_settings_that_cannot_be_written(bundle, before, after):
    file = bundle / "speaker.json"
    text = file.read_text(encoding="utf-8")
    assert before in text
    file.write_text(text.replace(before, after), encoding="utf-8", errors="surrogateescape")
    content = file.read_bytes()
    with pytest.raises(BundleError) as refused:
        seal(bundle)
    line = refusals.parts(str(refused.value))
    assert line.where == f"{file}: content"
    assert line.way_out
    assert file.read_bytes() == content


# What trainings and exports left --------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"[]", b'{"loop":null}', b'{"settings":[]}', b"{", b"\xff", b"[" * 100_000], ids=repr_start
)
def test_settings_beside_a_checkpoint_are_refused_before_anything_is_exported(tmp_path, content):
    file = tmp_path / "settings.json"
    file.write_bytes(content)
    texts = dict.fromkeys(("subject", "consent", "data", "recipe", "licence"), "x")
    (tmp_path / "origin.json").write_text(json.dumps({**texts, "synthetic": True}))
    request = BundleRequest(
        out=tmp_path / "Out",
        name="Tiny",
        audio2motion=tmp_path / "model.pt",
        head=tmp_path / "head.pt",
        data=tmp_path,
        origin=tmp_path / "origin.json",
    )
    with pytest.raises(AssemblyError) as refused:
        make_bundle(request)
    line = refusals.parts(str(refused.value))
    assert line.where == str(file)
    assert "delete it" in line.way_out


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 100_000, b"null"], ids=repr_start)
def test_settings_of_an_older_distillation_that_cannot_be_read_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.setattr(distillation, "checkpoints", lambda _: {1: tmp_path / "1.pt"})
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(DistillationError) as refused:
        distillation._require_same_speech(tmp_path, SimpleNamespace(digest="x"))
    line = refusals.parts(str(refused.value))
    assert line.where == str(tmp_path / "settings.json")
    assert line.way_out == "delete that folder to begin anew"


def with_cases(parts, path, *keys):
    """Returns the speaker of a bundle whose recorded cases are arrays of these names."""
    content = save({key: np.zeros(1, np.float32) for key in keys})
    return write_bundle(path, dataclasses.replace(parts, recorded_cases=content))


def test_recorded_cases_of_a_speaker_without_features_are_refused(tmp_path):
    speaker = with_cases(bundle_factory.tiny_parts(), tmp_path / "Tiny", "motion.0.landmarks")
    with pytest.raises(BundleError) as refused:
        verify_bundle(speaker.path)
    assert refusals.parts(str(refused.value)).where == f"{speaker.path / 'verification.safetensors'}: file"


@pytest.mark.parametrize(
    ("key", "field"),
    [
        (f"motion.{'1' * 5000}.x", f"motion.{'1' * 73}"),
        ("motion.0.x", "motion.0.landmarks"),
        ("chain.0.landmarks", "chain.0.pcm"),
    ],
    ids=["long", "motion", "chain"],
)
def test_recorded_cases_that_are_not_whole_are_refused(tmp_path, key, field):
    speaker = with_cases(feature_bundle.feature_parts(), tmp_path / "Tiny", key)
    with pytest.raises(BundleError) as refused:
        read_cases(speaker)
    line = refusals.parts(str(refused.value))
    assert line.where == f"{speaker.path / 'verification.safetensors'}: {field}"
    assert line.way_out


# Places ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["file", "file/Out", "file/a/Out", "x" * 300], ids=repr_start)
@pytest.mark.parametrize("name", ["out", "work"])
@pytest.mark.parametrize(
    "begin",
    [
        lambda given, speech: distil(DistillationRequest(**given, speech=speech)),
        lambda given, speech: prepare(SlimRequest(**given, speech=(speech,))),
    ],
    ids=["distil", "slim"],
)
def test_a_place_that_no_folder_can_have_is_refused(tmp_path, bundle, place, name, begin):
    (tmp_path / "file").write_bytes(b"x")
    given = {"bundle": bundle, "out": tmp_path / "Out", name: tmp_path / place}
    with pytest.raises(InputError) as refused:
        begin(given, tmp_path / "speech")
    line = refusals.parts(str(refused.value))
    assert name in line.where
    assert line.way_out
    assert (tmp_path / "file").read_bytes() == b"x"


@pytest.mark.parametrize("place", ["file", "file/Out", "x" * 300], ids=repr_start)
def test_a_bundle_is_not_written_to_a_place_that_no_folder_can_have(tmp_path, place):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(BundleError) as refused:
        write_bundle(tmp_path / place, bundle_factory.tiny_parts())
    assert refusals.parts(str(refused.value)).way_out
