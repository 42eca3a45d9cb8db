"""`geneface-stream`: a live server, a recording into a video, or a microphone into a window."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from types import FrameType
from typing import TYPE_CHECKING

from models.settings import BAD_INPUT, Flag, Parser, add_flags, escaped
from models.terminal import log_to_stderr, with_safe_streams
from models.time_base import FRAME_RATE_HZ

from .errors import GpuLostError, InputError, Signalled, Stopped
from .settings import StreamSettings, options, resolve_settings, variable

if TYPE_CHECKING:
    from models.speaker import Speaker

    from .files.pace import SizeStep
    from .pipeline.loaded_speaker import LoadedSpeaker
    from .pipeline.renderers import OpenRaymarcher

DONE = 0
FAILED = 1

PROGRAM = "geneface-stream"
_PATIENCE_S = 2.0  # after a signal; from then on another one ends the program at once
log = logging.getLogger(__name__)


def _parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="A trained speaker says what you say: live in a browser, from a recording, in a window.",
        epilog="Every flag can also be set as a variable, --render-size as GENEFACE_RENDER_SIZE.",
        allow_abbrev=False,
    )
    add_flags(parser, options().values(), negatable=False)
    parser.add_argument("--check", action="store_true", help="say what works on this machine, and end")
    parser.add_argument("--list-devices", action="store_true", help="show the microphones here, and end")
    parser.add_argument("--list-speakers", action="store_true", help="show the speakers there are, and end")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {_version()}")
    return parser


def _version() -> str:
    try:
        return metadata.version("geneface-stream")
    except metadata.PackageNotFoundError:
        return "not installed"


class _Interruption:
    """SIGINT and SIGTERM: they raise during preparation and are polled during a run."""

    def __init__(self) -> None:
        self.name = ""
        self._first_s = 0.0
        self._polled = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Takes the signals for the time of the block."""
        previous = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def polled(self) -> Iterator[None]:
        """Records a signal in the block instead of raising; see `received`."""
        self._polled = True
        try:
            yield
        finally:
            self._polled = False

    def received(self) -> bool:
        """Returns whether one of the signals came."""
        return bool(self.name)

    def _take(self, number: int, _: FrameType | None) -> None:
        first = not self.name
        if first:
            self.name, self._first_s = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._first_s > _PATIENCE_S:  # what it waits for does not come
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if first and not self._polled:
            raise Signalled(self.name)


def main(arguments: Sequence[str] | None = None, *, open_raymarcher: OpenRaymarcher | None = None) -> int:
    """Runs the program and returns its exit code: 0 done, 2 bad input or usage, 1 anything else.

    Args:
        arguments: of the command line; None: those of the process.
        open_raymarcher: opens what draws on the CPU; None: the CPU raymarcher.
    """
    return with_safe_streams(PROGRAM, partial(_run, arguments, open_raymarcher))


def _run(arguments: Sequence[str] | None, open_raymarcher: OpenRaymarcher | None) -> int:
    given = vars(_parser().parse_args(arguments))
    only = [name for name in ("check", "list_devices", "list_speakers") if given.pop(name)]
    log_to_stderr(logging.WARNING, f"{PROGRAM}: %(message)s")
    interruption = _Interruption()
    try:
        with interruption.installed():
            settings = resolve_settings(given, os.environ)
            if only:
                return _ONLY[only[0]](settings, open_raymarcher)
            if settings.mic is not None:
                return _speak_here(settings, interruption, open_raymarcher)
            if settings.input or settings.output or settings.landmark_video:
                return _speak(settings, interruption, open_raymarcher)
            return _serve(settings, interruption, open_raymarcher)
    except (Stopped, Signalled):
        # Which of the programs it would have become may not be known yet.
        outputs = ("output", "landmark_video")
        writes = any(given.get(name) or os.environ.get(variable(name)) for name in outputs)
        result = "; nothing was written" if writes else ""
        print(f"{PROGRAM}: stopped by {interruption.name}{result}", file=sys.stderr)
        return FAILED
    except GpuLostError as error:
        print(
            f"{PROGRAM}: the GPU failed: {escaped(str(error))}; run it again with --device cpu",
            file=sys.stderr,
        )
        return FAILED
    except InputError as error:
        print(f"{PROGRAM}: {escaped(str(error))}", file=sys.stderr)
        return BAD_INPUT
    except Exception:
        log.exception("failed, and that is a fault of the program")
        return FAILED


def _list_speakers(settings: StreamSettings, _: OpenRaymarcher | None) -> int:
    from models.speaker_folders import list_speakers

    found = list_speakers(speakers_dir=settings.speakers_dir)
    if not found:
        raise InputError("no speakers found; give their folder with --speakers-dir")
    width = max(len(speaker.name) for speaker in found)
    for speaker in found:
        print(escaped(f"{speaker.name.ljust(width)}  {speaker.path}"))
    return DONE


def _speak(
    settings: StreamSettings, interruption: _Interruption, open_raymarcher: OpenRaymarcher | None
) -> int:
    if settings.input is None:
        raise InputError("--input is missing; say what is to be spoken, for example --input speech.wav")
    if settings.output is None and settings.landmark_video is None:
        raise InputError("--output is missing; say where the video goes, for example --output talking.mp4")
    _refuse_one_file_twice(settings)

    # What can be refused is refused before the slow parts are even imported.
    from .files.audio_file import AudioFile
    from .files.landmark_video import LandmarkVideo
    from .files.landmark_writer import LandmarkOutput
    from .files.video_writer import VideoOutput

    audio = AudioFile(settings.input)

    from models.speaker import load_speaker
    from models.speaker_folders import find_speaker

    from .files import run as file_run
    from .files.pace import describe_steps
    from .files.progress import Progress
    from .pipeline.networks import open_networks
    from .pipeline.renderers import describe

    speaker = load_speaker(find_speaker(settings.speaker, speakers_dir=settings.speakers_dir))
    mean_face = speaker.motion.mean_face
    video = landmarks = landmark_video = None
    if settings.output is not None:
        video = VideoOutput(
            settings.output, size_px=speaker.image_size_px, sound=audio.sound_format, crf=settings.crf
        )
    if settings.landmarks is not None:
        landmarks = LandmarkOutput(settings.landmarks, mean_face=mean_face)
    if settings.landmark_video is not None:
        landmark_video = LandmarkVideo(
            settings.landmark_video, mean_face=mean_face, audio=audio, crf=settings.crf
        )

    waiting = Progress(None, quiet=settings.quiet)

    def say(line: str) -> None:
        waiting.clear()
        if not settings.quiet:
            print(escaped(line), file=sys.stderr)

    def say_step(step: SizeStep) -> None:
        progress.clear()
        say(
            f"behind the sound (real-time factor {step.real_time_factor:.2f}): "
            f"draws {step.size_px} x {step.size_px} from {step.at_s:.1f} s on"
        )

    with contextlib.ExitStack() as opened:
        write: Callable[..., file_run.FileReport]
        if video is not None:
            loaded = _load(settings, speaker, opened, open_raymarcher, say=say, note=waiting.note)
            renderer_of = loaded.renderers()
            renderer = renderer_of(loaded.start_px)
            networks = loaded.networks
            placed = networks.describe()  # empty where the CPU runs them all
            described = f"{loaded.name} on {loaded.device}, {describe(renderer, loaded.chosen)}"
            say(f"{described}; {placed}" if placed else described)
            write = partial(
                file_run.speak_file,
                speaker,
                renderer,
                audio,
                video,
                landmark_video=landmark_video,
                pace=file_run.pace_of(loaded, duration_s=audio.duration_s),
                renderer_of=renderer_of,
                on_step=say_step,
            )
            shown, done_on, start_px = video, f" on {loaded.device}", loaded.start_px
        else:
            assert landmark_video is not None
            waiting.note("getting the networks ready ...")
            networks = open_networks(speaker, settings.compute.engines, say=say)
            if placed := networks.describe():
                say(f"{speaker.name}: {placed}")
            write = partial(file_run.film_landmarks, speaker, audio, landmark_video)
            shown, done_on, start_px = landmark_video, "", 0
        if landmark_video is not None and mean_face is None:
            say(f"{speaker.name} has no mean face: --landmark-video moves a plain face of nobody")
        waiting.clear()

        frames = round(audio.duration_s * FRAME_RATE_HZ + 0.5) if audio.duration_s else None
        progress = Progress(frames, quiet=settings.quiet)
        with interruption.polled():
            try:
                report = write(
                    networks=networks,
                    landmarks=landmarks,
                    seed=settings.seed,
                    on_frame=progress.at,
                    stopped=interruption.received,
                )
            finally:
                progress.clear()
    sizes = describe_steps(start_px, report.steps)
    print(
        f"{escaped(str(shown.path))}: {report.duration_s:.2f} s, {report.frames} frames "
        f"{shown.size_px} x {shown.size_px}, {report.size_bytes / 1e6:.1f} MB, "
        f"in {report.spent_s:.1f} s (real-time factor {report.real_time_factor:.2f}){done_on}"
        f"{', ' if sizes else ''}{sizes}"
    )
    return DONE


def _refuse_one_file_twice(settings: StreamSettings) -> None:
    """Refuses an output that is the recording itself or another output.

    Raises:
        InputError: with both flags; or the folder that their names begin in is gone.
    """
    taken: dict[str, Flag] = {}
    for name in ("input", "output", "landmark_video", "landmarks"):
        flag, path = options()[name], getattr(settings, name)
        if path is None:
            continue
        try:
            real = os.path.realpath(path)  # of links in a circle, too, where Path.resolve fails
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise InputError(
                f"{path}: expected a name in the working folder, got: {reason}; change to one that is there"
            ) from None
        first = taken.setdefault(real, flag)
        if first != flag:
            raise InputError(f"{path}: {first} would be overwritten; give {flag} another name")


def _load(
    settings: StreamSettings,
    speaker: Speaker,
    opened: contextlib.ExitStack,
    open_raymarcher: OpenRaymarcher | None,
    *,
    say: Callable[[str], None],
    note: Callable[[str], None],
) -> LoadedSpeaker:
    """Returns a speaker ready to speak a recording; `opened` closes what is to be closed after the run.

    Raises:
        InputError: the render size does not fit the bundle, or a GPU was asked for and cannot draw.
        EngineError, SceneError: the bundle cannot be used.
    """
    from .pipeline.gpu_renderer import open_gpu
    from .pipeline.loaded_speaker import LoadedSpeaker
    from .pipeline.renderers import open_cpu_raymarcher

    gpu = open_gpu(settings.device, say=say)
    if gpu is not None:
        opened.callback(gpu.close)
    loaded = LoadedSpeaker.of(
        speaker,
        compute=settings.compute,
        live=False,
        open_raymarcher=open_raymarcher or open_cpu_raymarcher,
        gpu=gpu,
        say=say,
        note=note,
    )
    opened.callback(loaded.close)
    return loaded


def _serve(
    settings: StreamSettings, interruption: _Interruption, open_raymarcher: OpenRaymarcher | None
) -> int:
    from .pipeline.renderers import open_cpu_raymarcher
    from .server.server import serve

    logging.getLogger("streaming").setLevel(logging.INFO)

    def say(line: str) -> None:
        print(escaped(line), file=sys.stderr, flush=True)

    try:
        serve(
            settings,
            say=say,
            stopped=interruption.received,
            open_raymarcher=open_raymarcher or open_cpu_raymarcher,
        )
    except (Stopped, Signalled):  # the server has ended in order; its signal comes again afterwards
        say(f"{PROGRAM}: ended")
    return DONE


def _speak_here(
    settings: StreamSettings, interruption: _Interruption, open_raymarcher: OpenRaymarcher | None
) -> int:
    from .desktop.run import LiveRun
    from .pipeline.renderers import open_cpu_raymarcher

    with LiveRun(settings, open_raymarcher=open_raymarcher or open_cpu_raymarcher) as live:
        print(escaped(live.describe()), file=sys.stderr)
        with interruption.polled():
            report = live.run(stopped=interruption.received)
    print(report.summary())
    return DONE


def _check(settings: StreamSettings, open_raymarcher: OpenRaymarcher | None) -> int:
    from .check import exit_code, run_checks, table
    from .pipeline.renderers import open_cpu_raymarcher

    results = run_checks(
        settings,
        say=lambda line: print(escaped(line), file=sys.stderr),
        open_raymarcher=open_raymarcher or open_cpu_raymarcher,
    )
    print(table(results))
    return exit_code(results)


def _list_devices(_: StreamSettings, __: OpenRaymarcher | None) -> int:
    from .desktop.microphone import list_devices

    print(list_devices())
    return DONE


_ONLY = {"check": _check, "list_devices": _list_devices, "list_speakers": _list_speakers}


if __name__ == "__main__":
    sys.exit(main())
