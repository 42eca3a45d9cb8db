"""The robustness benchmark: what it does to sound, and a whole run over a tiny bundle and corpus."""

import json

import numpy as np
import pytest
from bundle_factory import write_tiny_bundle
from tiny_corpus import make_corpus

from benchmarks import robustness
from benchmarks.robustness import changes, telephone_band


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("speakers") / "Tiny")


def test_every_change_keeps_length_and_place_and_the_first_keeps_all():
    time_s = np.arange(16000) / 16000
    pcm = (0.2 * np.sin(2 * np.pi * (500 + 900 * time_s) * time_s) * (time_s > 0.3)).astype(np.float32)
    found = {name: change(pcm) for name, change in changes()}
    assert np.array_equal(found.pop("as it is"), pcm)
    for name, changed in found.items():
        assert changed.shape == pcm.shape, name
        assert changed.dtype == np.float32, name
        assert not np.array_equal(changed, pcm), name
        curve = np.fft.irfft(np.fft.rfft(changed, 32000) * np.conj(np.fft.rfft(pcm, 32000)))
        assert int(np.argmax(curve)) in {0, 1, 31999}, name
    assert found["20 dB quieter"] == pytest.approx(0.1 * pcm, abs=1e-6)
    for snr_db in (20, 10):
        noise = found[f"noise {snr_db} dB below"] - pcm
        assert 20 * np.log10(pcm.std() / noise.std()) == pytest.approx(snr_db, abs=0.5)


def test_the_telephone_lets_its_band_through_alone():
    time_s = np.arange(16000) / 16000
    tones = {hz: np.sin(2 * np.pi * hz * time_s).astype(np.float32) for hz in (100, 1000, 6000)}
    heard = telephone_band(np.sum(list(tones.values()), axis=0))
    assert heard == pytest.approx(tones[1000], abs=1e-3)


def test_a_corpus_is_measured_and_written(bundle, tmp_path, capsys):
    corpus = make_corpus(tmp_path / "corpus")
    out = tmp_path / "figures.json"
    arguments = ["--speaker", str(bundle), "--data", str(corpus), "--json", str(out)]
    assert robustness.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    written = json.loads(out.read_text())["rows"]
    assert [row["sound"] for row in written] == [name for name, _ in changes()]
    assert len(lines) == 2 + len(written)
    assert lines[2].split()[:4] == ["as", "it", "is", f"{written[0]['aperture_r']:.3f}"]
    assert written[0]["aperture_r"] > 0.8  # the tiny bundle opens its mouth with loudness, so does the data
    assert robustness.main(["--speaker", str(bundle), "--data", str(tmp_path)]) == 2
    assert "index.jsonl: expected an index" in capsys.readouterr().err
