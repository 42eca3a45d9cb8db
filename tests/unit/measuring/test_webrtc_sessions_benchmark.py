"""The figures of the benchmark of live sessions, from what clients saw and what the server counted."""

from __future__ import annotations

import pytest

from benchmarks.server_process import ServerError
from benchmarks.webrtc_sessions import Viewed, counted, figures, main, table

BEFORE = """# HELP geneface_frames_rendered_total Frames drawn and sent.
geneface_frames_rendered_total{speaker="May"} 10.0
geneface_frames_rendered_total{speaker="Ann"} 5.0
geneface_frames_rendered_created 1.7e9
geneface_gpu_batch_frames_count 4.0
geneface_gpu_batch_frames_sum 4.0
geneface_gpu_kernel_duration_seconds_sum 0.5
"""
AFTER = """geneface_frames_rendered_total{speaker="May"} 200.0
geneface_frames_rendered_total{speaker="Ann"} 5.0
geneface_frames_dropped_total{speaker="May",reason="late"} 7.0
geneface_frames_dropped_total{speaker="May",reason="queue"} 3.0
geneface_gpu_batch_frames_count 54.0
geneface_gpu_batch_frames_sum 204.0
geneface_gpu_kernel_duration_seconds_sum 0.6
"""


def view(*arrivals_s, refused="", first_s=0.5):
    return Viewed(refused=refused, first_s=first_s, arrivals_s=arrivals_s, side_px=512)


def test_a_metric_is_summed_over_its_labels_and_not_mixed_up_with_longer_names():
    assert counted(BEFORE, "geneface_frames_rendered_total") == 15
    assert counted(AFTER, "geneface_frames_dropped_total") == 10
    assert counted(BEFORE, "geneface_frames_rendered") == 0


def test_rates_and_waits_are_those_of_the_pictures_that_came():
    steady = view(*(0.04 * n for n in range(101)))
    halting = view(0.0, 0.04, 0.08, 0.5, first_s=0.9)
    row = figures(3, [steady, halting, view(refused="503 Busy")], BEFORE, AFTER, cores=1.5)
    assert (row.asked, row.admitted, row.side_px) == (3, 2, 512)
    assert row.fps_mean == pytest.approx((25 + 6) / 2)
    assert row.fps_worst == pytest.approx(6)
    assert row.waits_share == pytest.approx(1 / 103)
    assert row.first_s == pytest.approx(0.7)
    assert row.left_out_share == pytest.approx(10 / 200)
    assert row.frames_a_launch == pytest.approx(200 / 50)
    assert row.kernel_ms == pytest.approx(0.5)


def test_without_launches_the_table_says_that_the_cpu_drew():
    row = figures(1, [view(0.0, 0.04)], BEFORE, BEFORE, cores=1.0)
    assert row.frames_a_launch is None
    assert "| CPU |" in table([row])


def test_no_picture_in_any_session_is_a_failure_with_its_reason():
    with pytest.raises(ServerError, match="503 Busy"):
        figures(1, [view(refused="503 Busy")], BEFORE, AFTER, cores=0.0)


@pytest.mark.parametrize(
    ("flags", "word"), [(["--sessions", "0"], "above zero"), (["--audio", "none.wav"], "none.wav")]
)
def test_bad_flags_end_at_once(capsys, flags, word):
    with pytest.raises(SystemExit):
        main(flags)
    assert word in capsys.readouterr().err
