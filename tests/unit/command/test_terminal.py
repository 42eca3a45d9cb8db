"""What the command lines print reaches the reader as it is meant, or is dropped; it ends no run."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import export.cli
import streaming.cli
import training.cli
from models.terminal import VisibleFormatter, with_safe_streams

ROOT = Path(__file__).resolve().parents[3]
NAME = "o\r\x1b[31mX\nY.wav"
SHOWN = r"o\r\x1b[31mX\nY.wav"


def record_of(message, *given, failure=None):
    info = (type(failure), failure, None) if failure else None
    return logging.LogRecord("streaming.x", logging.WARNING, "x.py", 1, message, given, info)


def test_a_record_is_one_line_of_visible_characters():
    said = VisibleFormatter("%(levelname)s %(name)s: %(message)s").format(record_of("%s: damaged", NAME))
    assert said == f"WARNING streaming.x: {SHOWN}: damaged"


def test_a_traceback_keeps_its_lines_and_nothing_else():
    said = VisibleFormatter("%(message)s").format(record_of("failed", failure=ValueError("\x1b[31mX\nY")))
    assert said == "failed\nValueError: \\x1b[31mX\nY"


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (streaming.cli, ["--input", "nowhere.wav", "--output", "out.mp4"]),
        (training.cli, ["syncnet", "--data", ".", "--out", "out"]),
        (export.cli, ["verify", "nowhere"]),
    ],
)
def test_every_command_line_logs_one_line_of_visible_characters(tmp_path, monkeypatch, program, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.root.level)
    monkeypatch.setattr(logging.getLogger("export"), "level", logging.NOTSET)
    assert program.main(arguments) == 2
    (handler,) = logging.root.handlers
    assert isinstance(handler.formatter, VisibleFormatter)


def test_the_exit_code_and_the_streams_stay(capsys):
    def run():
        sys.stdout.write("said\n")
        sys.stderr.write("warned\n")
        return 3

    streams = sys.stdout, sys.stderr
    assert with_safe_streams("program", run) == 3
    assert (sys.stdout, sys.stderr) == streams
    assert capsys.readouterr() == ("said\n", "warned\n")
    with pytest.raises(SystemExit) as ended:
        with_safe_streams("program", lambda: sys.exit(2))
    assert ended.value.code == 2


def test_an_interruption_is_one_line_and_exit_code_1(capsys):
    def run():
        raise KeyboardInterrupt

    assert with_safe_streams("geneface-train", run) == 1
    assert capsys.readouterr() == ("", "geneface-train: stopped by SIGINT\n")


# Streams that are not there ---------------------------------------------------------------------------

PROGRAM = """
import sys
from models.terminal import log_to_stderr, with_safe_streams
from streaming.files.progress import Progress
import logging, os

def run():
    log_to_stderr(logging.WARNING, "program: %(message)s")
    Progress(10).note("getting ready")
    logging.warning("w")
    print("on the way", file=sys.stderr)
    with open("video", "wb") as video:
        os.write(2, b"a library's message\\n")
        video.write(b"whole")
    print(os.fsdecode(b"\\xff.mp4"), "\\u65e5\\u672c")
    return 0

sys.exit(with_safe_streams("program", run))
"""


def run(tmp_path, streams, **environment):
    """Returns exit code, stdout, stderr of the program, run by a shell with some streams elsewhere."""
    (tmp_path / "program.py").write_text(PROGRAM)
    ended = subprocess.run(
        ["bash", "-c", f'"$0" program.py {streams}', sys.executable],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (tmp_path / "video").read_bytes() == b"whole"
    return ended.returncode, ended.stdout, ended.stderr


def test_a_name_in_no_encoding_is_shown_as_escapes(tmp_path):
    code, said, _ = run(tmp_path, "")
    assert (code, said) == (0, "\\udcff.mp4 \u65e5\u672c\n")


def test_a_name_beyond_the_terminals_encoding_is_shown_as_escapes(tmp_path):
    code, said, _ = run(tmp_path, "", PYTHONIOENCODING="ascii")
    assert (code, said) == (0, "\\udcff.mp4 \\u65e5\\u672c\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full: not there")
def test_output_that_cannot_be_written_is_told_in_one_line(tmp_path):
    code, _, warned = run(tmp_path, ">/dev/full")
    assert code == 1
    last = warned.splitlines()[-1]
    assert last == (
        "program: could not write to standard output (no space left on device); what it says is lost"
    )
    assert "Traceback" not in warned
    assert "Exception ignored" not in warned


@pytest.mark.parametrize("streams", ["2>&-", "<&- >&- 2>&-", ">&-", "2>/dev/full"])
def test_a_closed_or_full_stream_ends_nothing(tmp_path, streams):
    if "full" in streams and not Path("/dev/full").exists():
        pytest.skip("/dev/full: not there")
    code, said, warned = run(tmp_path, streams)
    assert code == 0
    assert "Traceback" not in warned
    assert ">&-" in streams.replace("2>&-", "") or said.startswith("\\udcff.mp4")
