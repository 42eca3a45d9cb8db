"""What a bundle is made of besides networks: who may be shown, figures, and the folder for its graphs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from export.bundle.assembly import AssemblyError, read_figures, read_origin
from export.bundle.writer import folder_beside


def figures_of(tmp_path, text):
    (tmp_path / "figures.json").write_text(text)
    return read_figures((tmp_path / "figures.json",))


def refused(work):
    """Returns the line that `work` is refused with; it may not wait for anybody."""
    lines = []

    def run():
        with pytest.raises(AssemblyError) as refusal:
            work()
        lines.append(str(refusal.value))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits"
    (line,) = lines
    assert "\n" not in line
    assert "expected" in line
    return line


def test_figures_are_named_by_their_keys_and_the_later_file_wins(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1, "b": {"c": 2.5, "d": true, "e": "x"}}')
    (tmp_path / "b.json").write_text(f'{{"a": -3, "large": {10**300}}}')
    assert read_figures((tmp_path / "a.json", tmp_path / "b.json")) == {"a": -3, "b.c": 2.5, "large": 1e300}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("read", [read_origin, lambda pipe: read_figures((pipe,))], ids=["origin", "figures"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, read):
    pipe = tmp_path / "given.json"
    os.mkfifo(pipe)
    line = refused(lambda: read(pipe))
    assert line.startswith(f"{pipe}: ")
    assert "pipe" in line


@pytest.mark.parametrize("levels", [1100, 20_000])
def test_figures_nested_too_deep_are_refused(tmp_path, levels):
    line = refused(lambda: figures_of(tmp_path, '{"a":' * levels + "1" + "}" * levels))
    assert line.startswith(f"{tmp_path / 'figures.json'}: expected JSON with measured figures")


@pytest.mark.parametrize(
    ("number", "got"),
    [("1" + "0" * 400, "inf"), ("-1" + "0" * 400, "inf"), ("1e400", "inf"), ("NaN", "nan")],
)
def test_a_figure_that_is_not_finite_is_named_with_its_file(tmp_path, number, got):
    line = refused(lambda: figures_of(tmp_path, f'{{"a": {{"b\\nc": {number}}}}}'))
    assert line.startswith(f"{tmp_path / 'figures.json'}: a.b\\nc: expected a finite number, got {got}; ")


@pytest.mark.parametrize("text", ["[1]", "3", "null"])
def test_figures_that_are_no_object_are_refused(tmp_path, text):
    assert "expected a JSON object" in refused(lambda: figures_of(tmp_path, text))


# The folder of the graphs ----------------------------------------------------------------------------


def test_the_graphs_folder_is_beside_the_bundle_and_goes(tmp_path):
    out = tmp_path / "speakers" / "May"
    with folder_beside(out) as folder:
        (folder / "motion.onnx").write_bytes(b"x")
        assert folder.parent == out.parent
    assert not list(out.parent.iterdir())
    with pytest.raises(RuntimeError, match="stop"), folder_beside(out) as folder:
        raise RuntimeError("stop")
    assert not list(out.parent.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_what_a_killed_export_left_goes_with_the_next_one(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from export.bundle.writer import folder_beside\n"
        "with folder_beside(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'motion.onnx').write_bytes(b'x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    out = tmp_path / "May"
    killed = subprocess.run([sys.executable, "-c", program, out], cwd=Path(__file__).parents[3], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    for path in (left / "motion.onnx", left):  # what was written to just now stays
        os.utime(path, (0, 0))
    with folder_beside(out) as folder:
        assert folder != left
        assert list(tmp_path.iterdir()) == [folder]
