import dataclasses
import os
import re
import subprocess
import sys
import threading

import av
import bundle_factory
import feature_bundle
import numpy as np
import plate_factory
import pytest
import stand_ins
from stand_in_gpu import StandInRenderer

from cuda_kernels import cuda_raymarcher
from cuda_kernels.cuda_module import CudaError
from cuda_kernels.folding import SceneError
from export.bundle.writer import write_bundle
from models.speaker import load_speaker
from models.speaker_settings import read_settings
from streaming import cli
from streaming.errors import InputError
from streaming.files import run as file_run
from streaming.files.landmark_video import LandmarkDrawing, plain_face
from streaming.files.progress import Progress
from streaming.pipeline import engine_choice, gpu_renderer, loaded_speaker, networks
from streaming.pipeline.compute_settings import ComputeSettings
from streaming.pipeline.cuda_device import CudaDevice
from streaming.pipeline.engine_choice import EngineSettings
from streaming.pipeline.loaded_speaker import SpeakerOpening, size_that_keeps_up
from streaming.pipeline.render_size import FrameCost, RenderSize
from streaming.pipeline.renderers import describe
from streaming.settings import StreamSettings, options, resolve_settings, variable


@pytest.fixture
def quick(monkeypatch):
    """The stand-in draws, and no variable of the machine interferes."""
    monkeypatch.setattr(gpu_renderer, "find_cuda_device", lambda: None)
    for name in options():
        monkeypatch.delenv(variable(name), raising=False)


def run(command, open_raymarcher=stand_ins.open_raymarcher):
    """Runs the program in this process and returns its exit code; the stand-in draws."""
    return cli.main(command, open_raymarcher=open_raymarcher)


@pytest.fixture
def wav(tmp_path):
    return stand_ins.write_wav(tmp_path / "speech.wav", stand_ins.speech_like(1.5))


def one_line(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("geneface-stream: ")
    return captured.err


def arguments(speakers, wav, output, *more):
    given = {"--speaker": "Tiny", "--speakers-dir": speakers, "--input": wav, "--output": output}
    return [str(part) for pair in given.items() for part in pair] + list(more)


# Settings -------------------------------------------------------------------------------------------


def test_flag_over_environment_over_default():
    assert resolve_settings({}, {}).seed == 0
    assert resolve_settings({}, {"GENEFACE_SEED": "3"}).seed == 3
    assert resolve_settings({"seed": "4"}, {"GENEFACE_SEED": "3"}).seed == 4
    assert resolve_settings({}, {"GENEFACE_SEED": "", "GENEFACE_SHARED": "/x"}).seed == 0


def test_texts_of_flags_and_variables_become_values():
    settings = resolve_settings({"render_size": "auto", "quiet": "yes", "speakers_dir": "a/b"}, {})
    assert settings.render_size is None
    assert settings.quiet is True
    assert settings.speakers_dir is not None
    assert settings.speakers_dir.parts == ("a", "b")
    assert resolve_settings({"render_size": "256"}, {}).render_size == 256


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"render_size": "big"}, r"--render-size \(or GENEFACE_RENDER_SIZE\): expected N\|auto, got 'big'"),
        ({"render_size": "64"}, "--render-size: .*96.*, got 64"),
        ({"crf": "52"}, "--crf: .*, got 52"),
        ({"threads": "-1"}, "--threads: .*, got -1"),
        ({"cores": "-1"}, "--cores: .*, got -1"),
        ({"cores": "half"}, r"--cores \(or GENEFACE_CORES\): expected N, got 'half'"),
        ({"plates_mb": "-1"}, r"--plates-mb: expected 0 \(none\) or more MB, got -1"),
        ({"plates_mb": "all"}, r"--plates-mb \(or GENEFACE_PLATES_MB\): expected MB, got 'all'"),
        ({"seed": "-1"}, "--seed: .*, got -1"),
        ({"engine": "torch"}, r"--engine \(or GENEFACE_ENGINE\): expected auto\|onnx\|tensorrt, got 'torch'"),
        ({"device": "tpu"}, r"--device .*: expected auto\|cpu\|cuda, got 'tpu'"),
        ({"engine": "tensorrt", "device": "cpu"}, "--engine tensorrt: .*--device.*, got cpu"),
        ({"speaker": ""}, "--list-speakers"),
        ({"mic": "default", "preview": "1", "landmark_video": "lm.mp4"}, "--mic: expected no --input"),
        ({"quiet": "maybe"}, "--quiet .*, got 'maybe'"),
        ({"sead": "1"}, "^sead: "),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, said):
    with pytest.raises(InputError, match=said):
        resolve_settings(values, {})


def test_the_networks_are_told_what_runs_them():
    given = resolve_settings({"device": "cuda"}, {"GENEFACE_ENGINE": "onnx", "GENEFACE_DEVICE": "cpu"})
    assert given.compute.engines == EngineSettings(engine="onnx", device="cuda")
    assert StreamSettings().compute.engines == EngineSettings()
    assert resolve_settings({}, {"GENEFACE_CORES": "3"}).compute.engines == EngineSettings(cores=3)


# The command ----------------------------------------------------------------------------------------


def test_a_recording_becomes_a_video(quick, speakers, wav, tmp_path, capsys):
    output, motion = tmp_path / "out.mp4", tmp_path / "motion.npz"
    assert run(arguments(speakers, wav, output, "--landmarks", str(motion))) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{output}: 1.52 s, 38 frames 128 x 128")
    assert "real-time factor" in captured.out
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("Tiny on CPU")
    with av.open(str(output)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 38
    with av.open(str(output)) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) >= 24000
    with np.load(motion) as archive:
        assert archive["landmarks"].shape == (38, 68, 3)
        assert np.array_equal(archive["mean_face"], bundle_factory.schematic_face())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["motion.npz", "out.mp4", "speech.wav"]


def test_the_same_sound_and_seed_give_the_same_file(quick, speakers, tmp_path):
    wav = stand_ins.write_wav(tmp_path / "speech.wav", stand_ins.speech_like(8))
    files = []
    for name, seed in (("a.mp4", "5"), ("b.mp4", "5"), ("c.mp4", "6")):
        more = (
            "--seed",
            seed,
            "--render-size",
            "96",
            "--quiet",
            "--landmarks",
            str(tmp_path / f"{name}.npz"),
        )
        assert run(arguments(speakers, wav, tmp_path / name, *more)) == 0
        with np.load(tmp_path / f"{name}.npz") as archive:
            files.append(((tmp_path / name).read_bytes(), archive["landmarks"]))
    assert files[0][0] == files[1][0]
    assert np.array_equal(files[0][1], files[1][1])
    assert not np.array_equal(files[0][1], files[2][1])


def test_settings_come_from_the_environment(quick, speakers, wav, tmp_path, monkeypatch, capsys):
    for name, value in {
        "SPEAKER": "Other",
        "SPEAKERS_DIR": str(speakers),
        "INPUT": str(wav),
        "OUTPUT": str(tmp_path / "out.mp4"),
        "RENDER_SIZE": "96",
        "THREADS": "1",
    }.items():
        monkeypatch.setenv(f"GENEFACE_{name}", value)
    assert run([]) == 0
    assert "Other on CPU, 1 thread, draws 96 x 96 scaled up to 128 x 128" in capsys.readouterr().err


def test_speakers_are_listed(quick, speakers, capsys):
    assert run(["--list-speakers", "--speakers-dir", str(speakers)]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Tiny ") and line.endswith(str(speakers / "Tiny")) for line in listed)
    assert any(line.startswith("Other") for line in listed)


def test_version_and_help(capsys):
    for flag, said in (("--version", "geneface-stream "), ("--help", "--render-size N|auto")):
        with pytest.raises(SystemExit) as ended:
            run([flag])
        assert ended.value.code == 0
        assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ("--output talking.mp4", "--input"),
        ("--landmark-video lm.mp4", "--input"),
        ("--input {wav}", "--output"),
    ],
)
def test_a_recording_needs_its_other_end(quick, wav, capsys, given, missing):
    assert run(given.format(wav=wav).split()) == 2
    assert f"{missing} is missing" in one_line(capsys)


@pytest.mark.parametrize("given", [["--sead", "1"], ["speech.wav"], ["--seed"], ["--speak", "May"]])
def test_wrong_usage_is_one_line(given, capsys):
    with pytest.raises(SystemExit) as ended:
        run(given)
    assert ended.value.code == 2
    one_line(capsys)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--speaker", "Nobody"], "Other, Tiny"),
        (["--input", "nope.wav"], "nope.wav: "),
        (["--output", "/no/such/out.mp4"], "/no/such"),
        (["--output", "out.gif"], "got .gif"),
        (["--landmarks", "out.csv"], "--landmarks"),
        (["--landmark-video", "out.gif"], "--landmark-video, got .gif"),
        (["--landmark-video", "/no/such/lm.mp4"], "--landmark-video"),
        (["--render-size", "9999"], "--render-size: expected at most 128"),
        (["--crf", "x"], "--crf (or GENEFACE_CRF): expected N, got 'x'"),
    ],
)
def test_bad_input_is_one_line(quick, speakers, wav, tmp_path, capsys, more, said):
    assert run(arguments(speakers, wav, tmp_path / "out.mp4", *more)) == 2
    assert said in one_line(capsys)
    assert [entry.name for entry in tmp_path.iterdir()] == ["speech.wav"]


def test_the_recording_is_never_overwritten(quick, speakers, wav, capsys):
    before = wav.read_bytes()
    assert run(arguments(speakers, wav, wav)) == 2
    assert "would be overwritten" in one_line(capsys)
    assert wav.read_bytes() == before


def test_what_runs_the_networks_is_said_where_it_is_not_the_cpu(
    quick, speakers, wav, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(networks.SpeakerNetworks, "describe", lambda self: "features on NVIDIA H100")
    assert run(arguments(speakers, wav, tmp_path / "out.mp4")) == 0
    assert capsys.readouterr().err.rstrip().endswith("; features on NVIDIA H100")


@pytest.fixture
def gpu(quick, speakers, monkeypatch):
    """A GPU that a stand-in plays; the CPU's raymarcher is not to be opened."""
    renderer = StandInRenderer(condition_size=read_settings(speakers / "Tiny").condition.size)
    found = CudaDevice(name="NVIDIA H100 80GB HBM3", capability=(9, 0))
    monkeypatch.setattr(gpu_renderer, "find_cuda_device", lambda: found)
    monkeypatch.setattr(cuda_raymarcher, "CudaRenderer", lambda: renderer)
    yield renderer
    assert not [thread for thread in threading.enumerate() if thread.name == "geneface-gpu"]


def no_cpu(speaker, threads):
    pytest.fail("the CPU draws")


def test_a_gpu_draws_the_whole_picture_and_is_named(gpu, speakers, wav, tmp_path, capsys):
    assert run(arguments(speakers, wav, tmp_path / "out.mp4"), no_cpu) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("Tiny on NVIDIA H100 80GB HBM3, draws 128 x 128\n")
    assert captured.out.endswith(" on NVIDIA H100 80GB HBM3\n")
    assert len(gpu.batches) == 38 + 1  # and one to warm up
    assert gpu.closed == 1


def test_with_device_cpu_a_gpu_stays_unused(gpu, speakers, wav, tmp_path, capsys, monkeypatch):
    assert run(arguments(speakers, wav, tmp_path / "out.mp4", "--device", "cpu")) == 0
    assert capsys.readouterr().err.startswith("Tiny on CPU")
    assert (gpu.batches, gpu.closed) == ([], 0)


def test_a_speaker_that_the_gpu_does_not_take_is_drawn_by_the_cpu_with_a_word(
    gpu, speakers, wav, tmp_path, capsys, monkeypatch
):
    gpu.refusal = SceneError("head: expected hidden layers of at most 128, got 256; draw it with the CPU")
    assert run(arguments(speakers, wav, tmp_path / "out.mp4")) == 0
    first, second = capsys.readouterr().err.splitlines()[:2]
    assert first == f"the CPU draws Tiny, not NVIDIA H100 80GB HBM3: {gpu.refusal}"
    assert second.startswith("Tiny on CPU")
    assert gpu.closed == 1


def test_a_gpu_that_fails_ends_the_run_with_the_way_out(gpu, speakers, wav, tmp_path, capsys):
    gpu.failure = CudaError("cuStreamSynchronize: expected success, got CUDA_ERROR_LAUNCH_FAILED")
    assert run(arguments(speakers, wav, tmp_path / "out.mp4"), no_cpu) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"geneface-stream: the GPU failed: {gpu.failure}; run it again with --device cpu"
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["speech.wav"]


def test_a_gpu_that_was_asked_for_and_is_not_there_is_bad_input(quick, speakers, wav, tmp_path, capsys):
    """The networks look for it first."""
    assert run(arguments(speakers, wav, tmp_path / "out.mp4", "--device", "cuda")) == 2
    assert "expected a CUDA device, got none" in one_line(capsys)


def test_an_engine_that_cannot_run_here_is_bad_input(quick, speakers, wav, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engine_choice, "find_cuda_device", lambda: None)
    assert run(arguments(speakers, wav, tmp_path / "out.mp4", "--engine", "tensorrt")) == 2
    assert "expected a CUDA device, got none" in one_line(capsys)


def test_a_fault_of_ours_is_exit_code_1(quick, speakers, wav, tmp_path, monkeypatch):
    broken = stand_ins.StandInRaymarcher(fail_at=40)
    command = arguments(speakers, wav, tmp_path / "out.mp4", "--render-size", "96")
    assert run(command, lambda speaker, threads: broken) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["speech.wav"]


def test_the_whole_run_needs_no_torch(speakers, wav, tmp_path):
    """torch, the exporters and the training code cannot even be imported there."""
    blocked = ("torch", "torchaudio", "onnx", "onnxscript", "training", "export", "preparation")
    prepare = f"sys.modules.update(dict.fromkeys({blocked!r}))\n{stand_ins.QUICK}"
    command = [*stand_ins.program(prepare), *arguments(speakers, wav, tmp_path / "out.mp4")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GENEFACE_")}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out.mp4").exists()


def test_imports_alone_bring_no_torch():
    code = "import sys, streaming.cli, streaming.files.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


# The motion as a video ------------------------------------------------------------------------------


@pytest.fixture
def no_rendering(quick, monkeypatch):
    """What renders cannot be opened."""

    def refuse(*_, **__):
        raise AssertionError("nothing is to be rendered")

    monkeypatch.setattr(loaded_speaker, "choose_raymarcher", refuse)
    monkeypatch.setattr(file_run, "Pipeline", refuse)


def motion_only(speakers, wav, video, *more):
    whole = arguments(speakers, wav, video, *more)
    return ["--landmark-video" if part == "--output" else part for part in whole]


def assert_shows(video, landmarks, mean_face):
    """The video's pictures are the drawings of the landmarks (T, 68, 3), frame by frame."""
    drawing = LandmarkDrawing(mean_face)
    with av.open(str(video)) as container:
        shown = np.stack([f.to_ndarray(format="rgb24").min(-1) < 128 for f in container.decode(video=0)])
    drawn = np.stack([drawing.draw(row).min(-1) < 128 for row in landmarks])
    # Compression changes a few pixels at the edges of some 3000; a point a pixel away changes twelve.
    assert np.count_nonzero(shown != drawn, axis=(1, 2)).max() < 40
    assert np.count_nonzero(drawn[0] != drawn[9]) > 200


def test_the_motion_becomes_a_video_without_rendering(no_rendering, speakers, wav, tmp_path, capsys):
    video, motion = tmp_path / "lm.mp4", tmp_path / "motion.npz"
    assert run(motion_only(speakers, wav, video, "--landmarks", str(motion))) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{video}: 1.52 s, 38 frames 512 x 512")
    assert captured.out.count("\n") == 1
    assert captured.err == ""
    with av.open(str(video)) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) >= 24000
    with np.load(motion) as archive:
        assert len(archive["landmarks"]) == 38
        assert_shows(video, archive["landmarks"], archive["mean_face"])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["lm.mp4", "motion.npz", "speech.wav"]


@pytest.mark.parametrize(
    "write_speaker", [bundle_factory.write_tiny_bundle, feature_bundle.write_feature_bundle]
)
def test_the_motion_is_that_of_the_rendered_video(quick, write_speaker, tmp_path, capsys):
    """With blinks: eight seconds hold one. Both videos come from one run; both kinds of motion network."""
    speakers = write_speaker(tmp_path / "Tiny", image_size_px=128).parent
    wav = stand_ins.write_wav(tmp_path / "speech.wav", stand_ins.speech_like(8))
    alone = ("--seed", "5", "--landmarks", str(tmp_path / "a.npz"))
    assert run(motion_only(speakers, wav, tmp_path / "a.mp4", *alone)) == 0
    beside = ("--seed", "5", "--landmarks", str(tmp_path / "b.npz"), "--render-size", "96")
    beside += ("--landmark-video", str(tmp_path / "b.mp4"))
    assert run(arguments(speakers, wav, tmp_path / "out.mp4", *beside)) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(f"{tmp_path / 'out.mp4'}: 8.00 s, 200 frames")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert np.array_equal(a["landmarks"], b["landmarks"])
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].frames == 200


def test_a_speaker_without_a_mean_face_gets_a_plain_one_and_a_line(no_rendering, wav, tmp_path, capsys):
    parts = bundle_factory.tiny_parts(name="Imported", image_size_px=128)
    motion = dataclasses.replace(parts.motion, mean_face=None)
    write_bundle(tmp_path / "Imported", dataclasses.replace(parts, motion=motion))
    more = ("--speaker", "Imported", "--landmarks", str(tmp_path / "motion.npz"))
    assert run(motion_only(tmp_path, wav, tmp_path / "lm.mp4", *more)) == 0
    err = capsys.readouterr().err
    assert err == "Imported has no mean face: --landmark-video moves a plain face of nobody\n"
    with np.load(tmp_path / "motion.npz") as archive:
        assert "mean_face" not in archive
        assert_shows(tmp_path / "lm.mp4", archive["landmarks"], plain_face())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--landmark-video", "{wav}"], "--input would be overwritten; give --landmark-video another name"),
        (["--landmark-video", "{out}"], "--output would be overwritten; give --landmark-video another name"),
        (["--landmark-video", "{folder}/./out.mp4"], "--output would be overwritten"),
        (["--landmarks", "{wav}"], "--input would be overwritten; give --landmarks another name"),
    ],
)
def test_no_file_is_written_twice(quick, speakers, wav, tmp_path, capsys, more, said):
    before = wav.read_bytes()
    out = tmp_path / "out.mp4"
    more = [part.format(wav=wav, out=out, folder=tmp_path) for part in more]
    assert run(arguments(speakers, wav, out, *more)) == 2
    assert said in one_line(capsys)
    assert wav.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["speech.wav"]


@pytest.mark.parametrize("what", ["input", "output", "landmarks"])
def test_a_link_to_itself_is_no_fault_of_the_program(quick, speakers, wav, tmp_path, capsys, what):
    given = {"input": wav, "output": tmp_path / "out.mp4", "landmarks": tmp_path / "motion.npz"}
    link = given[what] = tmp_path / f"loop{given[what].suffix}"
    link.symlink_to(link)
    more = ("--landmarks", str(given["landmarks"]))
    code = cli.main(arguments(speakers, given["input"], given["output"], *more))
    if what == "input":
        assert code == 2
        assert f"{link}: expected a readable file, got too many levels of symbolic links" in one_line(capsys)
    else:  # the link gives way to the file, as every link there does
        assert code == 0
        assert link.is_file()
        assert not link.is_symlink()


def test_a_working_folder_that_is_gone_is_told(quick, speakers, wav, tmp_path, capsys, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(arguments(speakers, wav, "out.mp4")) == 2
    assert "out.mp4: expected a name in the working folder, got: no such file" in one_line(capsys)
    assert cli.main(arguments(speakers, wav, tmp_path / "out.mp4")) == 0


# Progress -------------------------------------------------------------------------------------------


class Terminal:
    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


class TestClock:
    __test__ = False

    def __init__(self):
        self.time_s = 0.0
        self.helped_s = 0.0  # CPU time of other threads

    def now_s(self):
        return self.time_s

    def thread_s(self):
        return self.time_s + self.helped_s

    process_s = thread_s


def test_progress_shows_frames_speed_and_what_is_left():
    terminal, clock = Terminal(), TestClock()
    progress = Progress(100, stream=terminal, clock=clock)
    clock.time_s = 1.0
    progress.at(50)
    progress.at(51)  # too soon after the last one to be drawn
    assert "50/100 frames,  50.0 fps, real-time factor 0.50, 0:01 left" in terminal.text
    assert "51/100" not in terminal.text
    progress.clear()
    assert terminal.text.endswith("\r")


def test_progress_is_silent_off_a_terminal_or_when_asked(capsys):
    Progress(100).at(1)
    terminal = Terminal()
    quiet = Progress(100, stream=terminal, quiet=True)
    quiet.note("x")
    quiet.at(1)
    quiet.clear()
    assert terminal.text == capsys.readouterr().err == ""


def test_progress_without_a_known_length():
    assert (
        Progress(None, stream=Terminal(), clock=TestClock()).text(25, 1.0).startswith("25 frames,  25.0 fps")
    )


# The size that keeps up ------------------------------------------------------------------------------


class CostlyRaymarcher(stand_ins.StandInRaymarcher):
    """Moves the clock on by what its pixels cost."""

    def __init__(self, clock, ns_per_pixel):
        super().__init__()
        self._clock = clock
        self._ns_per_pixel = ns_per_pixel
        self.shapes = []

    def render(self, **given):
        picture = super().render(**given)
        self.shapes.append(picture.shape)
        took_s = picture.shape[0] * picture.shape[1] * self._ns_per_pixel / 1e9
        self._clock.time_s += took_s
        self._clock.helped_s += took_s  # by a second thread
        return picture


def opening_of(speaker, raymarcher, clock):
    """Returns a speaker that is being opened on two cores, all but its frames' cost known."""
    opening = SpeakerOpening(
        speaker,
        ComputeSettings(device="cpu", threads=2),
        open_raymarcher=lambda speaker, threads: raymarcher,
        clock=clock,
        cpu=clock,
    )
    opening.cores = 2
    opening.warm_up()
    return opening


@pytest.mark.parametrize(("ns_per_pixel", "size_px"), [(1, 512), (300, 256), (100_000, 128)])
def test_the_size_is_chosen_from_frames_that_were_drawn(tmp_path, ns_per_pixel, size_px):
    speaker = load_speaker(bundle_factory.write_tiny_bundle(tmp_path / "Tiny"))
    clock = TestClock()
    raymarcher = CostlyRaymarcher(clock, ns_per_pixel)
    chosen = size_that_keeps_up(opening_of(speaker, raymarcher, clock))
    assert chosen.size_px == size_px
    assert chosen.keeps_up == (size_px > 128)
    assert max(raymarcher.sizes[:1]) == 192  # begins in the middle


class SlowEngine:
    """Moves the clock on at each run."""

    device = "CPU"

    def __init__(self, engine, clock, takes_ms):
        self._engine, self._clock, self._takes_ms = engine, clock, takes_ms

    def run(self, inputs):
        self._clock.time_s += self._takes_ms / 1000
        return self._engine.run(inputs)


@pytest.mark.parametrize(
    ("features_ms", "size_px", "said"),
    [
        (20.0, 512, "keeps up"),  # for four frames
        (900.0, 512, "slower than the sound, as the networks alone are"),
    ],
)
def test_networks_slower_than_the_sound_leave_a_recording_its_full_size(tmp_path, features_ms, size_px, said):
    speaker = load_speaker(feature_bundle.write_feature_bundle(tmp_path / "Heard"))
    clock = TestClock()
    raymarcher = CostlyRaymarcher(clock, 1)
    opening = opening_of(speaker, raymarcher, clock)
    features = SlowEngine(opening.networks.features, clock, features_ms)
    opening._networks = dataclasses.replace(opening.networks, features=features)
    chosen = size_that_keeps_up(opening)
    assert chosen.size_px == size_px
    assert chosen.keeps_up == (features_ms < 160)
    assert describe(opening.make_renderer(size_px), chosen).endswith(said)


def test_a_recording_counts_on_no_more_cores_than_it_may(quick, speakers, wav, tmp_path, capsys, monkeypatch):
    opened = []

    def open_raymarcher(speaker, *, threads):
        opened.append(threads)
        return stand_ins.StandInRaymarcher()

    monkeypatch.setenv("GENEFACE_CORES", "1")
    command = arguments(speakers, wav, tmp_path / "out.mp4", "--render-size", "96")
    assert run(command, open_raymarcher) == 0
    assert opened == [1]
    assert "Tiny on CPU, 1 thread, " in capsys.readouterr().err


def test_a_recording_that_falls_behind_is_drawn_smaller_and_says_so(quick, tmp_path, capsys, monkeypatch):
    speakers = bundle_factory.write_tiny_bundle(tmp_path / "Tiny").parent
    wav = stand_ins.write_wav(tmp_path / "long.wav", stand_ins.speech_like(12.0))
    clock = TestClock()
    chosen = RenderSize(
        size_px=384, frame_ms=30.0, keeps_up=True, cost=FrameCost(render_ms=30.0, other_ms=2.0)
    )
    monkeypatch.setattr(loaded_speaker, "size_that_keeps_up", lambda _: chosen)
    monkeypatch.setattr(file_run, "SystemClock", lambda: clock)
    output = tmp_path / "out.mp4"
    raymarcher = CostlyRaymarcher(clock, 340)
    assert run(arguments(speakers, wav, output), lambda speaker, threads: raymarcher) == 0
    captured = capsys.readouterr()
    steps = re.findall(r"draws (\d+) x \1 from ([0-9.]+) s on", captured.err)
    assert steps
    sizes = [int(size) for size, _ in steps]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) < 384
    assert "behind the sound (real-time factor 1." in captured.err
    assert captured.out.count("\n") == 1
    said = ", ".join(f"from {at} s on at {size} px" for size, at in steps)
    assert f"drawn at 384 px, {said}, to keep up with the sound" in captured.out
    factor = float(re.search(r"real-time factor ([0-9.]+)", captured.out)[1])
    assert factor < 1.05


def test_a_size_that_was_asked_for_stays_however_slow(quick, tmp_path, capsys, monkeypatch):
    speakers = bundle_factory.write_tiny_bundle(tmp_path / "Tiny").parent
    wav = stand_ins.write_wav(tmp_path / "long.wav", stand_ins.speech_like(4.0))
    clock = TestClock()
    raymarcher = CostlyRaymarcher(clock, 2000)
    monkeypatch.setattr(file_run, "SystemClock", lambda: clock)
    command = arguments(speakers, wav, tmp_path / "out.mp4", "--render-size", "384")
    assert run(command, lambda speaker, threads: raymarcher) == 0
    captured = capsys.readouterr()
    assert float(re.search(r"real-time factor ([0-9.]+)", captured.out)[1]) > 5
    assert "behind" not in captured.err
    assert "to keep up" not in captured.out
    assert {picture[0] for picture in raymarcher.shapes if picture[0] == picture[1]} <= {32, 384}


def test_a_videos_name_is_shown_with_every_character_visible(quick, speakers, wav, tmp_path, capsys):
    output = tmp_path / "o\r\x1b[31mX\nY.mp4"
    assert cli.main(arguments(speakers, wav, output)) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}/o\\r\\x1b[31mX\\nY.mp4: 1.52 s")
    assert said[:-1].isprintable()
    assert output.is_file()


def test_a_name_with_a_line_break_is_still_one_line(quick, tmp_path, capsys):
    assert run(["--input", str(tmp_path / "no\nsuch.wav"), "--output", "out.mp4"]) == 2
    one_line(capsys)


def test_a_recording_of_a_speaker_with_plates_is_drawn_over_them(quick, wav, tmp_path, capsys):
    plate_factory.write_plated_bundle(tmp_path / "Plated", name="Plated", image_size_px=128)
    given = [
        "--input",
        str(wav),
        "--speaker",
        "Plated",
        "--speakers-dir",
        str(tmp_path),
        "--render-size",
        "128",
    ]
    pictures = {}
    for name, more in (("over", []), ("again", []), ("whole", ["--plates-mb", "0"])):
        path = tmp_path / f"{name}.mp4"
        assert cli.main([*given, "--output", str(path), *more]) == 0
        pictures[name] = path.read_bytes()
    said = capsys.readouterr().err
    assert said.count("draws 2 % of 128 x 128 over plates") == 2
    assert said.count("draws 128 x 128\n") == 1
    assert pictures["over"] == pictures["again"] != pictures["whole"]
