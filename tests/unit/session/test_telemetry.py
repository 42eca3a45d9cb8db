"""What a page and the metrics are told of a session."""

import logging
from types import SimpleNamespace

import pytest
from manual_clock import ManualClock
from session_parts import LOOKAHEAD_FRAMES, START_S, START_UNIX_S, make_loaded_speaker, make_schedule

from streaming.errors import NetworkFailureError
from streaming.session.drawing_pace import WINDOW_S, DrawingPace
from streaming.session.frame_log import FrameLog, FrameRecord
from streaming.session.metrics import Metrics
from streaming.session.telemetry import Telemetry

ID, LABEL = "abcdef-unguessable-id", "abcdef"


class Setup:
    def __init__(self):
        self.clock, self.metrics, self.schedule = ManualClock(START_S), Metrics(), make_schedule()
        self.microphone = SimpleNamespace(
            depth_ms=25.04,
            target_ms=60.0,
            packets_lost=3,
            packets_late=1,
            fec_packets=2,
            concealed_ms=40.2,
            shortened_ms=15.0,
            lengthened_ms=20.0,
        )
        self.downlink = SimpleNamespace(
            resolution=SimpleNamespace(size_px=128, note=""),
            pace=DrawingPace(),
            frames=FrameLog(),
            rendered=0,
            drawn_px=128,
            drawn_share=0.1421,
            dropped={"skipped": 0, "late": 0, "bandwidth": 0},
            sent_fps=lambda now_s: 24.987,
        )
        self.telemetry = Telemetry(
            make_loaded_speaker(),
            self.schedule,
            SimpleNamespace(microphone=self.microphone, level_db=-30.04),
            self.downlink,
            session_id=ID,
            label=LABEL,
            metrics=self.metrics,
            log=logging.getLogger("test"),
            clock=self.clock,
        )
        self.pipeline = self.telemetry.pipeline = SimpleNamespace(network_failures={})
        self.peer = self.telemetry.peer = SimpleNamespace(
            codec=SimpleNamespace(name="VP8"), microphone=None, video=None
        )

    def draw(self, fps, seconds):
        for k in range(round(fps * seconds)):
            self.downlink.pace.picture_drawn(self.clock.time_s + k / fps)
        self.clock.time_s += seconds

    def sample(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"geneface_{name}", labels)


@pytest.fixture
def setup():
    return Setup()


def record(index, *, arrived_s=START_S + 0.01):
    return FrameRecord(
        index=index,
        rtp=3600 * index + 7,
        sound_timestamp=1920 * index,
        arrived_s=arrived_s,
        buffered_s=START_S + 0.02,
        windowed_s=START_S + 0.18,
        finished_s=START_S + 0.19,
        encoded_s=START_S + 0.20,
        sent_s=START_S + 0.24,
    )


def test_hello(setup):
    setup.clock.time_s += 2.0
    assert setup.telemetry.hello() == {
        "type": "hello",
        "session_id": ID,
        "speaker": "Tiny",
        "server_ms": pytest.approx(START_UNIX_S * 1000 + 2000),
        "fps": 25,
        "image_size_px": 128,
        "render_px": 128,
        "render_sizes_px": [128, 96],
        "lookahead_ms": LOOKAHEAD_FRAMES * 40.0,
        "delay_ms": setup.schedule.delay_ms,
        "codec": "VP8",
    }


def test_a_message_holds_the_figures_of_the_moment(setup):
    message, last = setup.telemetry.message(-1)
    assert last == -1
    assert message == {
        "type": "telemetry",
        "server_ms": pytest.approx(START_UNIX_S * 1000),
        "fps": 24.99,
        "render_px": 128,
        "drawn_share": 0.142,
        "render_note": "",
        "delay_ms": setup.schedule.delay_ms,
        "notes": [],
        "frames_rendered": 0,
        "frames_dropped": {"skipped": 0, "late": 0, "bandwidth": 0},
        "microphone": {
            "depth_ms": 25.0,
            "target_ms": 60.0,
            "lost": 3,
            "concealed_ms": 40,
            "level_db": -30.0,
        },
        "frames": [],
    }


def test_frames_are_told_once_with_the_wall_time_of_each_stage(setup):
    for index in (4, 5):
        setup.downlink.frames.add(record(index))
    message, last = setup.telemetry.message(3)
    assert last == 5
    assert [frame["rtp"] for frame in message["frames"]] == [3600 * 4 + 7, 3600 * 5 + 7]
    times_ms = {"arrived": 10, "buffered": 20, "windowed": 180, "rendered": 190, "encoded": 200, "sent": 240}
    for name, since_ms in times_ms.items():
        assert message["frames"][0][f"{name}_ms"] == pytest.approx(START_UNIX_S * 1000 + since_ms, abs=0.02)
    assert message["frames"][0]["captured_ms"] is None  # without a microphone
    assert setup.telemetry.message(last)[0]["frames"] == []


def test_the_time_of_capture_is_known_by_the_peer_s_sender_reports(setup):
    setup.peer.microphone = SimpleNamespace(captured_unix_s=lambda timestamp: timestamp / 48000)
    setup.downlink.frames.add(record(4, arrived_s=None))
    [frame] = setup.telemetry.message(-1)[0]["frames"]
    assert frame["captured_ms"] == 1920 * 4 / 48
    assert frame["arrived_ms"] is None


def test_a_slow_machine_is_told_and_logged_once_and_so_is_its_end(setup, caplog):
    caplog.set_level("INFO")
    setup.draw(7.0, 2 * WINDOW_S)
    for _ in range(2):
        [note] = setup.telemetry.message(-1)[0]["notes"]
        assert "about 7 pictures a second" in note
        assert "--render-size" not in note  # auto already
    setup.draw(25.0, 2 * WINDOW_S)
    for _ in range(2):
        assert setup.telemetry.message(-1)[0]["notes"] == []
    slow, well = caplog.records
    assert (slow.levelname, well.levelname) == ("WARNING", "INFO")
    assert "pictures a second of 25, at 128 px" in slow.getMessage()
    assert "draws every picture again" in well.getMessage()


def test_a_network_that_fails_is_told_while_it_does_counted_each_time_and_logged_once(setup, caplog):
    failure = NetworkFailureError("motion.onnx", speaker="Tiny", expected="landmarks", got="NaN")
    setup.pipeline.network_failures = {"motion.onnx": failure}
    for _ in range(3):
        setup.telemetry.network_failed(failure)
    assert setup.telemetry.notes(START_S) == ["Tiny's motion.onnx fails; the last face that it gave is held."]
    assert setup.sample("network_failures_total", speaker="Tiny", network="motion.onnx") == 3
    assert len(caplog.records) == 1
    setup.pipeline.network_failures = {}
    assert setup.telemetry.notes(START_S) == []


def test_malformed_packets_are_counted_by_kind_and_logged_once(setup, caplog):
    for kind in ("rtp", "rtp", "rtcp"):
        setup.telemetry.packet_malformed(kind, "x" * 1000)
    assert setup.sample("malformed_packets_total", kind="rtp") == 2
    assert setup.sample("malformed_packets_total", kind="rtcp") == 1
    [logged] = caplog.records
    assert len(logged.getMessage()) < 250


def test_metrics_of_a_session(setup):
    setup.peer.video = SimpleNamespace(round_trip_s=0.03)
    setup.telemetry.update_metrics()
    assert setup.sample("render_size_pixels", session=LABEL) == 128
    assert setup.sample("drawn_ratio", session=LABEL) == 0.1421
    assert setup.sample("microphone_depth_seconds", session=LABEL) == pytest.approx(0.025, abs=1e-4)
    assert setup.sample("round_trip_seconds", session=LABEL) == 0.03
    setup.microphone.packets_lost = 2  # one came late after all
    setup.microphone.packets_late = 2
    setup.microphone.concealed_ms = 60.2
    setup.microphone.shortened_ms = 18.0
    setup.telemetry.update_metrics()
    assert setup.sample("microphone_packets_lost_total") == 3
    assert setup.sample("microphone_packets_late_total") == 2
    assert setup.sample("microphone_packets_recovered_total") == 2
    assert setup.sample("microphone_concealed_seconds_total") == pytest.approx(0.0602)
    assert setup.sample("microphone_accelerated_seconds_total") == pytest.approx(0.018)
    assert setup.sample("microphone_expanded_seconds_total") == pytest.approx(0.02)
    assert ID not in setup.metrics.text().decode()
