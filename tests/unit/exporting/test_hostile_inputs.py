"""Files and arguments of others: no pipe is waited for, no text multiplies, no character hides."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import bundle_factory
import pytest

from export.bundle import writer as bundle
from export.geneface.checkpoints import read_config
from export.geneface.hubert import HubertError, load_hubert
from export.geneface.pickles import GenefaceFileError, read_npy, read_torch
from export.geneface.regular_file import open_regular
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
    with pytest.raises(GenefaceFileError, match="the file would run it: do not open it elsewhere either"):
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


def test_what_a_killed_run_left_is_swept_and_nothing_else(tmp_path, dead):
    host = partial_files._HOST
    old = tmp_path / f".talk.another-host-{dead}.part.mp4"
    swept = [tmp_path / f".talk.v1.{host}-{dead}.part.mp4", tmp_path / f".x.{host}-{dead}.part.npz", old]
    kept = [
        tmp_path / f".talk.{host}-{os.getpid()}.part.mp4",
        tmp_path / f".talk.elsewhere-{dead}.part.mp4",
        tmp_path / "my.part.mp4",
        tmp_path / f"talk.{host}-{dead}.part.mp4",
        tmp_path / f".talk.{host}-{dead}.partial.mp4",
    ]
    for file in (*swept, *kept):
        file.write_bytes(b"x")
    os.utime(old, (0, 0))
    video_output.check_writable(tmp_path / "new.mp4", "--output")
    assert [file for file in swept if file.exists()] == []
    assert [file for file in kept if not file.exists()] == []


def test_the_name_of_what_is_not_whole_is_one_that_is_swept(tmp_path):
    for name in ("a talk.mp4", "May", "speaker.json"):
        part = partial_files.partial_path(tmp_path / name)
        assert part.suffix == Path(name).suffix or part.suffix == ".part"
        assert partial_files._NAME.fullmatch(part.name)[2] == str(os.getpid())


# Bundles of programs that were killed


def of_a_killed_program(path):
    """Returns the name that a killed program would have given."""
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    return path.with_name(path.name.replace(f"-{os.getpid()}.", f"-{ended.stdout.strip()}."))


def test_a_half_written_bundle_goes_with_the_next_one(tmp_path):
    out = tmp_path / "Tiny"
    left = of_a_killed_program(partial_files.partial_path(out))
    (left / "deep").mkdir(parents=True)
    other = partial_files.partial_path(tmp_path / "Other")  # of a program that runs
    other.mkdir()
    bundle_factory.write_tiny_bundle(out, image_size_px=64)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["Tiny", other.name])


def test_a_bundle_that_stepped_aside_for_a_killed_program_comes_back(tmp_path, monkeypatch):
    out = bundle_factory.write_tiny_bundle(tmp_path / "Tiny", image_size_px=64)
    aside = of_a_killed_program(partial_files.aside_path(out))
    out.rename(aside)
    refusal = BundleError(str(out), "head", "another", "this one")
    monkeypatch.setattr(bundle, "load_speaker", lambda _: (_ for _ in ()).throw(refusal))
    with pytest.raises(BundleError):  # the new one is no good: the old one is there all the same
        bundle_factory.write_tiny_bundle(out, image_size_px=128)
    assert load_speaker(out).image_size_px == 64
    assert [path.name for path in tmp_path.iterdir()] == ["Tiny"]


def test_a_bundle_that_was_replaced_leaves_nothing_aside(tmp_path):
    out = bundle_factory.write_tiny_bundle(tmp_path / "Tiny", image_size_px=64)
    of_a_killed_program(partial_files.aside_path(out)).mkdir()
    bundle_factory.write_tiny_bundle(out, image_size_px=128)
    assert load_speaker(out).image_size_px == 128
    assert [path.name for path in tmp_path.iterdir()] == ["Tiny"]
