"""Plates of a tiny speaker whose reader does as a test tells it: `import plate_files`."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import plate_factory
from patience import PATIENCE_S

from cuda_kernels.masks import BlockMask


class StandInPlateFiles:
    """Gives pictures once they are let through, and fails where it is told to."""

    def __init__(self, *, size_px: int, poses: int, masks_fail=None, gate: threading.Event | None = None):
        self.size_px, self.poses = size_px, poses
        self.fail_at: int | None = None
        self.failure: BaseException | None = None
        self.read = 0  # times that the pictures were
        self._masks_fail, self._gate = masks_fail, gate

    @property
    def picture_bytes(self) -> int:
        return self.poses * self.size_px * self.size_px * 3 // 2

    def masks(self):
        if self._masks_fail is not None:
            raise self._masks_fail
        covered = plate_factory.covered(self.size_px, self.poses)
        return tuple(BlockMask(size_px=self.size_px, covered=mask) for half in covered for mask in half)

    def pictures(self):
        self.read += 1
        for number, picture in enumerate(plate_factory.pictures(self.size_px, self.poses)):
            if self._gate is not None:
                assert self._gate.wait(PATIENCE_S)
            if number == self.fail_at:
                raise self.failure
            yield picture


def plated(speaker, **reader):
    """Returns the speaker with plates that a stand-in reads."""
    files = StandInPlateFiles(size_px=speaker.image_size_px, poses=len(speaker.poses), **reader)
    return dataclasses.replace(speaker, plates=files)


def plates_that_fail(speaker, failure, at):
    """Returns the speaker with plates whose reader fails at a frame."""
    speaker = plated(speaker)
    speaker.plates.fail_at, speaker.plates.failure = at, failure
    return speaker


def picture_of(pose: int, size_px: int) -> np.ndarray:
    """Returns the plate of a pose."""
    return plate_factory.pictures(size_px, pose + 1)[pose]
