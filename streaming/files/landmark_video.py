"""The motion as a video: 68 numbered points a frame, as GeneFace's visualiser draws them.

Eyes are red, the mouth green, all else and the numbers blue, on white. It shows what the networks made of the
sound before, and without, any rendering.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cuda_kernels.arrays import F32, I64, U8
from models.landmark_filter import EYES, MOUTH, POINTS

from ..pipeline.i420 import I420Converter
from .audio_file import AudioFile
from .video_writer import VideoOutput

SIZE_PX = 512
PX_PER_DM = 256
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
_DISC_WIDTHS_PX = (1, 5, 5, 7, 5, 5, 1)  # row by row, a filled circle of radius 3 as OpenCV draws it
# Three pixels wide, five high: an octal digit a row, from the top; 4, 2 and 1 are left, middle and right.
_DIGITS = ("75557", "26227", "71747", "71717", "55711", "74717", "74757", "71122", "75757", "75717")
_DIGIT_ADVANCE_PX = 4
_NUMBER_AT_PX = 5  # right of the point, which is often of the number's own colour


def plain_face() -> F32:
    """Returns (68, 3) float32 dm, y up, the mean at the origin: a face of nobody, its mouth closed.

    It stands in where a bundle has no mean face. Its measures are those of a grown-up's.
    """

    def arc(points: int, x: float, y: float, width: float, height: float, start: int, end: int) -> F32:
        angle = np.radians(np.linspace(start, end, points))
        return np.stack([x + width * np.cos(angle), y + height * np.sin(angle)], axis=1).astype(np.float32)

    face = np.zeros((POINTS, 3), np.float32)
    face[:, :2] = np.concatenate(
        [
            arc(17, 0, 0.25, 0.7, 0.95, 180, 360),  # jaw
            *(arc(5, x, 0.45, 0.2, 0.09, 160, 20) for x in (-0.32, 0.32)),  # brows
            np.linspace((0, 0.3), (0, 0), 4),  # bridge of the nose
            arc(5, 0, -0.1, 0.14, 0.04, 180, 360),  # nostrils
            *(arc(6, x, 0.27, 0.14, 0.05, 180, -120) for x in (-0.32, 0.32)),  # eyes
            arc(12, 0, -0.4, 0.25, 0.09, 180, -150),  # lips, outside
            arc(8, 0, -0.4, 0.2, 0.005, 180, -135),  # lips, inside
        ]
    )
    face -= face.mean(0)
    return face


def landmark_px(landmarks: F32, mean_face: F32) -> I64:
    """Returns where the points of one or more frames lie, in pixels, x to the right and y UP.

    Args:
        landmarks: (..., 68, 3) float32, ten times the offset from the mean face.
        mean_face: (68, 3) float32 dm, about the origin.

    Returns:
        (..., 68, 2) int64; [0, 512) is inside the picture. Rounded towards zero, as GeneFace does.
    """
    position = landmarks[..., :2] / np.float32(10) + mean_face[:, :2]  # (..., 68, 2) dm
    return (position * PX_PER_DM + SIZE_PX // 2).astype(np.int64)


class LandmarkDrawing:
    """Draws the points of a frame and their numbers."""

    def __init__(self, mean_face: F32) -> None:
        """Lays out what is drawn about each point.

        Args:
            mean_face: (68, 3) float32 dm, about the origin.
        """
        self._mean_face = np.asarray(mean_face, np.float32).reshape(POINTS, 3)
        colours = np.full((POINTS, 3), BLUE, np.uint8)
        colours[EYES], colours[MOUTH] = RED, GREEN
        disc = _disc()
        numbers = [_number(point) for point in range(POINTS)]
        dots = POINTS * len(disc)
        # Every pixel of ink: its point, its place about it (x, y down) and its colour. Numbers lie on top.
        self._of = np.repeat(np.arange(POINTS), len(disc))
        self._of = np.append(self._of, np.repeat(np.arange(POINTS), [len(number) for number in numbers]))
        self._about = np.concatenate([np.tile(disc, (POINTS, 1)), *numbers])
        self._ink = np.full((len(self._of), 3), BLUE, np.uint8)
        self._ink[:dots] = colours[self._of[:dots]]

    def draw(self, landmarks: F32) -> U8:
        """Returns (512, 512, 3) uint8 RGB of landmarks (68, 3); points outside the picture are cut off."""
        at = landmark_px(landmarks, self._mean_face)
        at[:, 1] = SIZE_PX - 1 - at[:, 1]
        x, y = (at[self._of] + self._about).T
        inside = (x >= 0) & (x < SIZE_PX) & (y >= 0) & (y < SIZE_PX)
        picture = np.full((SIZE_PX, SIZE_PX, 3), 255, np.uint8)
        picture[y[inside], x[inside]] = self._ink[inside]  # of several at one place the last stays
        return picture


class LandmarkVideo(VideoOutput):
    """A video of a recording's motion, with its sound; leaving it before `publish` leaves nothing on disk."""

    def __init__(self, path: Path, *, mean_face: F32 | None, audio: AudioFile, crf: int) -> None:
        """Checks the name; nothing is written before the context is entered.

        Args:
            path: the video's name.
            mean_face: (68, 3) float32 dm; without one, `plain_face` stands in.
            audio: the recording; it sounds beside the pictures.
            crf: quality of the video.

        Raises:
            InputError: an unknown ending, or a place that cannot be written to.
        """
        super().__init__(path, size_px=SIZE_PX, sound=audio.sound_format, crf=crf, flag="--landmark-video")
        self._drawing = LandmarkDrawing(plain_face() if mean_face is None else mean_face)
        self._converter = I420Converter(width_px=SIZE_PX, height_px=SIZE_PX)
        self._sound = audio.sound()

    def write(self, landmarks: F32) -> None:
        """Adds one frame (68, 3) in the speaker's domain, ten times the offset in decimetres, and its sound.

        Raises:
            InputError: the recording holds a sample that is no number.
        """
        self.write_picture(self._converter.convert(self._drawing.draw(landmarks)))
        self.write_sound_until(self.picture_s, self._sound)

    def complete(self) -> int:
        """Writes the rest of the sound, ends the file and returns its size in bytes."""
        self.write_sound_until(float("inf"), self._sound)
        return super().complete()


def _disc() -> I64:
    """Returns (P, 2) places x, y of a point's pixels about its centre."""
    rows = enumerate(_DISC_WIDTHS_PX, start=-(len(_DISC_WIDTHS_PX) // 2))
    return np.array([(x, y) for y, width in rows for x in range(-(width // 2), width // 2 + 1)])


def _number(point: int) -> I64:
    """Returns (P, 2) places x, y of a number's pixels about its point: upwards and to the right."""
    return np.array(
        [
            (_NUMBER_AT_PX + place * _DIGIT_ADVANCE_PX + column, row - 4)
            for place, digit in enumerate(str(point))
            for row, bits in enumerate(_DIGITS[int(digit)])
            for column in range(3)
            if int(bits) & 4 >> column
        ]
    )
