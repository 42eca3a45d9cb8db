"""Recordings, opened by FFmpeg as one file each."""

from __future__ import annotations

import functools
from pathlib import Path

import av
from av.container import InputContainer

# What is no recording but a list of further files or addresses, or a script. Such a list may have no end, or
# wait for one that never comes: a pipe, a live stream.
_LISTS = (
    "applehttp avisynth concat concatf dash hls image2 image2pipe imf lavfi mlv mpegts_rtp rtp rtsp sap sbg "
    "sdp vapoursynth vobsub webm_dash_manifest"
)


def open_recording(path: Path) -> InputContainer:
    """Returns PyAV's container of one file with sound or pictures in it.

    Raises:
        ArgumentError: a playlist, another list of files, or a script; also for some damaged headers.
        FFmpegError, ValueError, OSError: nothing that FFmpeg opens.
    """
    # Without "file:" a colon in a name would end a protocol's; titles in no known encoding do not matter.
    return av.open(
        f"file:{path}",
        metadata_errors="ignore",
        options={"protocol_whitelist": "file", "format_whitelist": _formats()},
    )


@functools.cache
def _formats() -> str:
    """Returns the names of all formats but lists, as FFmpeg takes them."""
    known = {name for names in av.formats_available for name in names.split(",")}
    return ",".join(sorted(known - set(_LISTS.split())))
