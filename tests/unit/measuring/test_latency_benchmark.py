"""The latency benchmark without browser and server: lags by content, figures from a record, the table."""

import base64
import json
import shutil
import sys
import wave

import numpy as np
import pytest
from bundle_factory import write_tiny_bundle
from tiny_corpus import opening_of
from tiny_corpus import sound_of as sound_of_opening

from benchmarks import chromium, latency
from benchmarks.content_lag import (
    PEAK_AT_LEAST,
    SOUND_RATE_HZ,
    HeardSound,
    LipsByFile,
    Offset,
    Signal,
    Yardstick,
    box_around,
    lips_yardstick,
    natural_lead,
    offsets,
    opening,
    rows_apart,
)
from benchmarks.latency_figures import (
    DROPPED,
    FRAME_RATE,
    BenchmarkError,
    churn_figures,
    content_figures,
    frames_between,
    growth_ms_per_minute,
    heard_sound,
    lips_signal,
    session_figures,
    slope,
    spread,
    table,
    verdicts,
)
from benchmarks.server_process import ServerError, ServerProcess, Usage
from models.speaker import load_speaker
from preparation.media import write_flac

STAGES = ["uplink", "render", "display"]


# Signals of a mouth that speaks -----------------------------------------------------------------------


def syllables(seed, seconds):
    """Returns a function of time: three to five bumps a second, of uneven height and length."""
    random = np.random.default_rng(seed)
    at = np.cumsum(random.uniform(0.2, 0.35, round(seconds * 6)))
    width, height = random.uniform(0.04, 0.09, len(at)), random.uniform(0.3, 1.0, len(at))

    def speak(times_s):
        distance = (np.asarray(times_s)[:, None] - at) / width
        return (height * np.exp(-0.5 * distance**2)).sum(1)

    return speak


def lips_of(speak, *, lag_s, start_s=0.0, seconds=20.0, seed=0):
    """Returns lips as a screen of 60 Hz shows them, on a head that sways."""
    ideal = start_s + np.arange(round(seconds * 25)) / 25
    shown = np.ceil((ideal + lag_s) * 60) / 60
    noise = 0.02 * np.random.default_rng(seed).standard_normal(len(ideal))
    return Signal(times_s=shown, values=speak(ideal) + 0.8 * np.sin(0.7 * ideal) + noise)


def sound_of(speak, *, lag_s, start_s=0.0, seconds=20.0, seed=1):
    """Returns a track that carries noise as loud as the bumps, in pieces of 10 ms."""
    count = round(seconds * SOUND_RATE_HZ) // 480 * 480
    times_s = start_s + np.arange(count) / SOUND_RATE_HZ
    level = np.interp(times_s, times_s[::96], speak(times_s[::96]))
    samples = 0.3 * level * np.random.default_rng(seed).uniform(-1, 1, count)
    pieces = count // 480
    return HeardSound(
        samples=samples.astype(np.float32),
        lengths=np.full(pieces, 480),
        times_s=start_s + lag_s + np.arange(pieces) * 0.01,
    )


def yardstick_of(speak, *, start_s=0.0, seconds=20.0):
    return Yardstick(start_s, 0.04, speak(start_s + np.arange(round(seconds * 25)) / 25))


@pytest.mark.parametrize("lag_s", [0.0, 0.137, 0.3333, 1.25, 1.99])
def test_lips_are_found_within_a_fraction_of_a_frame(lag_s):
    speak = syllables(3, 25)
    found = yardstick_of(speak).lag_of(lips_of(speak, lag_s=lag_s).between(2.0, 19.0))
    shown_later_s = 0.5 / 60  # a screen shows a frame at its next tick, half a tick later on average
    assert found.lag_s == pytest.approx(lag_s + shown_later_s, abs=0.004)
    assert found.peak > 0.95


@pytest.mark.parametrize("lag_s", [0.0215, 0.3, 0.7123])
def test_sound_is_found_within_two_milliseconds(lag_s):
    speak = syllables(4, 25)
    microphone = sound_of(speak, lag_s=0.0)
    received = sound_of(speak, lag_s=lag_s, seed=9).loudness().between(2.0, 19.0)
    found = microphone.yardstick().lag_of(received)
    assert found.lag_s == pytest.approx(lag_s, abs=0.002)
    assert found.peak > 0.9


def test_where_the_clock_begins_changes_nothing():
    speak = syllables(5, 1040)
    found = yardstick_of(speak, start_s=1003.0171).lag_of(
        lips_of(speak, lag_s=0.3, start_s=1000.0, seconds=30).between(1006, 1020)
    )
    assert found.lag_s == pytest.approx(0.3083, abs=0.004)


def test_a_delay_put_into_the_sound_moves_the_offset_by_as_much():
    speak = syllables(6, 35)
    microphone = sound_of(speak, lag_s=0.0, seconds=30)
    received = sound_of(speak, lag_s=0.35, seconds=30, seed=2)
    lips, lips_by_file = lips_of(speak, lag_s=0.32, seconds=30), yardstick_of(speak, seconds=30)

    def found(sound):
        return offsets(
            lips=lips,
            sound=sound.loudness(),
            lips_yardstick=lips_by_file,
            sound_yardstick=microphone.yardstick(),
        )

    plain, delayed = found(received), found(received.later(0.1))
    assert len(plain) == 3
    for before, after in zip(plain, delayed, strict=True):
        assert before.sure
        assert before.lips_behind_sound_ms == pytest.approx(-30 + 1000 / 120, abs=5)
        assert after.lips_behind_sound_ms - before.lips_behind_sound_ms == pytest.approx(-100, abs=2)
        assert after.microphone_to_glass_ms == before.microphone_to_glass_ms


def test_a_face_that_says_something_else_gives_no_figure():
    microphone = sound_of(syllables(7, 25), lag_s=0.0)
    found = offsets(
        lips=lips_of(syllables(8, 25), lag_s=0.3),
        sound=sound_of(syllables(7, 25), lag_s=0.3, seed=5).loudness(),
        lips_yardstick=yardstick_of(syllables(7, 25)),
        sound_yardstick=microphone.yardstick(),
    )
    assert all(offset.lips_peak < PEAK_AT_LEAST < offset.sound_peak for offset in found)
    figures = content_figures(found)
    assert figures["lips_behind_sound_ms"] is None
    assert figures["microphone_to_glass_ms"] is None
    assert "too unlike" in figures["note"]


def test_a_still_face_and_no_face_give_peaks_of_zero():
    speak = syllables(9, 25)
    still = Signal(times_s=np.arange(0, 20, 0.04), values=np.full(500, 7.0))
    nothing = Signal(times_s=np.zeros(0), values=np.zeros(0))
    for lips in (still, nothing):
        (offset, *_) = offsets(
            lips=lips,
            sound=sound_of(speak, lag_s=0.3, seed=5).loudness(),
            lips_yardstick=yardstick_of(speak),
            sound_yardstick=sound_of(speak, lag_s=0.0).yardstick(),
        )
        assert offset.lips_peak == 0.0
        assert not offset.sure


def test_a_signal_without_change_and_a_short_yardstick_are_refused():
    with pytest.raises(ValueError, match="expected one that changes, got 100 moments"):
        yardstick_of(syllables(1, 25)).lag_of(Signal(times_s=np.arange(100) / 25, values=np.ones(100)))
    with pytest.raises(ValueError, match=r"at least 6 s, got 4.0 s"):
        yardstick_of(syllables(1, 25), seconds=4)


# Sound as a tap writes it down --------------------------------------------------------------------------


def test_a_tap_says_when_its_sound_began_and_refuses_gaps():
    track = sound_of(syllables(2, 12), lag_s=5.0, seconds=10)
    jitter_s = np.random.default_rng(0).uniform(-0.003, 0.003, len(track.times_s))
    shaken = HeardSound(samples=track.samples, lengths=track.lengths, times_s=track.times_s + jitter_s)
    assert shaken.start_s() == pytest.approx(5.0, abs=0.001)
    torn = track.times_s.copy()
    torn[600:] += 0.04
    with pytest.raises(ValueError, match="without a gap, got one that is 40 ms off"):
        HeardSound(samples=track.samples, lengths=track.lengths, times_s=torn).start_s()
    with pytest.raises(ValueError, match="without a gap"):
        HeardSound(samples=np.zeros(0, np.float32), lengths=np.zeros(0, int), times_s=np.zeros(0)).start_s()


def test_loudness_takes_its_times_from_the_pieces():
    lengths = np.array([480, 960, 480])
    track = HeardSound(
        samples=np.full(1920, 0.25, np.float32), lengths=lengths, times_s=np.array([1.0, 1.012, 1.031])
    )
    loudness = track.loudness()
    assert loudness.times_s == pytest.approx([1.0, 1.005, 1.012, 1.017, 1.022, 1.027, 1.031, 1.036])
    assert loudness.values == pytest.approx(np.full(8, 0.5))


def test_what_a_page_tells_of_its_tap_is_read():
    samples = np.array([0, 16384, -32768], "<i2")
    track = heard_sound({"samples": base64.b64encode(samples.tobytes()).decode(), "stamps": [[3, 1500.5]]})
    assert track.samples.tolist() == [0.0, 0.5, -1.0]
    assert track.lengths.tolist() == [3]
    assert track.times_s.tolist() == [1.5005]
    assert len(heard_sound({"samples": "", "stamps": []}).samples) == 0


# Lips -------------------------------------------------------------------------------------------------


def face(gap_px, *, x=40, y=30):
    picture = np.full((90, 130), 160, np.uint8)
    picture[y : y + 6, x : x + 50] = 120
    picture[y + 6 : y + 6 + gap_px, x : x + 50] = 40
    picture[y + 6 + gap_px : y + 14 + gap_px, x : x + 50] = 120
    return picture


def test_the_wider_the_mouth_the_more_rows_differ_wherever_it_lies():
    openings = [opening(face(gap), 4) for gap in (0, 2, 4, 8)]
    assert openings == sorted(openings)
    assert openings[0] < openings[1]
    assert opening(face(4, x=12, y=50), 4) == pytest.approx(opening(face(4), 4))
    assert opening(np.full((20, 20), 99, np.uint8), 4) == 0.0


def test_where_the_lips_are_looked_for():
    boxes = np.array([[186, 290, 282, 346], [222, 324, 318, 380]], np.int32)
    assert box_around(boxes) == (186, 290, 132, 90)
    assert (rows_apart(512), rows_apart(64)) == (4, 1)


def test_the_file_pipeline_draws_a_frame_for_each_of_the_sound(tmp_path):
    speaker = load_speaker(write_tiny_bundle(tmp_path / "Tiny"))
    lips = LipsByFile(speaker)
    try:
        speak = syllables(11, 7)
        track = sound_of(speak, lag_s=3.0, seconds=6.05)
        openings = np.array(list(lips.follow(track)))
    finally:
        lips.close()
    x, y, width, height = lips.box
    assert 0 <= x < x + width <= 512
    assert 0 <= y < y + height <= 512
    assert len(openings) == 151
    assert openings.std() > 0
    assert lips_yardstick(track, openings).start_s == pytest.approx(3.0)


# Figures ----------------------------------------------------------------------------------------------


def record_of(*, seconds=12.0, missing=(), fps=25, glass_ms=320.0):
    """Returns what a page would write down of a session that lacks some frames."""
    frames, latencies, presented = [], [], 0
    first_rtp = 0xFFFFFFFF - 3600 * 40  # it wraps on the way
    for number in range(round(seconds * fps)):
        if number in missing:
            continue
        presented += 1
        shown_ms = 5000 + 40 * number
        frames.append(
            [(first_rtp + 3600 * number) % 2**32, shown_ms, presented, None if number == 7 else 3.0]
        )
        known = None if number < 5 else glass_ms
        latencies.append([shown_ms, known, 30.0 if known else None, 20.0, 10.0])
    telemetry = [[5000 + 200 * n, n // 5, 192 if n < 20 else 128, 0.25] for n in range(round(seconds * 5))]
    readings = [
        {
            "at_ms": 5000 + 500 * n,
            "sound_playout_unix_ms": 10_000 + 500 * n if n > 2 else 0,
            "picture_playout_unix_ms": 10_012 + 500 * n if n > 2 else None,
            "sound_samples": 24_000 * n,
            "concealed_samples": 240 * n,
            "sound_buffer_s": 24_000 * n * 0.035,
            "sound_emitted": 24_000 * n,
            "picture_buffer_s": 0.1 * n,
            "picture_emitted": 10 * n,
            "frames_dropped": n // 10,
            "freezes": 0,
            "device_delay_s": 24_000 * n * 0.03,
            "device_samples": 24_000 * n,
        }
        for n in range(round(seconds * 2))
    ]
    return {
        "state": "connected",
        "stages": STAGES,
        "click_ms": 4400.0,
        "reconnections": 0,
        "hello": {"codec": "H264", "delay_ms": 240.0, "lookahead_ms": 160.0},
        "frames": frames,
        "latencies": latencies,
        "telemetry": telemetry,
        "readings": readings,
        "takes": [],
    }


def offset(behind_ms=-12.0, *, peak=0.9):
    return Offset(
        microphone_to_glass_ms=330.0 + behind_ms, microphone_to_ear_ms=330.0, lips_peak=peak, sound_peak=0.95
    )


def test_a_whole_session_becomes_figures():
    found = session_figures(record_of(), 5000, 17_000, content_figures([offset()]))
    assert found["first_frame_s"] == pytest.approx(0.6)
    assert found["fps"] == pytest.approx(25, abs=0.1)
    assert (found["frames_expected"], found["frames_presented"], found["dropped_percent"]) == (299, 299, 0.0)
    assert (found["render_px"], found["drawn_share"]) == ([128, 192], 0.25)
    assert found["dropped_by_server"] == 11
    assert found["dropped_by_browser"] == 2
    assert found["stages_ms"]["uplink"] == {"p50": 30.0, "p95": 30.0}
    assert list(found["stages_ms"]) == STAGES
    assert found["microphone_to_glass_ms"] == {"p50": 320.0, "p95": 320.0}
    assert found["lips_behind_sound_by_reports_ms"] == -12
    assert found["concealed_percent"] == pytest.approx(1)
    assert found["sound_buffer_ms"] == pytest.approx(35)
    assert found["picture_buffer_ms"] == pytest.approx(10)
    assert found["sound_device_ms"] == pytest.approx(30)


def test_frames_that_never_came_are_counted_by_media_time():
    missing = set(range(100, 103)) | {200}
    found = session_figures(record_of(missing=missing), 5000, 17_000, content_figures([]))
    assert found["frames_expected"] == 299
    assert found["frames_presented"] == 295
    assert found["dropped_percent"] == pytest.approx(100 * 4 / 299)
    assert DROPPED.verdict(found["dropped_percent"]) == "fail"


def test_a_stream_that_stops_does_not_keep_its_frame_rate():
    found = session_figures(record_of(seconds=6), 5000, 17_000, content_figures([]))
    assert found["fps"] == pytest.approx(12.5, abs=0.1)
    with pytest.raises(BenchmarkError, match="10 frames came, its state is connected"):
        session_figures(record_of(seconds=0.4), 5000, 17_000, content_figures([]))


def test_timestamps_wrap():
    assert frames_between(2**32 - 3600, 3600) == 2
    assert frames_between(90_000, 90_000) == 0


def test_unknown_values_are_left_out_of_a_spread():
    assert spread(np.array([np.nan, 1.0, 3.0])) == {"p50": 2.0, "p95": pytest.approx(2.9)}
    assert spread(np.array([np.nan])) == {"p50": None, "p95": None}


def test_growth_is_that_of_the_medians_and_no_spike_moves_it():
    times_s = np.arange(0, 600, 0.04)
    latencies_ms = 320 + 0.5 * times_s / 60
    latencies_ms[::7] = np.nan
    latencies_ms[2000:2200] = 4000
    assert growth_ms_per_minute(times_s, latencies_ms) == pytest.approx(0.5, abs=0.01)
    assert growth_ms_per_minute(times_s[:499], latencies_ms[:499]) is None
    assert growth_ms_per_minute(times_s[:3], np.full(3, np.nan)) is None
    assert slope(np.array([1.0, 1.0]), np.array([2.0, 3.0])) is None


def test_content_is_told_only_if_most_windows_are_sure():
    found = content_figures([offset(-10), offset(-30), offset(-12), offset(900, peak=0.3)])
    assert found["lips_behind_sound_ms"] == -12
    assert found["lips_behind_sound_farthest_ms"] == -30
    assert found["microphone_to_glass_ms"] == 318
    assert (found["sure_windows"], found["windows"], found["note"]) == (3, 4, "")
    unsure = content_figures([offset(), offset(peak=0.3)])
    assert unsure["lips_behind_sound_ms"] is None
    assert unsure["lips_peak"] == pytest.approx(0.6)
    assert content_figures([], "no mouth")["note"] == "no mouth"


def test_lips_that_could_not_be_measured_are_left_out():
    lips = lips_signal({"frames": [[3600, 80.0, 2, 4.0], [0, 40.0, 1, 5.0], [7200, 120.0, 3, None]]})
    assert lips.times_s.tolist() == [0.04, 0.08]
    assert lips.values.tolist() == [5.0, 4.0]
    assert len(lips_signal({"frames": []})) == 0


def test_what_remains_is_counted_from_the_second_round():
    usages = [
        Usage(cpu_s=n, rss_mb=size, threads=8 + (n == 3), open_files=12)
        for n, size in enumerate([250.0, 300.0, 301.0, 302.0])
    ]
    found = churn_figures(usages, [20.0, 40.0, 60.0, 80.0], 18.0)
    assert found["rss_mb"] == [300.0, 301.0, 302.0]
    assert found["growth_mb"] == 2.0
    assert found["slope_mb_per_minute"] == pytest.approx(3.0)
    assert found["threads"] == [8, 9]
    assert found["rounds"] == 4


# The table --------------------------------------------------------------------------------------------


def figures_of(sessions=1, **changes):
    session = session_figures(record_of(), 5000, 17_000, content_figures([offset()]))
    return {
        "date": "2030-01-02",
        "machine": "2 cores of a machine",
        "versions": {"Chromium": "1.2"},
        "speaker": "May",
        "audio": "a.wav",
        "seconds": 12.0,
        "ready_first_s": 9.0,
        "ready_warm_s": 2.0,
        "sessions": [session] * sessions,
        "cpu": {"server_per_stream": 0.8, "chromium_per_stream": 0.5, "others": 0.1},
        "churn": None,
        "faults": 0,
        "verdicts": {},
        **changes,
    }


def test_a_goal_is_met_missed_or_unknown():
    assert FRAME_RATE.verdict(24.75) == "pass"
    assert FRAME_RATE.verdict(24.7) == "fail"
    assert DROPPED.verdict(1.0) == "fail"
    assert DROPPED.verdict(None) == DROPPED.verdict(float("nan")) == "unknown"
    assert (str(FRAME_RATE), str(DROPPED)) == (">= 24.75", "< 1 %")


def test_the_table_sets_goals_beside_figures():
    lines = table(figures_of()).splitlines()
    assert lines[0] == "May says a.wav, 12 s, 2030-01-02"
    found = {line.strip().split("  ")[0]: line for line in lines[2:]}
    assert found["median"].endswith("320 ms  [< 500 ms: pass]")
    behind = "-12 ms (0: as in a video file; farthest -12; before the output device +18)"
    assert behind in found["lips behind the sound"]
    assert "not measured (in a video file too" in found["lips ahead of the sound by nature"]
    assert found["lips behind the sound"].endswith("[< 40 ms: pass]")
    assert "judged from 300 s on" in found["growth"]
    assert "first start 9.00 s" in found["ready after"]
    assert sum("not measured" in line for line in lines if "growth" not in line) == 1


def test_a_lead_of_the_lips_is_judged_like_a_lag():
    session = session_figures(record_of(), 5000, 17_000, content_figures([offset(-60)]))
    assert verdicts(figures_of(sessions=0) | {"sessions": [session]})["lips behind the sound"] == "fail"
    session = session_figures(record_of(), 5000, 17_000, content_figures([], "no mouth"))
    found = figures_of(sessions=0) | {"sessions": [session]}
    assert verdicts(found)["lips behind the sound"] == "unknown"
    assert "no mouth" in table(found)


def test_the_lead_that_motion_has_by_nature_is_told_and_not_judged():
    content = content_figures([offset()], natural_lead_ms=72.4)
    found = figures_of(sessions=0) | {"sessions": [session_figures(record_of(), 5000, 17_000, content)]}
    assert "lips ahead of the sound by nature" not in verdicts(found)
    assert "+72 ms (in a video file too; in no figure here)" in table(found)


def test_motion_that_learnt_a_lead_shifts_no_lag_and_is_told_by_the_bundle_alone(tmp_path):
    speaker = load_speaker(write_tiny_bundle(tmp_path / "Tiny"))
    opening = opening_of(5, 200)
    write_flac(tmp_path / "voice.flac", sound_of_opening(opening, 180.0))
    plain = natural_lead(speaker, tmp_path / "voice.flac")
    assert plain.lead_ms == pytest.approx(0, abs=25)
    speak = syllables(6, 35)
    microphone = sound_of(speak, lag_s=0.0, seconds=30)
    (found, *_) = offsets(
        lips=lips_of(lambda times_s: speak(times_s + 0.08), lag_s=0.35, seconds=30),
        sound=sound_of(speak, lag_s=0.35, seconds=30, seed=2).loudness(),
        lips_yardstick=yardstick_of(lambda times_s: speak(times_s + 0.08), seconds=30),
        sound_yardstick=microphone.yardstick(),
    )
    assert found.lips_behind_sound_ms == pytest.approx(1000 / 120, abs=5)


def test_a_long_run_is_judged_by_its_growth():
    assert "growth" not in verdicts(figures_of())
    assert verdicts(figures_of(seconds=600.0))["growth"] == "unknown"


def test_several_sessions_have_a_block_each():
    text = table(figures_of(sessions=2))
    assert [line.strip() for line in text.splitlines() if line.startswith(" s") or line == " server"] == [
        "session 1",
        "session 2",
        "server",
    ]
    assert verdicts(figures_of(sessions=2))["session 2: frames dropped"] == "pass"


def test_coming_and_going_is_judged_by_what_remains():
    usages = [Usage(cpu_s=0, rss_mb=size, threads=8, open_files=12) for size in (280, 300.0, 303.0, 306.0)]
    churn = churn_figures(usages, [20.0, 40.0, 60.0, 80.0], 18.0)
    found = figures_of(sessions=0, cpu=None, churn=churn)
    assert verdicts(found)["memory (RSS)"] == "fail"
    assert "+6.0 MB, from 300 to 306" in table(found)


def test_figures_are_json():
    assert json.loads(json.dumps(figures_of()))["sessions"][0]["codec"] == "H264"


# What the run stands on ---------------------------------------------------------------------------------


def write_wav(path, seconds, rate_hz=16_000, channels=2):
    with wave.open(str(path), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate_hz)
        wave_form = (8000 * np.sin(np.arange(round(seconds * rate_hz)) * 0.2)).astype("<i2")
        out.writeframes(np.repeat(wave_form, channels).tobytes())
    return path


def test_a_recording_is_made_fit_for_the_fake_microphone(tmp_path):
    latency.write_microphone(write_wav(tmp_path / "a.wav", 1.234), tmp_path / "microphone.wav")
    with wave.open(str(tmp_path / "microphone.wav")) as written:
        assert (written.getnchannels(), written.getsampwidth(), written.getframerate()) == (1, 2, 48_000)
        assert written.getnframes() % 480 == 0
        assert written.getnframes() / 48_000 == pytest.approx(1.24, abs=0.011)
        samples = np.frombuffer(written.readframes(48_000), "<i2")
    assert np.abs(samples).max() == pytest.approx(8000, rel=0.05)


def test_a_recording_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "MAX_RECORDING_S", 0.5)
    with pytest.raises(ValueError, match=r"--audio .*a.wav: expected at most 0 s"):
        latency.write_microphone(write_wav(tmp_path / "a.wav", 1), tmp_path / "microphone.wav")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--seconds", "3"], "--seconds: expected at least 10, got 3"),
        (["--sessions", "0"], "--sessions: expected at least 1, got 0"),
        (["--delay-sound", "2000"], "--delay-sound: expected 0 to 1000 ms, got 2000"),
        (["--churn", "-1"], "--churn and --stay: expected seconds above zero"),
        (["--speaker", "Nobody"], "Nobody"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as refused:
        latency.main(arguments)
    assert refused.value.code == 2
    assert complaint in capsys.readouterr().err


class NoDownloads:
    """Playwright without a browser of its own."""

    class chromium:  # noqa: N801 - Playwright's name
        executable_path = "/nowhere/chrome"


def test_a_missing_chromium_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(chromium.BrowserError, match="apt-get install chromium"):
        chromium.executable(NoDownloads())
    found = tmp_path / "google-chrome"
    found.touch()
    monkeypatch.setattr(shutil, "which", lambda name: str(found) if name == found.name else None)
    assert chromium.executable(NoDownloads()) == found


def test_a_missing_playwright_is_one_line_and_exit_code_2(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    bundle, audio = write_tiny_bundle(tmp_path / "Tiny"), write_wav(tmp_path / "a.wav", 1)
    assert latency.main(["--speaker", str(bundle), "--audio", str(audio)]) == 2
    complaint = capsys.readouterr().err
    assert "pip install" in complaint
    assert complaint.count("\n") == 1


def test_a_server_that_does_not_start_says_why(tmp_path):
    server = ServerProcess(["--no-such-flag"], tmp_path / "server.log")
    with pytest.raises(ServerError, match=r"exit code 2: .*--no-such-flag"), server:
        pass
    assert server.faults() == 0
    server.stop()
