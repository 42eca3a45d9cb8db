"""Audio2Motion learns from a tiny corpus what its sound says: louder is wider open."""

from tiny_corpus import make_corpus

from training import cli, loop


def test_audio2motion_learns_that_loud_is_open(tmp_path):
    corpus = make_corpus(tmp_path / "corpus")
    arguments = ["--data", str(corpus), "--out", str(tmp_path / "out"), "--steps", "60"]
    often = ["--validate-every", "20", "--checkpoint-every", "60", "--log-every", "20"]
    sizes = ["--batch", "8", "--frames", "40", "--warm-frames", "8"]
    assert cli.main(["audio2motion", *arguments, *often, *sizes]) == 0
    found = loop.read_validations(tmp_path / "out")
    assert found[-1]["aperture_error_mm"] < found[0]["aperture_error_mm"]
    assert found[-1]["aperture_r"] > 0.5
