"""A rendered speaker's sound gets new landmarks: mouth by articulation, everything else as it was."""

import json

import numpy as np
import pytest

from preparation import cli
from preparation.media import write_flac
from preparation.speaker_set import SpeakerDataError, read_phones, read_truth
from preparation.synthetic.articulation import mouth_weights, move_tracks
from preparation.synthetic.rig import load_rig
from preparation.synthetic.speaker_labels import MAY_STYLE, relabel

FRAMES = 50
PHONES = [["pau", 0.0, 0.8], ["m", 0.8, 0.95], ["aa1", 0.95, 1.2], ["pau", 1.2, 2.0]]
PCM = np.random.default_rng(0).integers(-3000, 3000, 640 * FRAMES).astype(np.int16)


@pytest.fixture
def speaker(tmp_path):
    """A folder whose face follows random weights of the rig's morphs, and of one that the rig lacks."""
    folder = tmp_path / "speaker"
    folder.mkdir()
    rig = load_rig()
    names = [*reversed(rig.names), "unseen"]
    weights = np.random.default_rng(1).uniform(0, 0.3, (FRAMES, len(names))).astype(np.float16)
    by_rig = weights[:, len(rig.names) - 1 :: -1].astype(float)
    write_flac(folder / "audio.flac", PCM)
    (folder / "phones.json").write_text(json.dumps({"phones": PHONES}))
    truth = {"landmarks": rig.landmarks(by_rig, 3), "morph_weights": weights, "morph_names": np.array(names)}
    np.savez(folder / "truth.npz", **truth)
    return folder, truth, by_rig


def test_the_mouth_moves_by_articulation_and_lids_and_brows_as_before(speaker, tmp_path):
    folder, _, weights = speaker
    out = tmp_path / "labels"
    assert cli.main(["speaker-labels", "--data", str(folder), "--out", str(out)]) == 0
    rig = load_rig()
    tracks = move_tracks(read_phones(folder), PCM, frames=FRAMES, style=MAY_STYLE)
    mouth = mouth_weights(tracks, MAY_STYLE)
    wanted = np.stack([mouth.get(name, weights[:, k]) for k, name in enumerate(rig.names)], axis=1)
    landmarks = read_truth(out, "landmarks")["landmarks"]
    np.testing.assert_allclose(landmarks, rig.landmarks(wanted, 3), atol=1e-5)
    assert np.abs(landmarks - rig.landmarks(weights, 3)).max() > 0.01
    for name in ("audio.flac", "phones.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("field", "array"),
    [
        ("landmarks", None),
        ("morph_weights", None),
        ("morph_weights", np.zeros((FRAMES - 1, 26))),
        ("morph_names", None),
        ("morph_names", np.array(["mouth-open"])),
        ("morph_names", np.array([f"morph {k}" for k in range(26)])),
        ("morph_names", np.array([{}] * 26)),
    ],
)
def test_a_face_that_morphs_do_not_explain_is_refused_by_field(speaker, tmp_path, field, array):
    folder, truth, _ = speaker
    np.savez(folder / "truth.npz", **{k: v for k, v in (truth | {field: array}).items() if v is not None})
    with pytest.raises(SpeakerDataError) as refused:
        relabel(folder, tmp_path / "labels")
    assert (refused.value.file, refused.value.field) == (str(folder / "truth.npz"), field)
    assert not (tmp_path / "labels").exists()


def test_a_speaker_without_phones_is_refused_by_file(speaker, tmp_path):
    folder, _, _ = speaker
    (folder / "phones.json").unlink()
    with pytest.raises(SpeakerDataError) as refused:
        relabel(folder, tmp_path / "labels")
    assert refused.value.file == str(folder / "phones.json")


def test_a_speaker_s_own_folder_is_not_written_over(speaker, capsys):
    folder, _, _ = speaker
    before = (folder / "truth.npz").read_bytes()
    assert cli.main(["speaker-labels", "--data", str(folder), "--out", str(folder)]) == 2
    line = capsys.readouterr().err
    assert line.startswith("geneface-prepare speaker-labels: ")
    assert line.count("\n") == 1
    assert (folder / "truth.npz").read_bytes() == before
