from __future__ import annotations

import re

import pytest

from streaming.session.metrics import CONTENT_TYPE, Metrics

NAMES = {
    "geneface_sessions_active": "gauge",
    "geneface_sessions_total": "counter",
    "geneface_offers_refused_total": "counter",
    "geneface_frames_rendered_total": "counter",
    "geneface_frames_dropped_total": "counter",
    "geneface_network_failures_total": "counter",
    "geneface_render_size_pixels": "gauge",
    "geneface_render_size_changes_total": "counter",
    "geneface_drawn_ratio": "gauge",
    "geneface_plates_bytes": "gauge",
    "geneface_admission_room_core_seconds": "gauge",
    "geneface_admission_taken_core_seconds": "gauge",
    "geneface_gpu_draws": "gauge",
    "geneface_gpu_batch_frames": "histogram",
    "geneface_gpu_kernel_duration_seconds": "histogram",
    "geneface_stage_duration_seconds": "histogram",
    "geneface_microphone_depth_seconds": "gauge",
    "geneface_microphone_packets_lost_total": "counter",
    "geneface_microphone_packets_late_total": "counter",
    "geneface_microphone_packets_recovered_total": "counter",
    "geneface_microphone_concealed_seconds_total": "counter",
    "geneface_microphone_accelerated_seconds_total": "counter",
    "geneface_microphone_expanded_seconds_total": "counter",
    "geneface_malformed_packets_total": "counter",
    "geneface_mic_to_glass_seconds": "histogram",
    "geneface_av_skew_seconds": "histogram",
    "geneface_round_trip_seconds": "gauge",
}


def test_each_metric_has_its_name_and_kind():
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", Metrics().text().decode(), re.MULTILINE))
    assert NAMES.items() <= kinds.items()
    # Beside them only when each began, which the client library adds.
    assert all(name.endswith("_created") for name in kinds.keys() - NAMES.keys())


def test_each_metric_says_what_it_is():
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", Metrics().text().decode(), re.MULTILINE))
    assert all(helps[name].endswith(".") for name in NAMES)


def test_two_servers_in_one_process_do_not_share():
    one, other = Metrics(), Metrics()
    one.sessions_active.set(3)
    assert b"geneface_sessions_active 3.0" in one.text()
    assert b"geneface_sessions_active 0.0" in other.text()


def test_a_launch_is_counted_with_its_frames_and_its_time():
    metrics = Metrics()
    metrics.gpu_drew(3, 1.5)
    metrics.gpu_drew(17, 6.5)
    sample = metrics.registry.get_sample_value
    assert sample("geneface_gpu_batch_frames_sum") == 20
    assert sample("geneface_gpu_batch_frames_bucket", {"le": "4.0"}) == 1
    assert sample("geneface_gpu_kernel_duration_seconds_sum") == pytest.approx(0.008)
    assert sample("geneface_gpu_draws") == 0


def test_gauges_of_a_session_go_with_it():
    metrics = Metrics()
    for session in ("abc123", "def456"):
        metrics.render_size_px.labels(session).set(256)
        metrics.drawn_ratio.labels(session).set(0.14)
        metrics.microphone_depth.labels(session).set(0.02)
        metrics.round_trip.labels(session).set(0.01)
    metrics.forget("abc123")
    text = metrics.text().decode()
    assert "abc123" not in text
    assert text.count('session="def456"') == 4


def test_a_session_that_nothing_was_said_of_is_forgotten_without_a_word():
    metrics = Metrics()
    before = metrics.text()
    metrics.forget("abc123")
    metrics.forget("abc123")
    assert metrics.text() == before


def test_stages_are_told_apart_down_to_milliseconds():
    metrics = Metrics()
    metrics.stage.labels("encode").observe(0.0015)
    text = metrics.text().decode()
    assert 'geneface_stage_duration_seconds_bucket{le="0.001",stage="encode"} 0.0' in text
    assert 'geneface_stage_duration_seconds_bucket{le="0.002",stage="encode"} 1.0' in text


def test_skew_has_both_signs():
    metrics = Metrics()
    metrics.av_skew.observe(-0.03)
    text = metrics.text().decode()
    assert 'geneface_av_skew_seconds_bucket{le="-0.04"} 0.0' in text
    assert 'geneface_av_skew_seconds_bucket{le="-0.02"} 1.0' in text


def test_the_content_type_is_the_text_formats():
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")
