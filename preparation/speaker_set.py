"""One speaker's training set on disk: video, masks, background, sound and ground truth.

A folder holds `video.mp4` (square, 25 fps), `masks.mkv` (the same frames in gray without loss: label x 80),
`background.png` (the empty background), `audio.flac`, `truth.npz` (see `TRUTH`) and optionally
`phones.json`. The first 10/11 of the frames are the training split, the rest the validation split.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from cuda_kernels.arrays import BOOL, F32, I16, I64, U8
from models.partial_files import atomic_write
from models.time_base import FRAME_RATE_HZ, FRAME_SAMPLES

from .arrays import Kind, read_npz
from .errors import FileError
from .sounds import PHONES, Phone, parse_phones

VIDEO_FILE, MASKS_FILE, BACKGROUND_FILE = "video.mp4", "masks.mkv", "background.png"
SOUND_FILE, TRUTH_FILE, PHONES_FILE = "audio.flac", "truth.npz", "phones.json"
BACKGROUND, HEAD, NECK, CLOTHES = range(4)
LABEL_STEP = 80
TRUTH = {
    "landmarks": Kind((None, 68, 3)),  # head space, dm
    "landmarks_2d": Kind((None, 68, 2)),  # px
    "c2w": Kind((None, 4, 4)),  # camera to head space
    "focal": Kind(()),  # px
    "cx": Kind(()),
    "cy": Kind(()),
}
_NO_LABEL = 255
_LABELS = np.full(256, _NO_LABEL, np.uint8)
_LABELS[np.arange(CLOTHES + 1) * LABEL_STEP] = np.arange(CLOTHES + 1)
_MAX_SKEW = 1e-2  # of a rotation against its transpose
_MAX_DISTANCE_DM = 1e6
_MAX_TIME_ERROR_S = 0.008  # a container may count in whole ms
_PREPARE = "prepare the set anew"
_GIVE = "give the folder of a speaker's whole set"


class SpeakerDataError(FileError):
    """A speaker's set that cannot be used."""


def training_frames(total: int) -> int:
    """Returns the size of the training split: the first 10/11 of a video's frames; the rest validates."""
    return total * 10 // 11


def read_truth(folder: Path, *names: str) -> dict[str, F32]:
    """Returns the ground truth, arrays of `truth.npz` as float32: all of `TRUTH` or those named.

    Raises:
        SpeakerDataError: the file is absent or broken, or an array is missing, of another shape or length,
            or not finite; or a pose is not rigid.
    """
    path = folder / TRUTH_FILE
    kinds = {name: TRUTH[name] for name in names or TRUTH}
    truth = read_npz(path, kinds, SpeakerDataError, _PREPARE)
    lengths = {name: len(array) for name, array in truth.items() if array.ndim}
    first = next(iter(lengths), "")
    for name, length in lengths.items():
        if length != lengths[first]:
            expected = f"{lengths[first]} frames, as {first} has"
            raise SpeakerDataError(path, name, expected, length, _PREPARE)
    if "focal" in truth and not truth["focal"] > 0:
        raise SpeakerDataError(path, "focal", "more than 0 px", truth["focal"], _PREPARE)
    if "c2w" in truth:
        wrong = np.flatnonzero(~_rigid(truth["c2w"]))
        if len(wrong):
            expected = "a rotation and a position within 1e6 dm over 0 0 0 1"
            raise SpeakerDataError(path, f"c2w of frame {wrong[0]}", expected, "another matrix", _PREPARE)
    return truth


def _rigid(poses: F32) -> BOOL:
    """Returns which of the matrices (T, 4, 4) are a rotation and a position (T,)."""
    rotation = poses[:, :3, :3].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        unit = np.abs(rotation.transpose(0, 2, 1) @ rotation - np.eye(3)).max(axis=(1, 2)) <= _MAX_SKEW
        turned = np.linalg.det(rotation) > 0
    last = np.abs(poses[:, 3] - [0, 0, 0, 1]).max(axis=1) <= _MAX_SKEW
    placed = np.abs(poses[:, :3, 3]).max(axis=1) <= _MAX_DISTANCE_DM
    found: BOOL = unit & turned & last & placed
    return found


def read_background(folder: Path) -> U8:
    """Returns the empty background, (S, S, 3) RGB.

    Raises:
        SpeakerDataError: there is none, or it is not square.
    """
    path = folder / BACKGROUND_FILE
    if not path.is_file():
        raise SpeakerDataError(path, "", "the empty background", "no such file", _GIVE)
    try:
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    except cv2.error:  # more pixels than it allows
        picture = None
    if picture is None:
        raise SpeakerDataError(path, "", "the empty background", "no picture that can be read", _PREPARE)
    height, width = picture.shape[:2]
    if height != width:
        raise SpeakerDataError(path, "size", "a square", f"{width} x {height} pixels", _PREPARE)
    return np.ascontiguousarray(picture[..., ::-1]).astype(np.uint8, copy=False)


def read_sound(folder: Path, frames: int) -> I16:
    """Returns the sound of `frames` frames, (640 * frames,), padded with silence by at most one frame.

    Raises:
        FileError: it is absent, undecodable, or of another length.
    """
    from .media import read_pcm  # PyAV, which frames that are in memory already do not need

    path = folder / SOUND_FILE
    pcm = read_pcm(path)
    samples = FRAME_SAMPLES * frames
    if abs(len(pcm) - samples) > FRAME_SAMPLES:
        expected = f"{samples} samples for the {frames} frames of {TRUTH_FILE}"
        way_out = "sound and landmarks are not of one recording"
        raise SpeakerDataError(path, "length", expected, len(pcm), way_out)
    return np.pad(pcm, (0, max(0, samples - len(pcm))))[:samples]


def read_phones(folder: Path) -> tuple[Phone, ...] | None:
    """Returns the phones with their times; None without `phones.json`.

    Raises:
        SpeakerDataError: the file is there, but broken.
    """
    path = folder / PHONES_FILE
    if not path.is_file():
        return None
    field = ""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        field = "phones"
        return parse_phones(content.get(field) if isinstance(content, dict) else None)
    except (OSError, ValueError, RecursionError) as error:
        way_out = "or leave the file out"
        raise SpeakerDataError(path, field, f"{PHONES} under phones", error, way_out) from error


def read_pictures(folder: Path, rows: I64, *, frames: int, size_px: int) -> Iterator[U8]:
    """Yields the pictures (size_px, size_px, 3) RGB at ascending `rows` of a video of `frames` frames.

    Raises:
        FileError: the video is absent or undecodable, has another rate, size or number of frames.
    """
    yield from _frames_at(folder / VIDEO_FILE, "rgb24", rows, frames, size_px)


def read_labels(folder: Path, rows: I64, *, frames: int, size_px: int) -> Iterator[U8]:
    """Yields the labels (size_px, size_px), `BACKGROUND` to `CLOTHES`, at ascending `rows` of the masks.

    Raises:
        FileError: as `read_pictures`; or a pixel is no label, as after a lossy codec.
    """
    path = folder / MASKS_FILE
    masks = _frames_at(path, "gray", rows, frames, size_px)
    for row, mask in zip(rows, masks, strict=True):
        labels: U8 = _LABELS[mask]
        if labels.max() == _NO_LABEL:
            got = f"{mask[labels == _NO_LABEL][0]}"
            way_out = "encode the masks without loss, in full range"
            raise SpeakerDataError(path, f"frame {row}", "0, 80, 160 and 240 alone", got, way_out)
        yield labels


def write_speaker_set(
    folder: Path,
    *,
    pictures: Iterable[U8],
    labels: Iterable[U8],
    background: U8,
    truth: Mapping[str, F32],
    pcm: I16 | None = None,
    phones: Iterable[Phone] | None = None,
    crf: int = 14,
) -> None:
    """Writes a speaker's set, each file whole or not at all.

    Args:
        folder: Made where it is not there.
        pictures: (S, S, 3) RGB of each frame.
        labels: (S, S) of each frame, `BACKGROUND` to `CLOTHES`.
        background: (S, S, 3) RGB.
        truth: The arrays of `TRUTH`.
        pcm: 16 kHz mono; no sound is written without.
        phones: With their times.
        crf: H.264's constant rate factor; 0 is lossless.
    """
    from .media import write_flac, write_video

    folder.mkdir(parents=True, exist_ok=True)
    codec, pixel_format = ("libx264", "yuv420p") if crf else ("libx264rgb", "rgb24")
    with atomic_write(folder / VIDEO_FILE) as path:
        write_video(path, pictures, "rgb24", codec=codec, pixel_format=pixel_format, crf=crf)
    with atomic_write(folder / MASKS_FILE) as path:
        masks = (LABEL_STEP * mask for mask in labels)
        write_video(path, masks, "gray", codec="ffv1", pixel_format="gray")
    with atomic_write(folder / BACKGROUND_FILE) as path:
        path.write_bytes(cv2.imencode(".png", background[..., ::-1])[1].tobytes())
    with atomic_write(folder / TRUTH_FILE) as path:
        arrays: dict[str, Any] = {name: truth[name] for name in TRUTH}
        np.savez(path, **arrays)
    if pcm is not None:
        with atomic_write(folder / SOUND_FILE) as path:
            write_flac(path, pcm)
    if phones is not None:
        with atomic_write(folder / PHONES_FILE) as path:
            path.write_text(json.dumps({"phones": list(phones)}), encoding="utf-8")


def _frames_at(
    path: Path, pixel_format: Literal["rgb24", "gray"], rows: I64, frames: int, size_px: int
) -> Iterator[U8]:
    """Yields the pictures of a video at `rows`; reads it to its end, to check all of it."""
    from .media import to_picture, video_frames

    wanted = set(rows.tolist())
    as_many = f"{frames}, as {TRUTH_FILE} has"
    count, first_s = 0, 0.0
    for row, frame in enumerate(video_frames(path)):
        if row == frames:
            raise SpeakerDataError(path, "frames", as_many, "more", _PREPARE)
        first_s = _check_time(path, row, frame.time, first_s)
        count += 1
        if row in wanted:
            if (frame.height, frame.width) != (size_px, size_px):
                got = f"{frame.width} x {frame.height}"
                raise SpeakerDataError(path, f"frame {row}", f"{size_px} x {size_px} pixels", got, _PREPARE)
            yield to_picture(path, frame, pixel_format)
    if count < frames:
        raise SpeakerDataError(path, "frames", as_many, f"{count}", _PREPARE)


def _check_time(path: Path, row: int, time_s: float | None, first_s: float) -> float:
    """Returns the first frame's time; refuses a frame whose time is not that of 25 fps."""
    way_out = f"convert the video to {FRAME_RATE_HZ} fps and {_PREPARE}"
    if time_s is None:
        got = "frames without a time"
        raise SpeakerDataError(path, "frame rate", f"{FRAME_RATE_HZ} a second", got, way_out)
    if row == 0:
        return time_s
    passed_s = time_s - first_s
    if abs(passed_s - row / FRAME_RATE_HZ) > _MAX_TIME_ERROR_S:
        rate = f"{row / passed_s:.4g} a second" if passed_s > 0 else "frames out of order"
        got = f"{rate} (frame {row} comes after {passed_s:.3f} s)"
        raise SpeakerDataError(path, "frame rate", f"{FRAME_RATE_HZ} a second", got, way_out)
    return first_s
