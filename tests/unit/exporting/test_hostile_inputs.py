"""Files and arguments of others: no pipe is waited for, no text multiplies, no character hides."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import bundle_factory
import pytest

from export.bundle import writer as bundle
from export.geneface.checkpoints import read_config
from export.geneface.hubert import HubertError, load_hubert
from export.geneface.pickles import GenefaceFileError, read_npy, read_torch
from export.regular_file import open_regular
from models import partial_files
from models.settings import escaped
from models.speaker import BundleError, load_speaker
from streaming.files import video_writer as video_output

# Files that are none --------------------------------------------------------------------------------


def ends(work):
    """Returns what `work` raises; it may not wait for anybody."""
    raised = []

    def run():
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever it raises is looked at
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits"
    return raised[0] if raised else None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("read", [read_torch, read_npy, read_config])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, read):
    pipe = tmp_path / "config.yaml"
    os.mkfifo(pipe)
    error = ends(lambda: read(pipe))
    assert isinstance(error, GenefaceFileError)
    assert str(pipe) in str(error)
    assert "pipe" in str(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_in_hubert_s_folder_is_refused(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert isinstance(ends(lambda: load_hubert(tmp_path)), HubertError)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused(path):
    with pytest.raises(OSError, match="no regular file"):
        open_regular(__import__("pathlib").Path(path))


# YAML -----------------------------------------------------------------------------------------------

SIXTIES = ":".join(["59"] * 200_000)
LAUGHS = "a: &a {k: v}\n" + "".join(
    f"x{n}: &{chr(98 + n)} {{<<: [*{chr(97 + n)}, *{chr(97 + n)}]}}\n" for n in range(20)
)


@pytest.mark.parametrize(
    "text",
    [
        f"lr: {SIXTIES}",
        f"lr: {SIXTIES}.5",
        "lr: " + "9" * 100_000,
        "lr: !!int ''",
        "lr: !!bool maybe",
        "lr: !!timestamp soon",
        "lr: !!float x",
        LAUGHS,
        "[" * 50_000,
        "? [a, b]\n: c",
        "? {a: b}\n: c",
        "a: !!python/object/apply:os.system [ls]",
        "a: *nobody",
        "\x00",
    ],
    ids=range(14),
)
def test_yaml_that_is_no_plain_settings_is_one_line(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    error = ends(lambda: read_config(file))
    assert isinstance(error, GenefaceFileError)
    assert str(error).startswith(str(file))
    assert len(str(error)) < len(str(file)) + 300
    assert str(error).isprintable()


def test_what_the_trainer_writes_is_read_as_ever(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "work_dir: x\nlr: 0.001\nsteps: 40000\nat: 1:30\nuse: true\nids: &id001 [1, 2]\nsame: *id001\n"
    )
    assert read_config(file) == {
        "work_dir": "x",
        "lr": 0.001,
        "steps": 40000,
        "at": 90,
        "use": True,
        "ids": [1, 2],
        "same": [1, 2],
    }


@pytest.mark.parametrize("base", ["x" * 5000, "./" + "y/" * 3000])
def test_a_base_config_that_can_be_no_name_is_one_line(tmp_path, base):
    file = tmp_path / "config.yaml"
    file.write_text(f'base_config: "{base}"\n')
    error = ends(lambda: read_config(file))
    assert isinstance(error, GenefaceFileError)
    assert "base_config" in str(error)
    assert len(str(error)) < len(str(file)) + 300


def test_base_configs_in_a_circle_are_read_once(tmp_path):
    (tmp_path / "a.yaml").write_text("base_config: ./b.yaml\nx: 1\n")
    (tmp_path / "b.yaml").write_text("base_config: [./a.yaml, ./b.yaml]\ny: 2\n")
    values = read_config(tmp_path / "a.yaml")
    assert (values["x"], values["y"]) == (1, 2)


# Names in a pickle ----------------------------------------------------------------------------------


def npy_of(name):
    module, _, last = name.rpartition(".")
    content = b"\x80\x02c" + f"{module}\n{last}\n".encode() + b"."
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


HARMLESS = (
    "torch.Size",
    "collections.defaultdict",
    "pathlib.PosixPath",
    "argparse.Namespace",
    "datetime.date",
)
DANGEROUS = (
    "os.system",
    "posix.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "utils.hparams.HP",
)


@pytest.mark.parametrize(
    "name", [*HARMLESS, "torch.device", "builtins.set", "omegaconf.dictconfig.DictConfig"]
)
def test_a_harmless_name_is_refused_without_alarm(tmp_path, name):
    file = tmp_path / "data.npy"
    file.write_bytes(npy_of(name))
    with pytest.raises(GenefaceFileError) as caught:
        read_npy(file)
    assert f"{name}, which is not read" in str(caught.value)
    assert "run it" not in str(caught.value)


@pytest.mark.parametrize("name", [*DANGEROUS, "builtins.getattr", "torch.Sizes", "pathlib.Path.unlink"])
def test_what_would_run_raises_the_alarm(tmp_path, name):
    file = tmp_path / "data.npy"
    file.write_bytes(npy_of(name))
    with pytest.raises(GenefaceFileError, match="the file would run it"):
        read_npy(file)


# What a message shows -------------------------------------------------------------------------------


def test_every_character_of_a_message_is_seen():
    assert escaped("a\rb\nc\td\x1b[1me\u202ef\u200bg\x00") == (r"a\rb\nc\td\x1b[1me\u202ef\u200bg\x00")
    assert escaped("Zo\xeb \u2013 speech.wav") == "Zo\xeb \u2013 speech.wav"


@pytest.mark.parametrize(
    "arguments",
    [
        ["streaming.cli", "--input", "no\rsuch.wav", "--output", "a.mp4"],
        ["streaming.cli", "--no\rsuch"],
        ["streaming.cli", "--codec", "a\rb"],
        ["training.cli", "no\rsuch"],
        ["export.cli", "verify", "no\rsuch"],
        ["export.cli", "no\rsuch"],
    ],
    ids=lambda arguments: " ".join(arguments).replace("\r", "CR"),
)
def test_a_carriage_return_in_an_argument_is_shown(arguments):
    ended = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, timeout=120)
    assert ended.returncode == 2
    assert b"\r" not in ended.stderr
    assert b"\\r" in ended.stderr
    assert b"Traceback" not in ended.stderr


# What killed runs left ------------------------------------------------------------------------------


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def named(path, *, kind="part", host=None, process):
    """Returns the name beside a path that a process of a host would give."""
    host = host or partial_files._HOST
    return path.with_name(f".{path.stem}.geneface-{host}-{process}.{kind}{path.suffix}")


def written_before(path, seconds):
    """Makes a file, or a folder with a file in it, that was last written to so long ago."""
    folder = not path.suffix or path.suffix in (".part", ".old")
    files = [path / "file", path] if folder else [path]
    if folder:
        path.mkdir()
    files[0].write_bytes(b"x")
    for file in files:
        os.utime(file, (time.time() - seconds,) * 2)
    return path


def test_what_a_killed_run_left_is_swept_and_nothing_else(tmp_path, dead):
    out = tmp_path / "talk.mp4"
    hour, days = 3600, 200_000
    swept = [
        written_before(named(tmp_path / "talk.v1.mp4", process=dead), hour),
        written_before(named(tmp_path / "x.npz", process=dead), hour),
        written_before(named(tmp_path / "k\nx.mp4", process=dead), hour),
        written_before(named(tmp_path / "May", process=dead), hour),
        written_before(named(out, host="another-host", process=dead), days),
    ]
    kept = [
        written_before(named(out, process=os.getpid()), hour),
        written_before(named(out, process=dead), 5),  # another container's, that is not seen here
        written_before(named(out, host="elsewhere", process=dead), hour),
        *(
            written_before(tmp_path / name, days)
            for name in (
                "my.part.mp4",
                f"talk.geneface-{partial_files._HOST}-{dead}.part.mp4",
                f".talk.geneface-{partial_files._HOST}-{dead}.partial.mp4",
                ".backup.2024-11.part",
                ".photos.vol-01.part",
                ".archive.disc-1.part.rar",
            )
        ),
    ]
    assert named(out, process=os.getpid()) == partial_files.partial_path(out)
    video_output.check_writable(tmp_path / "new.mp4", "--output")
    assert [file for file in swept if file.exists()] == []
    assert [file for file in kept if not file.exists()] == []


def test_a_folder_in_which_something_is_still_written_stays(tmp_path, dead):
    folder = written_before(named(tmp_path / "May", process=dead), 3600)
    (folder / "features.onnx").write_bytes(b"x")
    os.utime(folder, (0, 0))
    partial_files.sweep_abandoned(tmp_path)
    assert folder.exists()


# Bundles of programs that were killed


def test_a_half_written_bundle_goes_with_the_next_one(tmp_path, dead):
    out = tmp_path / "Tiny"
    written_before(named(out, process=dead), 3600)
    other = written_before(partial_files.partial_path(tmp_path / "Other"), 3600)  # of a program that runs
    bundle_factory.write_tiny_bundle(out, image_size_px=64)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["Tiny", other.name])


def test_a_bundle_that_stepped_aside_for_a_killed_program_comes_back(tmp_path, monkeypatch, dead):
    out = bundle_factory.write_tiny_bundle(tmp_path / "Tiny", image_size_px=64)
    out.rename(named(out, kind="old", process=dead))
    refusal = BundleError(str(out), "head", "another", "this one")
    monkeypatch.setattr(bundle, "load_speaker", lambda _: (_ for _ in ()).throw(refusal))
    with pytest.raises(BundleError):  # the new one is no good: the old one is there all the same
        bundle_factory.write_tiny_bundle(out, image_size_px=128)
    assert load_speaker(out).image_size_px == 64
    assert [path.name for path in tmp_path.iterdir()] == ["Tiny"]


def test_only_the_bundle_s_own_name_comes_back(tmp_path, dead):
    asides = [
        written_before(named(tmp_path / "Tiny", kind="old", process=dead), 3600),
        written_before(tmp_path / ".Tiny.v2.backup-2024.old", 3600),
    ]
    partial_files.restore_aside(tmp_path / "Tiny.v2")
    assert all(aside.exists() for aside in asides)
    assert not (tmp_path / "Tiny.v2").exists()


def test_a_bundle_that_was_replaced_leaves_nothing_aside(tmp_path, dead):
    out = bundle_factory.write_tiny_bundle(tmp_path / "Tiny", image_size_px=64)
    written_before(named(out, kind="old", process=dead), 3600)
    bundle_factory.write_tiny_bundle(out, image_size_px=128)
    assert load_speaker(out).image_size_px == 128
    assert [path.name for path in tmp_path.iterdir()] == ["Tiny"]
