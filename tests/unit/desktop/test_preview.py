import os
import sys

import numpy as np
import pygame
import pytest

from streaming.desktop.preview import PreviewWindow
from streaming.errors import InputError

GREY, RED = (126, 128, 128), (81, 90, 240)  # Y, U, V in BT.601, limited range


@pytest.fixture(autouse=True)
def no_screen_is_needed(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    yield
    pygame.display.quit()


@pytest.fixture
def window():
    with PreviewWindow(size_px=64, title="May") as opened:
        yield opened


def picture(colour, size_px=64):
    planar = np.empty((size_px * 3 // 2, size_px), np.uint8)
    planar[:size_px] = colour[0]
    planar[size_px : size_px * 5 // 4] = colour[1]
    planar[size_px * 5 // 4 :] = colour[2]
    return planar


def pixel(x, y):
    return tuple(pygame.display.get_surface().get_at((x, y)))[:3]


def press(key):
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key))


def test_a_picture_is_shown_at_its_size_in_its_colours(window):
    assert pygame.display.get_surface().get_size() == (64, 64)
    assert pixel(32, 32) == (0, 0, 0)
    window.show(picture(GREY))
    assert pixel(32, 32) == pytest.approx((128, 128, 128), abs=2)
    window.show(picture(RED))
    for x, y in ((0, 0), (63, 63), (32, 32)):
        assert pixel(x, y) == pytest.approx((255, 0, 0), abs=3)


def test_a_wider_window_shows_the_picture_as_a_square_in_the_middle(window):
    window.show(picture(RED))
    pygame.display.set_mode((160, 80), pygame.RESIZABLE)
    pygame.event.post(pygame.event.Event(pygame.VIDEORESIZE, size=(160, 80), w=160, h=80))
    assert window.poll()
    assert pixel(39, 40) == pixel(120, 40) == (0, 0, 0)
    for x, y in ((41, 1), (118, 78)):
        assert pixel(x, y) == pytest.approx((255, 0, 0), abs=3)


def test_a_window_drawn_together_to_nothing_still_lives(window):
    window.show(picture(RED))
    pygame.display.set_mode((160, 2), pygame.RESIZABLE)
    window.show(picture(RED))
    assert pixel(80, 1) == (0, 0, 0)
    assert window.poll()


def test_the_title_can_be_changed(window):
    assert pygame.display.get_caption()[0] == "May"
    window.set_title("May - 25 fps")
    assert pygame.display.get_caption()[0] == "May - 25 fps"


@pytest.mark.parametrize("key", [pygame.K_ESCAPE, pygame.K_q])
def test_esc_and_q_close_the_window(window, key):
    assert window.poll()
    press(pygame.K_a)
    assert window.poll()
    press(key)
    assert not window.poll()
    assert not pygame.display.get_init()


def test_a_window_closed_by_its_button_shows_nothing_more_and_does_not_fail(window):
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    assert not window.poll()
    window.show(picture(GREY))
    window.set_title("x")
    assert not window.poll()
    window.close()
    window.close()


def test_without_pygame_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[preview\]'"):
        PreviewWindow(size_px=64, title="May")


def none_named(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


def one_that_is_not_there(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "no such driver")


def only_memory(monkeypatch):  # what SDL takes where it finds nothing better
    monkeypatch.delenv("SDL_VIDEODRIVER")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(pygame.display, "get_driver", lambda: "offscreen")
    monkeypatch.setattr(pygame.display, "init", lambda: None)


@pytest.mark.parametrize("screen", [none_named, one_that_is_not_there, only_memory])
def test_without_a_screen_one_line_says_so(monkeypatch, screen):
    screen(monkeypatch)
    with pytest.raises(InputError, match="--preview: no window can be opened: ") as caught:
        PreviewWindow(size_px=64, title="May")
    assert "\n" not in str(caught.value)


def test_the_greeting_of_pygame_is_not_printed(window):
    assert os.environ["PYGAME_HIDE_SUPPORT_PROMPT"]
