"""Bad recordings, full disks, signals and long runs: one line, exit code 2 or 1, nothing left behind."""

import os
import resource
import signal
import subprocess

import av
import bundle_factory
import feature_bundle
import numpy as np
import psutil
import pytest
import stand_ins
from patience import PATIENCE_S, until

from models.speaker import load_speaker
from streaming import cli
from streaming.files import run as file_run
from streaming.files.audio_file import AudioFile
from streaming.files.video_writer import VideoOutput
from streaming.pipeline import gpu_renderer
from streaming.pipeline.renderers import make_renderer
from streaming.settings import options, variable


@pytest.fixture(scope="module")
def speakers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speakers")
    bundle_factory.write_tiny_bundle(folder / "Tiny", image_size_px=128)
    feature_bundle.write_feature_bundle(folder / "Hearing", image_size_px=128)
    return folder


@pytest.fixture
def run(monkeypatch, speakers, tmp_path, capsys):
    """Runs the program on a recording in this process; returns exit code, stdout, stderr."""
    monkeypatch.setattr(gpu_renderer, "find_cuda_device", lambda: None)
    for name in options():
        monkeypatch.delenv(variable(name), raising=False)

    def run_it(recording, output=None):
        code = cli.main(
            arguments(speakers, recording, output or tmp_path / "out.mp4"),
            open_raymarcher=stand_ins.open_raymarcher,
        )
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_it


def arguments(speakers, recording, output, *more):
    given = {"--speaker": "Tiny", "--speakers-dir": speakers, "--input": recording, "--output": output}
    return [*(str(part) for pair in given.items() for part in pair), "--quiet", *more]


def motion_only(*given):
    return ["--landmark-video" if part == "--output" else part for part in arguments(*given)]


def refused(ended, folder):
    code, out, err = ended
    assert code == 2
    assert out == ""
    assert err.startswith("geneface-stream: ")
    assert err.count("\n") == 1
    assert not [entry for entry in folder.iterdir() if "out" in entry.name]
    return err


def pictures_of(path):
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


# Recordings -----------------------------------------------------------------------------------------


def test_a_missing_recording(run, tmp_path):
    assert "no such file" in refused(run(tmp_path / "nope.wav"), tmp_path)


def test_an_empty_recording(run, tmp_path):
    (tmp_path / "empty.wav").touch()
    assert "is empty" in refused(run(tmp_path / "empty.wav"), tmp_path)


def test_a_header_without_samples(run, tmp_path):
    recording = stand_ins.write_wav(tmp_path / "none.wav", np.zeros(0, np.int16))
    assert "without samples" in refused(run(recording), tmp_path)


def test_a_video_without_sound(run, tmp_path):
    recording = stand_ins.write_mute_video(tmp_path / "mute.mp4")
    assert "expected a sound track, got video only" in refused(run(recording), tmp_path)


@pytest.mark.parametrize("at_s", [0.0, 3.9])
def test_a_sample_that_is_no_number(run, tmp_path, at_s):
    samples = stand_ins.speech_like(4).astype(np.float32) / 32768
    samples[int(at_s * 16000)] = np.nan
    err = refused(run(stand_ins.write_wav(tmp_path / "nan.wav", samples)), tmp_path)
    assert f"({at_s:.3f} s): expected a number, got nan" in err


def test_a_sample_that_is_no_number_in_a_run_without_rendering(run, speakers, tmp_path, capsys):
    samples = stand_ins.speech_like(4).astype(np.float32) / 32768
    samples[-1600] = np.nan
    recording = stand_ins.write_wav(tmp_path / "nan.wav", samples)
    more = ("--landmarks", str(tmp_path / "out.npz"))
    code = cli.main(motion_only(speakers, recording, tmp_path / "out.mp4", *more))
    err = refused((code, *capsys.readouterr()), tmp_path)
    assert "(3.900 s): expected a number, got nan" in err


@pytest.mark.parametrize("junk", [b"RIFF", b"\0" * 4096, b"ID3\x04" + b"\xff" * 300, b"OggS" * 50])
def test_what_is_no_recording(run, tmp_path, junk):
    (tmp_path / "junk.wav").write_bytes(junk)
    refused(run(tmp_path / "junk.wav"), tmp_path)


@pytest.mark.parametrize(("rate_hz", "channels"), [(8000, 1), (96000, 1), (48000, 7), (96000, 7), (11025, 2)])
def test_unusual_rates_and_channels_are_spoken(run, tmp_path, rate_hz, channels):
    samples = np.repeat(stand_ins.speech_like(1.2, rate_hz)[:, None], channels, axis=1)
    code, out, _ = run(stand_ins.write_wav(tmp_path / "speech.wav", samples, rate_hz))
    assert code == 0
    assert "1.20 s, 30 frames" in out
    assert pictures_of(tmp_path / "out.mp4") == 30


OUTPUTS = (("--output",), ("--landmark-video",), ("--output", "--landmark-video", "--landmarks"))


@pytest.mark.parametrize("outputs", OUTPUTS, ids=" ".join)
@pytest.mark.parametrize(("rate_hz", "samples"), [(8000, 1), (48000, 1), (48000, 15), (96000, 2000)])
@pytest.mark.parametrize("bundle", ["Tiny", "Hearing"])
def test_sound_of_a_few_samples_is_one_frame(
    run, speakers, tmp_path, capsys, outputs, rate_hz, samples, bundle
):
    recording = stand_ins.write_wav(tmp_path / "speech.wav", np.full(samples, 3000, np.int16), rate_hz)
    given = ["--speaker", bundle, "--speakers-dir", str(speakers), "--input", str(recording), "--quiet"]
    paths = {
        name: tmp_path / f"{name.strip('-')}.{'npz' if name == '--landmarks' else 'mp4'}" for name in outputs
    }
    for name, path in paths.items():
        given += [name, str(path)]
    assert cli.main(given) == 0
    assert "0.04 s, 1 frames" in capsys.readouterr().out
    for name, path in paths.items():
        if name == "--landmarks":
            with np.load(path) as archive:
                assert len(archive["landmarks"]) == 1
        else:
            assert pictures_of(path) == 1


def test_silence_is_spoken_with_a_closed_mouth(run, speakers, tmp_path):
    recording = stand_ins.write_wav(tmp_path / "silence.wav", np.zeros(16000 * 2, np.int16))
    assert run(recording)[0] == 0
    assert pictures_of(tmp_path / "out.mp4") == 50


def test_a_recording_cut_off_in_a_packet(run, tmp_path):
    whole = stand_ins.write_wav(tmp_path / "whole.wav", stand_ins.speech_like(2))
    cut = tmp_path / "cut.wav"
    cut.write_bytes(whole.read_bytes()[: 44 + 32000 - 1])
    code, out, _ = run(cut)
    assert code == 0
    assert "1.00 s, 25 frames" in out


def test_an_unknown_speaker_lists_those_there_are(run, speakers, tmp_path, capsys):
    recording = stand_ins.write_wav(tmp_path / "speech.wav", stand_ins.speech_like(0.5))
    code = cli.main([*arguments(speakers, recording, tmp_path / "out.mp4"), "--speaker", "Nobody"])
    captured = capsys.readouterr()
    assert "Tiny" in refused((code, captured.out, captured.err), tmp_path)


def test_a_broken_bundle(run, speakers, tmp_path, capsys):
    bundle_factory.write_tiny_bundle(tmp_path / "Broken", name="Broken", image_size_px=128)
    content = bytearray((tmp_path / "Broken" / "motion.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "Broken" / "motion.onnx").write_bytes(content)
    recording = stand_ins.write_wav(tmp_path / "speech.wav", stand_ins.speech_like(0.5))
    code = cli.main(
        [*arguments(speakers, recording, tmp_path / "out.mp4"), "--speaker", str(tmp_path / "Broken")]
    )
    captured = capsys.readouterr()
    assert "motion.onnx: sha256: expected" in refused((code, captured.out, captured.err), tmp_path)


# Disks ----------------------------------------------------------------------------------------------


NOISY = """
import numpy as np
class Noisy(stand_ins.StandInRaymarcher):
    def render(self, *, size_px, region_px=None, **_):
        x0, y0, x1, y1 = region_px or (0, 0, size_px, size_px)
        self.drawn += 1
        noise = np.random.default_rng(self.drawn)
        return noise.integers(0, 255, (y1 - y0, x1 - x0, 3), np.uint8)
open_raymarcher = lambda speaker, threads: Noisy()
"""


@pytest.mark.parametrize("limit_bytes", [0, 4096, 200_000])
def test_a_full_disk(speakers, tmp_path, limit_bytes):
    """The kernel refuses to let a file grow beyond the limit, as it does on a full disk."""
    recording = stand_ins.write_wav(tmp_path / "speech.wav", stand_ins.speech_like(4))
    ended = subprocess.run(
        [*stand_ins.program(NOISY), *arguments(speakers, recording, tmp_path / "out.mp4")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    err = refused((ended.returncode, ended.stdout, ended.stderr), tmp_path)
    assert "the disk is full" in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["speech.wav"]


def test_a_full_disk_under_the_landmarks(run, speakers, tmp_path, capsys, monkeypatch):
    from streaming.files import landmark_writer

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(landmark_writer.shutil, "copyfileobj", full)
    recording = stand_ins.write_wav(tmp_path / "speech.wav", stand_ins.speech_like(0.5))
    more = ("--landmarks", str(tmp_path / "out.npz"))
    code = cli.main(arguments(speakers, recording, tmp_path / "out.mp4", *more))
    captured = capsys.readouterr()
    assert "out.npz: could not be written: the disk is full" in refused(
        (code, captured.out, captured.err), tmp_path
    )


# Signals --------------------------------------------------------------------------------------------


SLOW = """
import threading
class Slow(stand_ins.StandInRaymarcher):
    def render(self, **given):
        threading.Event().wait(0.02)
        return super().render(**given)
open_raymarcher = lambda speaker, threads: Slow()
"""

AT_START = """
import os, signal
class Warming(stand_ins.StandInRaymarcher):
    def warm_up(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return 0.0
open_raymarcher = lambda speaker, threads: Warming()
"""


@pytest.mark.parametrize(
    ("number", "motion_alone"), [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGTERM, True)]
)
def test_a_signal_in_the_middle_leaves_nothing(speakers, tmp_path, number, motion_alone):
    minutes = 5 if motion_alone else 1
    recording = stand_ins.write_wav(tmp_path / "speech.wav", np.tile(stand_ins.speech_like(60), minutes))
    of_run = motion_only if motion_alone else arguments
    more = ("--landmarks", str(tmp_path / "out.npz"))
    program = stand_ins.program("" if motion_alone else SLOW)
    command = [*program, *of_run(speakers, recording, tmp_path / "out.mp4", *more)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: list(tmp_path.glob(".out.*.part.mp4")) or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert out == ""
    assert err == f"geneface-stream: stopped by {signal.Signals(number).name}; nothing was written\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["speech.wav"]


def test_a_signal_while_the_kernels_are_compiled(speakers, tmp_path):
    recording = stand_ins.write_wav(tmp_path / "speech.wav", stand_ins.speech_like(1))
    command = [*stand_ins.program(AT_START), *arguments(speakers, recording, tmp_path / "out.mp4")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "geneface-stream: stopped by SIGTERM; nothing was written\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["speech.wav"]


# Length ---------------------------------------------------------------------------------------------


class _FlatRaymarcher(stand_ins.StandInRaymarcher):
    """One grey, whatever is asked."""

    def render(self, *, size_px, region_px=None, **_):
        x0, y0, x1, y1 = region_px or (0, 0, size_px, size_px)
        return np.full((y1 - y0, x1 - x0, 3), 90, np.uint8)


def test_memory_stays_flat_over_a_long_recording(speakers, tmp_path):
    minutes = 10
    recording = stand_ins.write_wav(
        tmp_path / "long.wav", np.tile(stand_ins.speech_like(60, 48000), minutes), 48000
    )
    speaker = load_speaker(speakers / "Tiny")
    audio = AudioFile(recording)
    renderer = make_renderer(speaker, _FlatRaymarcher(), 96)
    video = VideoOutput(tmp_path / "out.mp4", size_px=128, sound=audio.sound_format, crf=40)
    process = psutil.Process()
    resident = {}

    def note(frames):
        if frames % 500 == 0:
            resident[frames] = process.memory_info().rss

    report = file_run.speak_file(speaker, renderer, audio, video, on_frame=note)
    assert report.frames == minutes * 60 * 25
    # All of it at once would be 58 MB of sound and 737 MB of pictures; the first 40 s fill the queues and
    # the encoder's look-ahead.
    growth = max(resident.values()) - resident[1000]
    assert growth < 24e6, f"{growth / 1e6:.1f} MB more than after 40 s"
