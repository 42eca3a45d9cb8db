import ctypes.util
import importlib
import sys
import threading

import numpy as np
import pytest
from fake_portaudio import ALSO_HEADSET, HEADSET, SPEAKERS, WEBCAM, FakePortAudio
from manual_clock import ManualClock

from streaming.desktop import microphone as local_microphone
from streaming.desktop.microphone import LocalMicrophone, find_device, input_devices, list_devices
from streaming.errors import InputError, Stopped


def install(monkeypatch, portaudio):
    monkeypatch.setitem(sys.modules, "sounddevice", portaudio)
    return portaudio


@pytest.fixture
def devices(monkeypatch):
    return install(monkeypatch, FakePortAudio(SPEAKERS, HEADSET, WEBCAM, ALSO_HEADSET, default=2))


def opened(monkeypatch, *, device=WEBCAM, refuses=(), clock=None):
    portaudio = install(monkeypatch, FakePortAudio(device, default=0, refuses=refuses))
    microphone = LocalMicrophone(find_device("default"), clock=clock or ManualClock())
    microphone.start()
    return portaudio, microphone


def tone(seconds, rate_hz):
    return (0.5 * np.sin(2 * np.pi * 200 * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def read_all(microphone):
    pieces = []
    while True:
        try:
            pieces.append(microphone.read(0))
        except TimeoutError:
            return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


# Devices --------------------------------------------------------------------------------------------


def test_devices_with_an_input_are_listed(devices):
    assert list_devices().splitlines() == [
        "   no.  name                         interface  channels  rate",
        "   1    Headset: USB Audio (hw:1,0)  ALSA       2         48000 Hz",
        "*  2    Webcam                       ALSA       1         16000 Hz",
        "   3    Headset                      JACK       1         44100 Hz",
    ]


def test_without_a_device_the_list_says_so(monkeypatch):
    install(monkeypatch, FakePortAudio(SPEAKERS))
    assert list_devices().startswith("no microphone was found on this machine; plug one in")
    with pytest.raises(InputError, match="--mic: no microphone was found"):
        find_device("default")


@pytest.mark.parametrize(
    ("wanted", "index"),
    [("default", 2), ("1", 1), ("webcam", 2), ("USB audio", 1), ("headset", 3), ("JACK", 3)],
)
def test_a_device_is_found_by_number_or_part_of_its_name(devices, wanted, index):
    assert find_device(wanted).index == index


@pytest.mark.parametrize("wanted", ["0", "7", "Trumpet"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(devices, wanted):
    with pytest.raises(InputError) as caught:
        find_device(wanted)
    assert f"got {wanted!r}; there are 1: Headset: USB Audio (hw:1,0), ALSA; 2: Webcam" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_fits_more_than_one_is_refused_with_those(devices):
    with pytest.raises(InputError, match=r"'head' .* 1: .*; 3: "):
        find_device("head")


def test_without_a_stated_default_an_interface_has_one(monkeypatch):
    portaudio = install(monkeypatch, FakePortAudio(HEADSET, WEBCAM))
    portaudio.query_hostapis = lambda: ({"name": "ALSA", "default_input_device": 1},)
    assert find_device("default").name == "Webcam"
    portaudio.query_hostapis = lambda: ({"name": "ALSA", "default_input_device": -1},)
    assert find_device("default").index == 0


def test_without_portaudio_one_line_names_the_package(monkeypatch):
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(InputError, match="apt-get install libportaudio2") as caught:
        list_devices()
    assert "\n" not in str(caught.value)


def test_without_the_package_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(InputError, match="pip install sounddevice"):
        input_devices()


def test_sounddevice_is_not_imported_until_it_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert importlib.reload(local_microphone)


# Sound ----------------------------------------------------------------------------------------------


def test_a_device_that_lets_us_is_opened_at_16_khz_mono(monkeypatch):
    portaudio, microphone = opened(monkeypatch)
    given = portaudio.stream.given
    assert (given["samplerate"], given["channels"], given["blocksize"]) == (16000, 1, 320)
    assert (given["dtype"], given["latency"], given["device"]) == ("float32", "low", 0)
    said = tone(0.2, 16000)
    portaudio.stream.hear(said)
    assert np.array_equal(microphone.read(0), said[:320])
    assert np.array_equal(read_all(microphone), said[320:])
    assert microphone.dropped == microphone.overflows == 0
    microphone.close()


def test_a_device_that_insists_is_opened_its_way_and_resampled(monkeypatch):
    refuses = [(16000, 2), (16000, 1), (48000, 2)]
    portaudio, microphone = opened(monkeypatch, device=HEADSET, refuses=refuses)
    assert portaudio.asked == [*refuses, (48000, 1)]
    assert portaudio.stream.given["blocksize"] == 960
    pieces = []
    for block in tone(1.0, 48000).reshape(-1, 960):
        portaudio.stream.hear(block)
        pieces.append(read_all(microphone))
    heard = np.concatenate(pieces)
    assert 15900 <= len(heard) <= 16000  # the filter keeps its tail
    shift = max(range(64), key=lambda n: float(heard[n + 800 : n + 8800] @ tone(1.0, 16000)[800:8800]))
    assert shift < 32
    assert heard[shift + 800 : shift + 8800] == pytest.approx(tone(1.0, 16000)[800:8800], abs=0.03)
    microphone.close()


def test_the_microphones_channels_are_mixed(monkeypatch):
    portaudio, microphone = opened(monkeypatch, device=HEADSET)
    assert portaudio.asked == [(16000, 2)]
    portaudio.stream.hear(np.stack((np.full(320, 0.5), np.full(320, 0.1)), 1))
    assert microphone.read(0) == pytest.approx(np.full(320, 0.3), abs=1e-6)
    microphone.close()


@pytest.mark.parametrize("refuses", [[], [(16000, 2), (16000, 1)]], ids=["16 kHz", "48 kHz"])
def test_of_channels_that_cancel_the_louder_is_heard(monkeypatch, refuses):
    portaudio, microphone = opened(monkeypatch, device=HEADSET, refuses=refuses)
    rate_hz = portaudio.stream.given["samplerate"]
    said = tone(1.0, rate_hz)
    heard = []
    for block in np.split(np.stack((-0.8 * said, said), 1), 50):
        portaudio.stream.hear(block)
        heard.append(read_all(microphone))
    assert np.std(np.concatenate(heard)[3200:]) == pytest.approx(np.std(said), rel=0.02)
    microphone.close()


def test_a_device_that_cannot_be_opened_is_refused_in_one_line(monkeypatch):
    with pytest.raises(InputError, match=r"0: Webcam, ALSA .*Invalid sample rate") as caught:
        opened(monkeypatch, refuses=[(16000, 1)])
    assert "\n" not in str(caught.value)


def test_sound_that_nobody_reads_makes_room_for_new_sound(monkeypatch):
    portaudio, microphone = opened(monkeypatch)
    said = np.arange(320 * 30, dtype=np.float32) / 10000
    portaudio.stream.hear(said)
    assert microphone.dropped == 10  # 600 ms came, 400 ms may wait
    assert np.array_equal(read_all(microphone), said[320 * 10 :])
    microphone.close()


def test_sound_that_portaudio_lost_is_counted(monkeypatch):
    portaudio, microphone = opened(monkeypatch)
    portaudio.stream.hear(tone(0.04, 16000), overflow=True)
    portaudio.stream.hear(tone(0.04, 16000))
    assert microphone.overflows == 2
    microphone.close()


def test_a_device_that_ends_says_so_after_what_it_gave(monkeypatch):
    portaudio, microphone = opened(monkeypatch)
    portaudio.stream.hear(tone(0.02, 16000))
    portaudio.stream.__exit__()
    assert len(microphone.read(0)) == 320
    with pytest.raises(InputError, match="Webcam, ALSA stopped"):
        microphone.read(0)
    microphone.close()


def test_a_device_that_falls_silent_without_a_word_is_gone_too(monkeypatch):
    clock = ManualClock()
    portaudio, microphone = opened(monkeypatch, clock=clock)
    clock.time_s = 5.9
    with pytest.raises(TimeoutError):
        microphone.read(0)  # a headset may still be waking up
    portaudio.stream.hear(tone(0.02, 16000))
    microphone.read(0)
    clock.time_s = 7.8
    with pytest.raises(TimeoutError):
        microphone.read(0)
    clock.time_s = 7.9
    with pytest.raises(InputError, match="stopped giving sound"):
        microphone.read(0)
    microphone.close()


def test_closing_wakes_who_reads_and_lets_the_device_go(monkeypatch):
    portaudio, microphone = opened(monkeypatch)
    got = []
    reader = threading.Thread(target=lambda: got.extend(microphone.blocks()))
    reader.start()
    portaudio.stream.hear(tone(0.02, 16000))
    microphone.close()
    microphone.close()
    reader.join(10)
    assert not reader.is_alive()
    assert len(got) <= 1
    assert not portaudio.stream.running
    portaudio.stream.hear(tone(0.02, 16000))  # a callback that was on its way disturbs nobody
    with pytest.raises(Stopped):
        microphone.read(0)


def test_closing_unstarted_and_starting_twice(monkeypatch):
    portaudio, microphone = opened(monkeypatch)
    with pytest.raises(RuntimeError, match="twice"):
        microphone.start()
    microphone.close()
    other = LocalMicrophone(microphone.device)
    other.close()
    with pytest.raises(RuntimeError, match="closed"):
        other.start()
    assert portaudio.asked == [(16000, 1)]
