"""Plates of a finished bundle: drawn, masked, encoded, and verified against pictures drawn whole.

For each pose of the path the picture is drawn with the mean of what the speaker's own motion makes of some
speech. Its masks cover where pictures differ from it under conditions that span that speech and, for the
frames of a blink, under a blink as well.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from safetensors.numpy import save
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]  # its stubs are a separate package

from cuda_kernels.arrays import BOOL, F32, U8
from cuda_kernels.compositing import compose_i420, rgb_to_i420
from cuda_kernels.cpu_raymarcher import CpuRaymarcher
from cuda_kernels.errors import InputError
from cuda_kernels.masks import BLOCK_PX, BlockMask, block_count
from cuda_kernels.scene import MAX_SIZE_PX
from models.bundle_files import MAX_FILE_BYTES, PLATE_MASKS_FILE, PLATE_VIDEO_FILE
from models.landmark_filter import EYES
from models.plates import MASK_KEY, PIXEL_FORMAT, decode, packed_masks
from models.speaker import Speaker, load_speaker
from models.time_base import FRAME_RATE_HZ
from preparation.media import read_pcm

from .bundle.head import psnr_db
from .bundle.writer import PLATES, PlateParts, put_plates, require_replaceable
from .students.offline_motion import OfflineMotion
from .students.slimming import conditions, still_landmarks, window_rows, with_blinks

log = logging.getLogger(__name__)

SPEECH_FILE = Path(__file__).with_name("hello.wav")
"""A sentence that spans what a speaker's face does; other recordings may be nothing but silence."""
MIN_FRAMES = FRAME_RATE_HZ  # of speech
MIN_PLATES_PSNR_DB = 45.0
PSNR, SHARE = f"{PLATES}psnr_db", f"{PLATES}share"

UNEXPLAINED = 0.02  # share of the landmarks' variance that the spanning conditions leave out
MAX_COMPONENTS = 8
REACH = 1.2  # times the extreme that the speech reaches along a component: other speech goes further
CHANGE_OF_255 = 8.0
"""Root mean square up to which a block's change is left out, if no block beside it changes by more.

Of May, on speech of other voices, the worst composite is at 53 dB with 8, 55 with 6 and 57 with 4, before the
video's loss, and 6, 8 and 12 % of the picture are drawn.
"""
MIN_NEIGHBOURS = 2  # of the eight around a block that change as well; fewer: nothing that is seen
POSES_A_MASK = 2  # every second pose is measured; between two of them, what either covers is drawn
MASK_SCALE = 2  # the masks are measured on pictures of half the size
CHECKED_FRAMES = 64
_WHOLE = "every picture of this speaker is drawn whole"
_GOLDEN = (5**0.5 - 1) / 2  # its multiples spread evenly over the speech, however many there are
MAX_THREADS = 64
_HEADER_BYTES = 1024  # of the file of masks, at most

CRF, PRESET, GOP_FRAMES = 6, "slow", 50
"""Of the video: nearly without loss, and short enough groups of pictures to be decoded side by side."""
_LIMITED_RANGE, _BT601 = 1, 6  # as ITU-T H.273 numbers them


class PlateExportError(InputError):
    """A speaker who can have no plates, or whose plates would be seen."""


def add_plates(path: Path, *, speech: tuple[Path, ...] = (), max_bytes: int | None = None) -> Speaker:
    """Returns the speaker of the bundle folder `path` after plates were made and put into it.

    All other files but speaker.json and the model card stay as they were. Where plates cannot be made, or the
    export is stopped, the bundle stays as it was.

    Args:
        path: of a bundle.
        speech: recordings to find out what speech changes, beside a packaged sentence.
        max_bytes: that the bundle may take with its plates.

    Raises:
        InputError: the bundle or the speech cannot be read, the speaker can have no plates, they do not show
            what drawing everything does, or they are too large.
    """
    require_replaceable(path)
    speaker = load_speaker(path)
    return put_plates(path, make_plates(speaker, speech=(SPEECH_FILE, *speech)), max_bytes=max_bytes)


def make_plates(speaker: Speaker, *, speech: Iterable[Path]) -> PlateParts:
    """Returns a speaker's plates, encoded and verified.

    Raises:
        PlateExportError: the speaker can have no plates, or a composite is below `MIN_PLATES_PSNR_DB`.
        MediaError: speech that cannot be read.
    """
    size_px, poses = speaker.image_size_px, len(speaker.poses)
    if size_px % 2 or size_px > MAX_SIZE_PX:
        expected = f"an even number up to {MAX_SIZE_PX} for plates"
        raise PlateExportError(field="image_size_px", expected=expected, got=f"{size_px}", way_out=_WHOLE)
    side = block_count(size_px)
    most = (MAX_FILE_BYTES[PLATE_MASKS_FILE] - _HEADER_BYTES) // (2 * side * -(-side // 8))
    if not 2 <= poses <= most:
        expected = f"a loop of 2 to {most} for plates"
        raise PlateExportError(field="poses", expected=expected, got=f"{poses}", way_out=_WHOLE)
    motion = OfflineMotion(speaker)
    tracks = [_track(speaker, motion, file) for file in speech]
    spanning = spanning_conditions(speaker, np.concatenate(tracks))
    seen = [with_blinks(speaker, track) for track in tracks]
    driven = np.concatenate([conditions(speaker, track) for track in seen])
    blinking = np.concatenate([_blinking(speaker, *pair) for pair in zip(tracks, seen, strict=True)])
    with closing(CpuRaymarcher(speaker.scene, threads=_cores())) as raymarcher:
        masks = _find_masks(raymarcher, speaker.poses, *spanning)
        video = _encode(_references(raymarcher, speaker.poses, spanning[0][0]), size_px)
        decoded = decode(video, Path(PLATE_VIDEO_FILE), size_px=size_px, poses=poses)
        worst_db = worst_psnr_db(
            raymarcher,
            speaker.poses,
            tqdm(decoded, total=poses, desc="check", unit="pose"),
            masks,
            driven,
            blinking,
            frames=CHECKED_FRAMES,
        )
    share = float(np.mean([mask.share for mask in masks[:poses]]))
    log.info("plates: %.1f MB, %.1f %% drawn, worst %.1f dB", len(video) / 1e6, 100 * share, worst_db)
    if not worst_db >= MIN_PLATES_PSNR_DB:
        expected = f"at least {MIN_PLATES_PSNR_DB:g} dB against pictures drawn whole"
        got, way_out = f"{worst_db:.1f} dB", "give more kinds of --speech, or go without plates"
        raise PlateExportError(field="plates", expected=expected, got=got, way_out=way_out)
    covered = np.array([mask.covered for mask in masks]).reshape(2, poses, side, side)
    content = save({MASK_KEY: packed_masks(covered)})
    return PlateParts(video=video, masks=content, verification={PSNR: worst_db, SHARE: share})


def worst_psnr_db(
    raymarcher: CpuRaymarcher,
    poses: F32,
    plates: Iterable[U8],
    masks: Sequence[BlockMask],
    driven: F32,
    blinking: BOOL,
    *,
    frames: int,
) -> float:
    """Returns the PSNR in dB of the worst composite, as I420, against the same picture drawn whole.

    Args:
        raymarcher: of the speaker.
        poses: (P, 4, 4), the path.
        plates: of each pose, (size * 3 / 2, size) uint8 I420.
        masks: of each pose, then of each during a blink.
        driven: (T, C) conditions of speech.
        blinking: (T,) whether a blink is in them.
        frames: how many pictures are compared, spread over the path and, out of step with it, the speech.
    """
    chosen = np.unique(np.linspace(0, len(poses) - 1, frames).astype(int)).tolist()
    worst_db = np.inf
    for pose, plate in enumerate(plates):
        if pose in chosen:
            row = int(_GOLDEN * pose % 1 * len(driven))
            mask = masks[pose + len(poses) * bool(blinking[row])]
            drawn = raymarcher.render(c2w=poses[pose], condition=driven[row], size_px=mask.size_px)
            apart = compose_i420(plate, drawn, mask).astype(np.float32) - rgb_to_i420(drawn)
            worst_db = min(worst_db, psnr_db([np.mean(np.square(apart / 255))]))
    return float(worst_db)


# Speech ---------------------------------------------------------------------------------------------


def _track(speaker: Speaker, motion: OfflineMotion, file: Path) -> F32:
    """Returns what the speaker's motion makes of a recording, as the live path has it but for blinks."""
    pcm = np.multiply(read_pcm(file), 1 / 32768, dtype=np.float32)
    track = still_landmarks(speaker, motion.landmarks(pcm))
    if len(track) < MIN_FRAMES:
        expected, got = (f"{frames / FRAME_RATE_HZ:g} s" for frames in (MIN_FRAMES, len(track)))
        raise PlateExportError(
            file=str(file),
            field="length",
            expected=f"at least {expected}",
            got=got,
            way_out="give longer speech",
        )
    return track


def _blinking(speaker: Speaker, still: F32, seen: F32) -> BOOL:
    """Returns (T,) whether a blink is in each frame's window of landmarks."""
    moved = (still != seen).any((1, 2))  # (T,)
    return np.asarray(moved[window_rows(speaker, len(moved))].any(1))


def spanning_conditions(speaker: Speaker, track: F32) -> tuple[F32, F32]:
    """Returns conditions between which speech moves the face (n, C), the mean first, and of a blink (2, C).

    They are of the mean plus and minus `REACH` times the extremes along the first principal components of the
    landmarks, and of the two faces of the speech whose lids are farthest apart, which move little beside the
    lips but are looked at; and of a blink's peak and half of it.

    Args:
        speaker: whose condition network is run; each face fills its window.
        track: landmarks (T, 68, 3), normalised, without blinks.
    """
    mean = track.mean(0)
    offsets = track - mean
    flat = offsets.reshape(len(track), -1)
    _, spread, ways = np.linalg.svd(flat, full_matrices=False)
    share = np.cumsum(spread**2) / max(1e-12, float(np.sum(spread**2)))
    count = min(MAX_COMPONENTS, int(np.searchsorted(share, 1 - UNEXPLAINED)) + 1)
    faces = [mean]
    for way in ways[:count]:
        along = flat @ way
        faces += [mean + REACH * extreme * way.reshape(mean.shape) for extreme in (along.min(), along.max())]
    eyes = offsets[:, EYES].reshape(len(track), -1)
    along = eyes @ np.linalg.svd(eyes, full_matrices=False)[2][0]
    faces += [mean + REACH * offsets[row] for row in (along.argmin(), along.argmax())]
    blink = speaker.blinks / speaker.motion.landmark_std
    peak = blink[np.abs(blink).sum((1, 2)).argmax()]

    def driven(faces: list[F32]) -> F32:
        return np.concatenate([conditions(speaker, face[None].astype(np.float32)) for face in faces])

    return driven(faces), driven([mean + peak, mean + peak / 2])


# Pictures -------------------------------------------------------------------------------------------


def _cores() -> int:
    affine = hasattr(os, "sched_getaffinity")
    return min(MAX_THREADS, len(os.sched_getaffinity(0)) if affine else os.cpu_count() or 1)


def _find_masks(raymarcher: CpuRaymarcher, poses: F32, spoken: F32, blinked: F32) -> list[BlockMask]:
    """Returns the mask of each pose, then of each during a blink; the path is a loop."""
    measured = range(0, len(poses), POSES_A_MASK)
    found = [
        _changed(raymarcher, poses[pose], spoken, blinked)
        for pose in tqdm(measured, desc="masks", unit="pose")
    ]
    covered = []
    for pose in range(len(poses)):
        before = pose // POSES_A_MASK
        after = before if pose % POSES_A_MASK == 0 else (before + 1) % len(found)
        covered.append(found[before] | found[after])
    size_px = raymarcher.scene.image_size_px
    return [BlockMask(size_px=size_px, covered=both[kind]) for kind in (0, 1) for both in covered]


def _changed(raymarcher: CpuRaymarcher, c2w: F32, spoken: F32, blinked: F32) -> BOOL:
    """Returns which blocks (2, n, n) of the full picture speech changes, and speech and a blink."""
    size_px = raymarcher.scene.image_size_px
    drawn_px, side, block_px = size_px // MASK_SCALE, block_count(size_px), BLOCK_PX // MASK_SCALE

    def drawn(condition: F32) -> F32:
        return raymarcher.render(c2w=c2w, condition=condition, size_px=drawn_px).astype(np.float32)

    first = drawn(spoken[0])
    largest = np.zeros((side, side), np.float32)
    beyond = side * block_px - drawn_px  # of the last block, outside the picture
    covered = []
    for driven in (spoken[1:], blinked):
        for condition in driven:
            square = np.square(drawn(condition) - first).mean(-1)
            blocks = np.pad(square, (0, beyond), mode="edge").reshape(side, block_px, side, block_px)
            largest = np.maximum(largest, blocks.mean((1, 3)))
        covered.append(_grown(largest))
    return np.stack(covered)


def _grown(largest: F32) -> BOOL:
    """Returns the blocks (n, n) to be drawn, of each block's largest mean square change."""
    above = (largest > CHANGE_OF_255**2).astype(np.uint8)
    around = cv2.filter2D(above, -1, np.ones((3, 3)), borderType=cv2.BORDER_CONSTANT)
    kept = above * (around > MIN_NEIGHBOURS).astype(np.uint8)
    return cv2.dilate(kept, np.ones((3, 3), np.uint8)).astype(bool)


def _references(raymarcher: CpuRaymarcher, poses: F32, condition: F32) -> Iterator[U8]:
    """Yields the picture of each pose as I420."""
    size_px = raymarcher.scene.image_size_px
    for c2w in tqdm(poses, desc="plates", unit="pose"):
        yield raymarcher.render_i420(c2w=c2w, condition=condition, size_px=size_px)


def _encode(pictures: Iterable[U8], size_px: int) -> bytes:
    """Returns a video of pictures (size * 3 / 2, size) uint8 I420, nearly without loss."""
    file = io.BytesIO()
    # Without the flag, two videos of the same pictures differ by a random number.
    with av.open(file, "w", format="matroska", options={"fflags": "bitexact"}) as out:
        options = {"crf": f"{CRF}", "preset": PRESET, "g": f"{GOP_FRAMES}"}
        stream = out.add_stream("libx264", rate=FRAME_RATE_HZ, options=options)
        stream.width = stream.height = size_px
        stream.pix_fmt = PIXEL_FORMAT
        context = stream.codec_context
        context.color_range = _LIMITED_RANGE
        context.colorspace = context.color_primaries = context.color_trc = _BT601
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format=PIXEL_FORMAT)
            frame.pts, frame.time_base = number, Fraction(1, FRAME_RATE_HZ)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()
