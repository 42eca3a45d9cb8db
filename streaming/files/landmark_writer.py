"""Landmark output: an .npz, written to a temporary file and renamed when it is complete."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zipfile
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import numpy.typing as npt

from cuda_kernels.arrays import F32
from models.landmark_filter import POINTS
from models.partial_files import PartialFile
from models.time_base import FRAME_RATE_HZ

from ..errors import InputError
from .video_writer import check_writable, writing_errors


class LandmarkOutput:
    """`landmarks` (T, 68, 3) float32, `mean_face` (68, 3) where the bundle has one, `fps`.

    Frames wait in a file on disk, not in memory, until their number is known.
    """

    def __init__(self, path: Path, *, mean_face: F32 | None) -> None:
        """Checks the name.

        Raises:
            InputError: an ending that is not .npz, or a place that cannot be written to.
        """
        if path.suffix.lower() != ".npz":
            raise InputError(
                file=str(path),
                expected="a name ending in .npz for --landmarks",
                got=path.suffix or "no ending",
                way_out="call it motion.npz",
            )
        check_writable(path, "--landmarks")
        self.path = path
        self._file = PartialFile(path)
        self._mean_face = mean_face
        self._frames = 0
        self._rows: IO[bytes] | None = None

    def __enter__(self) -> LandmarkOutput:
        """Opens the file that frames wait in."""
        with writing_errors(self.path):
            self._rows = tempfile.TemporaryFile(dir=self.path.parent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes what was not published."""
        self.discard()

    def write(self, landmarks: F32) -> None:
        """Adds one frame (68, 3) in the speaker's domain: ten times the offset, in decimetres."""
        assert self._rows is not None
        with writing_errors(self.path):
            self._rows.write(np.ascontiguousarray(landmarks, np.float32).tobytes())
        self._frames += 1

    def complete(self) -> None:
        """Writes the archive, still under a temporary name."""
        assert self._rows is not None
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._frames, POINTS, 3)}
        with writing_errors(self.path):
            self._rows.seek(0)
            with zipfile.ZipFile(self._file.part, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                with archive.open("landmarks.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    shutil.copyfileobj(self._rows, member, 1 << 20)
                small: dict[str, npt.NDArray[np.float32] | npt.NDArray[np.int64]] = {
                    "fps": np.array(FRAME_RATE_HZ)
                }
                if self._mean_face is not None:
                    small["mean_face"] = np.asarray(self._mean_face, np.float32)
                for name, array in small.items():
                    with archive.open(f"{name}.npy", "w") as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)

    def publish(self) -> None:
        """Renames the complete archive to its name."""
        with writing_errors(self.path):
            self._file.publish()

    def discard(self) -> None:
        """Closes and removes what is not published; does nothing a second time."""
        rows, self._rows = self._rows, None
        with contextlib.suppress(OSError):
            if rows is not None:
                rows.close()
        self._file.discard()
