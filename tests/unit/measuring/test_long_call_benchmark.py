"""The figures of the benchmark of a long call."""

from __future__ import annotations

import pytest

from benchmarks.long_call import Minute, growth_mb, main, table


def minute(number, rss_mb):
    return Minute(minute=number, rss_mb=rss_mb, threads=9, open_files=40, cores=0.7, rendered=1500, dropped=0)


def test_growth_is_the_slope_of_memory_over_minutes():
    assert growth_mb([minute(n, 300 + 0.25 * n) for n in range(1, 20)]) == pytest.approx(0.25)
    assert growth_mb([minute(1, 300)]) == 0.0


def test_the_table_tells_a_leak_from_what_levels_off():
    text = table([minute(n, 300 + min(n, 5)) for n in range(1, 21)], 24.98)
    assert "| 20 | 305.0 | 9 | 40 | 0.70 | 1500 | 0 |" in text
    assert text.endswith("in the second half by 0.000.")
    assert "24.98 pictures a second" in text


def test_a_recording_that_is_not_there_is_said(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--audio", "nowhere.wav"])
    assert end.value.code == 2
    assert "--audio: expected a recording, got nowhere.wav" in capsys.readouterr().err
