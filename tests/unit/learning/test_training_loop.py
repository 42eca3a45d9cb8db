"""The training loop: resume to the bit, clean stop, checkpoints that load without pickle, flags."""

import dataclasses
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch

from models.settings import Option
from training import cli, loop
from training.loop import CheckpointError, LoopSettings, Validation, fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToySettings:
    rate: Annotated[float, Option("learning rate")] = 0.01
    kernel: Annotated[tuple[int, ...], Option("widths")] = (3, 5)
    shuffle: Annotated[bool, Option("in another order each time")] = True


class ToyTask:
    """Fits noise with dropout, so that weights depend on every random draw."""

    name = "toy"

    def __init__(self, settings: ToySettings | None = None, at_step=None):
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=(settings or ToySettings()).rate)
        self.at_step = at_step

    def training_step(self, step):
        if self.at_step is not None:
            self.at_step(step)
        loss = self.net(torch.randn(16, 4)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss, "constant": 2.0}

    def validate(self, step):
        return Validation(
            scalars={"draw": float(torch.rand(()))}, pictures={"square": np.full((8, 8, 3), 90, np.uint8)}
        )

    def state_dict(self):
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state):
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])


def settings(**changes):
    return LoopSettings(
        **{"steps": 12, "validate_every": 4, "checkpoint_every": 4, "log_every": 3, "seed": 7, **changes}
    )


def toy(**kwargs):
    torch.manual_seed(1)
    return ToyTask(**kwargs)


def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(tmp_path):
    whole = toy()
    fit(whole, tmp_path / "whole", settings())

    def stop_after_step_6(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = fit(toy(at_step=stop_after_step_6), tmp_path / "parts", settings())
    assert outcome == loop.Outcome(step=6, reason="signal")
    resumed = toy()
    assert fit(resumed, tmp_path / "parts", settings()).reason == "finished"
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, resumed.net.state_dict()[name]), name
    assert loop.read_validations(tmp_path / "whole") == loop.read_validations(tmp_path / "parts")


def test_sigterm_leaves_a_checkpoint_that_loads_with_weights_only(tmp_path):
    fit(toy(at_step=lambda step: os.kill(os.getpid(), signal.SIGTERM)), tmp_path, settings())
    content = torch.load(tmp_path / "checkpoint_00000001.pt", weights_only=True)
    assert (content["task"], content["step"]) == ("toy", 1)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_time_limit_stops_with_a_checkpoint(tmp_path):
    outcome = fit(toy(), tmp_path, settings(max_minutes=1e-9))
    assert outcome == loop.Outcome(step=1, reason="time")
    assert list(loop.checkpoints(tmp_path)) == [1]


def test_validation_draws_do_not_move_the_training_generator(tmp_path):
    often, once = toy(), toy()
    fit(often, tmp_path / "often", settings(validate_every=1))
    fit(once, tmp_path / "once", settings(validate_every=12))
    assert torch.equal(often.net[0].weight, once.net[0].weight)
    draws = {row["draw"] for row in loop.read_validations(tmp_path / "often")}
    assert len(draws) == 1


@pytest.mark.parametrize(("keep", "steps"), [(2, [8, 12]), (0, [4, 8, 12])])
def test_only_the_newest_checkpoints_are_kept(tmp_path, keep, steps):
    fit(toy(), tmp_path, settings(keep_checkpoints=keep))
    assert list(loop.checkpoints(tmp_path)) == steps


def test_pictures_and_scalars_are_written(tmp_path):
    fit(toy(), tmp_path, settings())
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        f"square_{step:08d}.png" for step in (4, 8, 12)
    ]
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_a_cut_checkpoint_is_refused_with_one_line(tmp_path):
    fit(toy(), tmp_path, settings())
    path = tmp_path / "checkpoint_00000012.pt"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="delete it to go on from the one before"):
        fit(toy(), tmp_path, settings(steps=16))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, no pickle\n",
        b"GIF89a",
        b"\x80\x02h\x07.",  # something kept that was not
        b"\x80\x02K\x01a.",
        b"\x80\x02J\x01",
        b"\x80\x02ccollections\nOrderedDict\nNR.",
        b"\x80\x02}]K\x01s.",
        b"\x80\x02U\x01\xffQ.",
    ],
)
def test_what_is_no_checkpoint_is_one_line(tmp_path, content):
    path = tmp_path / "checkpoint_00000012.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable checkpoint") as refusal:
        loop.load_checkpoint(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", ["task", "step", "state"])
def test_a_checkpoint_that_lacks_a_part_is_one_line(tmp_path, key):
    content = {"version": loop.CHECKPOINT_VERSION, "task": "toy", "step": 12, "state": {}, "rng": {}}
    del content[key]
    path = tmp_path / "checkpoint_00000012.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError) as refusal:
        loop.load_task_state(tmp_path, "toy")
    assert (refusal.value.file, refusal.value.field, refusal.value.got) == (str(path), key, "none")


@pytest.mark.parametrize("rng", [{}, {"cuda": torch.zeros(16, dtype=torch.uint8)}, None])
def test_a_checkpoint_without_the_generators_state_is_not_gone_on_from(tmp_path, rng):
    fit(toy(), tmp_path, settings())
    path = tmp_path / "checkpoint_00000012.pt"
    loop.save_checkpoint(path, loop.load_checkpoint(path) | {"rng": rng})
    task = toy()
    before = task.net[0].weight.clone()
    with pytest.raises(CheckpointError) as refusal:
        fit(task, tmp_path, settings(steps=16))
    assert (refusal.value.file, refusal.value.field, refusal.value.got) == (str(path), "rng", "none")
    assert torch.equal(task.net[0].weight, before)


def test_a_checkpoint_of_other_sizes_or_another_task_is_refused(tmp_path):
    fit(toy(), tmp_path, settings())
    other = toy()
    other.net[0] = torch.nn.Linear(4, 9)
    with pytest.raises(CheckpointError, match="does not fit these settings"):
        fit(other, tmp_path, settings(steps=16))
    other.name = "elsewhere"
    with pytest.raises(CheckpointError) as refusal:
        fit(other, tmp_path, settings(steps=16))
    assert (refusal.value.field, refusal.value.expected, refusal.value.got) == ("task", "elsewhere", "toy")


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    fit(toy(), tmp_path, settings())
    before = (tmp_path / "checkpoint_00000012.pt").read_bytes()

    def full_disk(content, stream):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        loop.save_checkpoint(tmp_path / "checkpoint_00000012.pt", {})
    assert (tmp_path / "checkpoint_00000012.pt").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    task = toy()
    task.training_step = lambda step: {"loss": torch.tensor(float("nan"))}
    with pytest.raises(FloatingPointError, match="loss not finite"):
        fit(task, tmp_path, settings())


@pytest.fixture
def toy_module(monkeypatch):
    module = types.ModuleType("training.syncnet")

    def make_task(data: Path, settings: ToySettings, device: torch.device) -> ToyTask:
        return ToyTask(settings)

    module.make_task = make_task
    module.LOOP = settings(steps=3)
    monkeypatch.setitem(sys.modules, "training.syncnet", module)
    return module


def test_the_command_line_trains_and_writes_its_settings(toy_module, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GENEFACE_TRAIN_RATE", "0.5")
    monkeypatch.setenv("GENEFACE_TRAIN_LOG_EVERY", "1")
    arguments = ["syncnet", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--log-every", "2"]
    assert cli.main([*arguments, "--kernel", "7", "9", "--no-shuffle"]) == 0
    written = (tmp_path / "out" / "settings.json").read_text()
    for expected in ('"rate": 0.5', '"log_every": 2', '"shuffle": false', '"steps": 3'):
        assert expected in written
    assert "done, 3 steps" in capsys.readouterr().out


def test_a_missing_data_folder_is_one_line_and_exit_code_2(toy_module, tmp_path, capsys):
    code = cli.main(["syncnet", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
    message = capsys.readouterr().err
    assert code == 2
    assert message.count("\n") == 1
    assert "nowhere" in message


def test_bad_settings_and_devices_are_refused(toy_module, tmp_path, capsys):
    arguments = ["syncnet", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert cli.main([*arguments, "--steps", "0"]) == 2
    assert "steps: expected 1 to 1000000000, got 0" in capsys.readouterr().err
    assert cli.main([*arguments, "--device", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err
    assert cli.main([*arguments, "--rate", "fast"]) == 2
    refusal = "--rate (or GENEFACE_TRAIN_RATE): expected NUMBER, got 'fast'; learning rate"
    assert capsys.readouterr().err == f"geneface-train syncnet: {refusal}\n"


def test_unknown_tasks_and_flags_are_usage_errors(toy_module, tmp_path):
    for arguments in (["levitate"], [], ["syncnet", "--data", str(tmp_path), "--out", "x", "--speed", "9"]):
        with pytest.raises(SystemExit) as exit_code:
            cli.main(arguments)
        assert exit_code.value.code == 2


def test_importing_the_command_line_imports_no_torch():
    code = "import sys, training.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\x00",
        b'{"step": "x"}',
        b'{"step": 1.5}',
        b'{"step": true}',
        b"1",
        b"[1]",
        b'{"a": 1}',
        b"[" * 10**5,
    ],
    ids=lambda line: str(line[:12]),
)
def test_a_damaged_line_of_the_validations_is_left_out(tmp_path, line):
    fit(toy(), tmp_path, settings(steps=4))
    file = tmp_path / loop.VALIDATION_FILE
    file.write_bytes(line + b"\n" + file.read_bytes())
    fit(toy(), tmp_path, settings(steps=8))
    assert [row["step"] for row in loop.read_validations(tmp_path)] == [4, 8]


@pytest.mark.parametrize(
    "change",
    [
        {"state": {"net": None, "optimizer": None}},
        {"state": {"net": [], "optimizer": []}},
        {"state": {"net": {}, "optimizer": {"param_groups": 1}}},
        {"step": 10**30},
        {"step": -5},
        {"step": True},
        {"rng": {"cpu": torch.zeros(7, dtype=torch.uint8)}},
        {"rng": {"cpu": torch.zeros(7)}},
        {"rng": {"cpu": [1]}},
        {"rng": [1]},
    ],
    ids=str,
)
def test_a_checkpoint_of_other_things_is_one_line(tmp_path, change):
    fit(toy(), tmp_path, settings(steps=4))
    path = tmp_path / "checkpoint_00000004.pt"
    torch.save(torch.load(path, weights_only=True) | change, path)
    with pytest.raises(CheckpointError) as refusal:
        fit(toy(), tmp_path, settings(steps=8))
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)
