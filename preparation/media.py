"""Decoding of sound and pictures by FFmpeg, encoding of a training set's video and sound."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, Protocol, cast

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from cuda_kernels.arrays import I16, U8
from models.recording import open_recording
from models.time_base import FRAME_RATE_HZ, SAMPLE_RATE_HZ

from .errors import FileError

PixelFormat = Literal["rgb24", "gray"]
_DECODE_ERRORS = (av.FFmpegError, ValueError, OSError, IndexError)  # all that PyAV raises for a file
_MAX_DRIFT_S = 0.04  # of sound from its time stamps, until samples are filled in or left out


class MediaError(FileError):
    """A recording that cannot be read."""


def _open(path: Path) -> InputContainer:
    """Returns PyAV's input container of `path`; MediaError where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else f"one that cannot be read ({error})"
        raise MediaError(path, "", "a recording", got, "give the path of a recording") from error
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for its writer
        raise MediaError(path, "", "a recording", "a folder or a device", "give the path of a recording")
    if found.st_size == 0:
        raise MediaError(path, "", "a recording", "an empty file", "give one that ffmpeg can decode")
    try:
        return open_recording(path)
    except av.error.ArgumentError:
        got = "a playlist, a script or a damaged header"
        raise MediaError(path, "", "one recording", got, "give the recording itself") from None
    except _DECODE_ERRORS as error:
        got = f"something else ({error})"
        raise MediaError(path, "", "a recording that ffmpeg can decode", got, "convert it first") from error


def _sound_track(path: Path) -> int:
    """Returns the index of the sound track to read: the first that decodes, default tracks first.

    Raises:
        MediaError: there is none, or none that decodes.
    """
    with _open(path) as container:
        tracks = container.streams.audio
        default = [bool(track.disposition & Disposition.default) for track in tracks]
    if not default:
        raise MediaError(path, "sound", "a sound track", "no audio stream", "give a recording with sound")
    without_samples = False
    for track in sorted(range(len(default)), key=lambda number: not default[number]):
        with _open(path) as container:
            stream = container.streams.audio[track]
            if stream.codec_context is None:
                continue
            try:
                if next(container.decode(stream), None) is not None:
                    return track
                without_samples = True
            except _DECODE_ERRORS:
                continue
    if without_samples:
        raise _no_samples(path)
    got = "no audio stream that ffmpeg can decode"
    raise MediaError(path, "sound", "a sound track", got, "convert it first")


def _no_samples(path: Path) -> MediaError:
    got = "an audio stream without samples"
    return MediaError(path, "sound", "a sound track", got, "give a recording with sound")


class _Resampler(Protocol):
    def resample(self, frame: av.AudioFrame | None) -> list[av.AudioFrame]:
        """Returns what is ready after one more frame; after None, the rest."""
        ...


class _TimedResampler:
    """16 kHz mono by time stamps: sample 0 is that of `start_s`, silence stands where there is no sound."""

    def __init__(self, start_s: float) -> None:
        self._start_s = start_s
        self._graph: av.filter.Graph | None = None

    def resample(self, frame: av.AudioFrame | None) -> list[av.AudioFrame]:
        if frame is not None:
            self._graph = self._graph or _timed_graph(frame)
            if frame.pts is not None and frame.time_base is not None:
                frame.pts -= round(self._start_s / frame.time_base)
        if self._graph is None:
            return []
        self._graph.push(frame)
        ready = []
        while True:
            try:
                ready.append(cast(av.AudioFrame, self._graph.pull()))
            except (BlockingIOError, EOFError):
                return ready


def _timed_graph(frame: av.AudioFrame) -> av.filter.Graph:
    """Returns FFmpeg's filters from frames of this kind to `_TimedResampler`'s."""
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_abuffer(
            sample_rate=frame.sample_rate,
            format=frame.format.name,
            layout=frame.layout.name,
            time_base=frame.time_base,
        ),
        graph.add("aresample", f"{SAMPLE_RATE_HZ}:async=1:min_hard_comp={_MAX_DRIFT_S}:first_pts=0"),
        graph.add("aformat", "sample_fmts=s16:channel_layouts=mono"),
        graph.add("abuffersink"),
    ).configure()
    return graph


def read_pcm(path: Path, *, start_s: float | None = None) -> I16:
    """Returns a recording's sound as 16 kHz mono, int16 (N,), all channels mixed.

    Args:
        path: of the recording.
        start_s: time stamp that sample 0 gets, as that of a video's first picture: sound before it is cut
            off, silence stands before sound that begins later and in gaps. None: all samples there are.

    Raises:
        MediaError: the file is absent, empty, undecodable or has no sound.
    """
    path = Path(path)
    parts: list[I16] = []
    track = _sound_track(path)
    with _open(path) as container:
        resampler: _Resampler = (
            av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)
            if start_s is None
            else _TimedResampler(start_s)
        )
        try:
            for frame in container.decode(container.streams.audio[track]):
                parts += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
            parts += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
        except _DECODE_ERRORS as error:
            got = f"one that breaks off undecodable ({error})"
            raise MediaError(path, "sound", "a whole sound track", got, "convert it first") from error
    if not parts:
        raise _no_samples(path)
    return np.concatenate(parts)


def video_frames(path: Path) -> Iterator[av.VideoFrame]:
    """Yields a video's frames in order, decoded and not yet converted; see `to_picture`.

    Raises:
        MediaError: the file is absent, empty, undecodable or has no pictures.
    """
    path = Path(path)
    with _open(path) as container:
        if not container.streams.video:
            raise MediaError(path, "pictures", "a video", "no video stream", "give a video")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            got = "no video stream that ffmpeg can decode"
            raise MediaError(path, "pictures", "a video", got, "convert it first")
        stream.thread_type = "AUTO"
        empty = True
        try:
            for frame in container.decode(stream):
                empty = False
                yield frame
        except _DECODE_ERRORS as error:
            got = f"one that breaks off undecodable ({error})"
            raise MediaError(path, "pictures", "a whole video", got, "convert it first") from error
        if empty:
            raise MediaError(path, "pictures", "a video", "a video stream without pictures", "give a video")


def first_picture_s(path: Path) -> float | None:
    """Returns the time stamp of a recording's first picture; None of sound alone.

    Raises:
        MediaError: the file is absent, empty or undecodable.
    """
    with _open(path) as container:
        if not container.streams.video:
            return None
    return next(video_frames(path)).time or 0.0


def to_picture(path: Path, frame: av.VideoFrame, pixel_format: PixelFormat) -> U8:
    """Returns a frame of the video `path`: uint8 (H, W, 3) for rgb24, (H, W) for gray.

    Raises:
        MediaError: it cannot be converted.
    """
    try:
        return cast(U8, frame.to_ndarray(format=pixel_format))
    except _DECODE_ERRORS as error:
        got = f"a frame that ffmpeg cannot convert ({error})"
        raise MediaError(path, "pictures", "a video", got, "convert it first") from error


def write_video(
    path: Path, pictures: Iterable[U8], source: PixelFormat, *, codec: str, pixel_format: str, crf: int = 0
) -> None:
    """Writes pictures in the format `source` at 25 fps; `crf` is the constant rate factor, if any."""
    options = {"crf": str(crf)}
    with av.open(str(path), "w") as out:
        stream: VideoStream | None = None
        for picture in pictures:
            if stream is None:
                stream = cast(VideoStream, out.add_stream(codec, rate=FRAME_RATE_HZ, options=options))
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = pixel_format
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=source)))
        if stream is not None:
            out.mux(stream.encode(None))


def write_flac(path: Path, pcm: I16) -> None:
    """Writes 16 kHz mono samples (N,) without loss."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("flac", rate=SAMPLE_RATE_HZ, layout="mono", format="s16")
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
