"""Plates of speakers in memory: read in the background, once a process, within a bound."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from cuda_kernels.arrays import U8
from cuda_kernels.masks import BlockMask
from models.plates import PlateError, PlateFiles
from models.speaker import Speaker

from .free_memory import free_memory_bytes

log = logging.getLogger(__name__)

MAX_DEFAULT_BYTES = 512 * 10**6
_FREE_PARTS = 4  # one of them is taken where nothing else is asked for
_JOIN_S = 5.0
_COUNTED_POSES = 8  # whose masks say how much is drawn at a size


class PlateMasks:
    """What is drawn over each plate, at any size; made when it is first asked for, and kept."""

    def __init__(self, masks: Sequence[BlockMask]) -> None:
        """Takes the masks at the plates' size: of each pose, then of each during a blink."""
        self.whole = masks
        self._poses = len(masks) // 2
        self._scaled: dict[tuple[int, int], BlockMask] = {}
        self._pixels: dict[int, float] = {}
        self.share = float(np.mean([mask.share for mask in masks[: self._poses]]))
        """Share of a picture that is drawn between blinks, in the mean."""

    def number(self, pose: int, blinking: bool) -> int:
        """Returns which of `whole` is drawn."""
        return pose + self._poses * blinking

    def at(self, number: int, size_px: int) -> BlockMask:
        """Returns a mask for a picture drawn at `size_px`; for any thread."""
        whole = self.whole[number]
        if size_px == whole.size_px:
            return whole
        scaled = self._scaled.get((number, size_px))
        if scaled is None:  # two threads may both make it, and it is the same
            scaled = self._scaled[number, size_px] = whole.at_size(size_px)
        return scaled

    def pixels(self, size_px: int) -> float:
        """Returns how many pixels are drawn at a size between blinks, in the mean.

        They do not follow its square: the smaller the picture, the more a mask reaches beyond what changes.
        """
        found = self._pixels.get(size_px)
        if found is None:
            poses = range(0, self._poses, -(-self._poses // _COUNTED_POSES))
            share = float(np.mean([self.at(pose, size_px).share for pose in poses]))
            found = self._pixels[size_px] = share * size_px**2
        return found


class PlateSource(Protocol):
    """The plates of a speaker."""

    masks: PlateMasks

    def picture(self, pose: int) -> U8 | None:
        """Returns a plate (size * 3 / 2, size) uint8 I420, None while it is not there."""


class BlankPlates:
    """Gray plates, to measure with what drawing over plates takes."""

    def __init__(self, masks: PlateMasks, *, size_px: int) -> None:
        """Takes the masks, and the plates' size."""
        self.masks = masks
        self._picture = np.full((size_px * 3 // 2, size_px), 128, np.uint8)

    def picture(self, pose: int) -> U8:
        """Returns the one there is."""
        return self._picture


class Plates:
    """The plates of one speaker: the masks at once, the pictures as soon as a thread has read them all.

    `PlateMemory.open` gives it; whoever got it closes it once.
    """

    def __init__(
        self,
        files: PlateFiles,
        *,
        name: str,
        masks: PlateMasks,
        pictures: U8,
        say: Callable[[str], None],
        give_back: Callable[[Plates], None],
    ) -> None:
        """Begins to read.

        Args:
            files: where the plates lie.
            name: of the speaker.
            masks: theirs.
            pictures: (P, size * 3 / 2, size) uint8, where they are read to.
            say: told in one line why they cannot be read.
            give_back: called by `close`.
        """
        self.files, self.masks = files, masks
        self.name = name
        self.failure = ""
        """Why they cannot be had; empty while they can."""
        self._say, self._give_back = say, give_back
        self._pictures: U8 | None = pictures
        self._size_px = pictures.shape[2]
        self._stopping = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read, name="geneface-plates", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether every plate is there."""
        return self._done.is_set() and self._pictures is not None

    @property
    def size_bytes(self) -> int:
        """Memory of the pictures."""
        pictures = self._pictures
        return 0 if pictures is None else pictures.nbytes

    @property
    def pictures(self) -> U8:
        """The plates (P, size * 3 / 2, size) uint8, once they are ready."""
        assert self.ready
        assert self._pictures is not None
        return self._pictures

    def picture(self, pose: int) -> U8 | None:
        """Returns a plate (size * 3 / 2, size) uint8 I420, None before all are there."""
        pictures = self._pictures
        return pictures[pose] if pictures is not None and self._done.is_set() else None

    def blank(self) -> BlankPlates:
        """Returns gray ones with the same masks."""
        return BlankPlates(self.masks, size_px=self._size_px)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Returns whether they are ready; waits until they are read or cannot be, at most so long."""
        self._done.wait(timeout_s)
        return self.ready

    def close(self) -> None:
        """Gives them back to the memory they came from."""
        self._give_back(self)

    def end(self) -> None:
        """Stops reading and lets the pictures go; frames that hold one keep it."""
        self._stopping = True
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            log.error("thread %s did not end within %.0f s", self._thread.name, _JOIN_S)
        self._pictures = None

    def _read(self) -> None:
        assert self._pictures is not None
        try:
            for place, picture in zip(self._pictures, self.files.pictures(), strict=True):
                if self._stopping:
                    return self._fail("closed before they were read")
                place[:] = picture
        except (PlateError, MemoryError) as error:
            self._fail(_reason(error))
            self._say(f"{self.name} is drawn without plates: {self.failure}")
        except Exception:  # a thread's outermost frame: the speaker speaks on without
            log.exception("reading the plates of %s failed, and that is a fault of the program", self.name)
            self._fail("reading them failed; the log says why")
            self._say(f"{self.name} is drawn without plates: {self.failure}")
        finally:
            self._done.set()

    def _fail(self, reason: str) -> None:
        self.failure, self._pictures = reason, None


def _reason(error: PlateError | MemoryError) -> str:
    if isinstance(error, PlateError):
        return str(error)
    return "there is no memory for them; free some, or go without with --plates-mb 0"


class PlateMemory:
    """The plates of all speakers of a process, each once, within one bound; thread-safe."""

    def __init__(
        self,
        limit_mb: int | None = None,
        *,
        free_bytes: Callable[[], int | None] = free_memory_bytes,
    ) -> None:
        """Takes a bound.

        Args:
            limit_mb: of all pictures together, in MB; 0: none are kept; None: a quarter of what is free when
                a speaker is opened, at most `MAX_DEFAULT_BYTES`.
            free_bytes: says what is free.
        """
        self._limit_bytes = None if limit_mb is None else limit_mb * 1_000_000
        self._free_bytes = free_bytes
        self._lock = threading.Lock()  # guards the rest
        self._users: dict[Plates, int] = {}  # how many have each open

    @property
    def size_bytes(self) -> int:
        """Memory of all pictures together; never waits for a speaker that is being opened."""
        return sum(plates.size_bytes for plates in list(self._users))

    def open(self, speaker: Speaker, *, say: Callable[[str], None]) -> Plates | None:
        """Returns a speaker's plates, which are being read unless they were; None where it has to do without.

        Args:
            speaker: whose.
            say: told in one line why they are left out, where that is no choice.
        """
        files = speaker.plates
        if files is None or self._limit_bytes == 0:
            return None
        with self._lock:
            known = (plates for plates in self._users if plates.files == files and not plates.failure)
            plates = next(known, None) or self._begin(files, speaker, say)
            if plates is not None:
                self._users[plates] = self._users.get(plates, 0) + 1
            return plates

    def _begin(self, files: PlateFiles, speaker: Speaker, say: Callable[[str], None]) -> Plates | None:
        room = self._room_bytes()
        if files.picture_bytes > room:
            say(
                f"{speaker.name} is drawn without plates: expected at most {max(room, 0) // 10**6} MB, got "
                f"{-(-files.picture_bytes // 10**6)}; free some memory, or give more with --plates-mb"
            )
            return None
        size_px = speaker.image_size_px
        try:
            return Plates(
                files,
                name=speaker.name,
                masks=PlateMasks(files.masks()),
                pictures=np.empty((len(speaker.poses), size_px * 3 // 2, size_px), np.uint8),
                say=say,
                give_back=self._take_back,
            )
        except (PlateError, MemoryError) as error:
            say(f"{speaker.name} is drawn without plates: {_reason(error)}")
            return None

    def _take_back(self, plates: Plates) -> None:
        with self._lock:
            if plates not in self._users:
                return
            self._users[plates] -= 1
            if self._users[plates]:
                return
            del self._users[plates]
        plates.end()

    def _room_bytes(self) -> int:
        taken, limit = self.size_bytes, self._limit_bytes
        if limit is None:
            free = self._free_bytes()
            limit = MAX_DEFAULT_BYTES
            if free is not None:  # what is taken was free once
                limit = min(limit, (free + taken) // _FREE_PARTS)
        return limit - taken
