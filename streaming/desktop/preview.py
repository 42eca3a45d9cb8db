"""A window that shows the speaker, through SDL; `pygame` is imported only when one is asked for."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from cuda_kernels.arrays import U8

from ..errors import InputError

_NO_SCREEN = frozenset({"offscreen", "dummy", "evdev"})  # what SDL falls back to where there is none


def open_pygame() -> ModuleType:
    """Returns the module `pygame` with its display ready.

    Raises:
        InputError: it is not installed, or there is no screen.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it greets on standard output
    try:
        pygame = importlib.import_module("pygame")
    except ImportError:
        raise InputError("--preview: pygame is not installed; pip install -e '.[preview]'") from None
    named = os.environ.get("SDL_VIDEODRIVER")
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not named and not any(os.environ.get(name) for name in screens):
        raise _no_screen("there is no screen")  # SDL would find that out too, and write of its search
    try:
        pygame.display.init()
        driver = str(pygame.display.get_driver())
    except pygame.error as error:
        raise _no_screen(str(error)) from None
    if driver in _NO_SCREEN and driver != named:
        pygame.display.quit()
        raise _no_screen("there is no screen")
    return pygame


def _no_screen(reason: str) -> InputError:
    return InputError(
        f"--preview: no window can be opened: {' '.join(reason.split())}; run it in a desktop session "
        "(on Linux, DISPLAY or WAYLAND_DISPLAY names it), or serve the page instead: leave --mic out"
    )


class PreviewWindow:
    """One window with square pictures, as large as fits into it. For the thread that opened it."""

    def __init__(self, *, size_px: int, title: str) -> None:
        """Opens the window, black.

        Args:
            size_px: side of the window to begin with; it can be dragged to any size.
            title: of the window.

        Raises:
            InputError: pygame is not installed, or there is no screen.
        """
        self._pygame = open_pygame()
        self._converter = _ScreenConverter()
        self._picture: U8 | None = None
        self._open = True
        try:
            self._pygame.display.set_mode((size_px, size_px), self._pygame.RESIZABLE)
        except self._pygame.error as error:
            self.close()
            raise _no_screen(str(error)) from None
        self._pygame.display.set_caption(title)

    def set_title(self, title: str) -> None:
        """Changes the title."""
        if self._open:
            self._pygame.display.set_caption(title)

    def show(self, picture: U8) -> None:
        """Shows a picture (size * 3 / 2, size) uint8 I420; its memory is kept until the next."""
        self._picture = picture
        if self._open:
            self._draw()

    def poll(self) -> bool:
        """Handles the window's events; returns False once it was closed, by Esc and q too."""
        if not self._open:
            return False
        pygame, redraw = self._pygame, False
        for event in pygame.event.get():
            leave = event.type == pygame.KEYDOWN and event.key in (pygame.K_ESCAPE, pygame.K_q)
            if leave or event.type == pygame.QUIT:
                self.close()
                return False
            redraw |= event.type in (pygame.VIDEORESIZE, pygame.VIDEOEXPOSE)
        if redraw:
            self._draw()
        return True

    def close(self) -> None:
        """Closes the window; a second time it does nothing."""
        if self._open:
            self._open = False
            self._pygame.display.quit()

    def __enter__(self) -> PreviewWindow:
        """Returns the open window."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def _draw(self) -> None:
        screen = self._pygame.display.get_surface()
        width_px, height_px = screen.get_size()
        side_px = min(width_px, height_px)
        screen.fill((0, 0, 0))
        if self._picture is not None and side_px >= 16:
            pixels = self._converter.convert(self._picture, side_px)
            image = self._pygame.image.frombuffer(pixels, (side_px, side_px), "BGRA")
            screen.blit(image, ((width_px - side_px) // 2, (height_px - side_px) // 2))
        self._pygame.display.flip()


class _ScreenConverter:
    """Scales and converts in one pass: 0.2 ms of a core at 512 pixels, where a texture saves nothing."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()  # keeps its filters as long as the sizes stay

    def convert(self, picture: U8, side_px: int) -> U8:
        """Returns (side, side, 4) uint8 BGRA, the order of most screens, of an I420 picture."""
        shown = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(picture, format="yuv420p"),
            width=side_px,
            height=side_px,
            format="bgra",
            src_colorspace=Colorspace.ITU601,
            dst_colorspace=Colorspace.ITU601,
            src_color_range=ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            interpolation=Interpolation.BILINEAR,
            threads=1,  # the raymarcher has the cores
        )
        return np.ascontiguousarray(shown.to_ndarray(), dtype=np.uint8)
