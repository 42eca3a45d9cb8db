"""The curve of closeness over minutes: a table, a CSV and a picture, and a resume that goes on with it."""

import csv
import json
import sys
import types
from pathlib import Path

import cv2
import pytest
import torch

from training import cli
from training.curve import curve_table, write_curve
from training.field_optimizer import FieldTrainingSettings
from training.loop import LoopSettings, Validation, fit, read_validations


class Closer:
    """Comes a decibel closer in each step, and takes a minute for it."""

    name = "closer"

    def __init__(self, measures=("whole", "head", "mouth")):
        self.steps = torch.zeros(())
        self.measures = measures

    def training_step(self, step):
        self.steps += 1
        return {"loss": 1.0}

    def validate(self, step):
        scalars = {f"psnr_{name}_db": 20.0 + step for name in self.measures}
        return Validation(scalars={**scalars, "ssim_whole": 0.5, "minutes": float(self.steps)})

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps.copy_(state["steps"])


def read(out):
    with (out / "curve.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_a_resumed_training_keeps_the_earlier_points(tmp_path):
    fit(Closer(), tmp_path, LoopSettings(steps=4, validate_every=2))
    first = write_curve(tmp_path)
    fit(Closer(), tmp_path, LoopSettings(steps=7, validate_every=2))
    whole = write_curve(tmp_path)
    assert whole.splitlines()[: len(first.splitlines())] == first.splitlines()
    assert [(row["minutes"], row["step"]) for row in read(tmp_path)] == [
        (f"{step}.0", f"{step}") for step in (2, 4, 6, 7)
    ]
    assert [float(row["psnr_mouth_db"]) for row in read(tmp_path)] == [22, 24, 26, 27]
    picture = cv2.imread(str(tmp_path / "curve.png"))
    assert picture.std() > 0


def test_the_table_shows_minutes_steps_and_regions():
    rows = [
        {"step": 2000, "minutes": 1.234, "psnr_whole_db": 30.126, "psnr_mouth_db": 25.0},
        {"step": 4000, "minutes": 2.5, "psnr_whole_db": 31.0},
    ]
    lines = [line.split() for line in curve_table(rows).splitlines()]
    assert lines[1] == ["1.23", "2000", "30.13", "25.00"]
    assert lines[2] == ["2.50", "4000", "31.00", "-"]
    assert "mouth" in lines[0]


def test_a_training_without_minutes_or_closeness_has_no_curve(tmp_path):
    (tmp_path / "validation.jsonl").write_text(json.dumps({"step": 1, "psnr_whole_db": 30.0}) + "\n")
    assert write_curve(tmp_path) is None
    (tmp_path / "validation.jsonl").write_text(json.dumps({"step": 1, "minutes": 1.0}) + "\n")
    assert write_curve(tmp_path) is None
    assert not (tmp_path / "curve.csv").exists()


@pytest.mark.parametrize("validate", [False, True])
def test_a_training_that_time_stops_is_validated_where_it_is_asked_for(tmp_path, validate):
    settings = LoopSettings(steps=9, validate_every=5, max_minutes=1e-9, validate_at_stop=validate)
    assert fit(Closer(), tmp_path, settings).reason == "time"
    assert [row["step"] for row in read_validations(tmp_path)] == ([1] if validate else [])


def test_a_training_is_validated_by_the_clock(tmp_path):
    fit(Closer(), tmp_path, LoopSettings(steps=3, validate_every=9, validate_minutes=1e-9))
    assert [row["step"] for row in read_validations(tmp_path)] == [1, 2, 3]
    with pytest.raises(ValueError, match="validate_minutes: expected more than 0"):
        LoopSettings(validate_minutes=0.0)


def test_heads_and_torsos_are_validated_where_time_stops_them():
    from training import head, torso

    assert head.LOOP.validate_at_stop
    assert torso.LOOP.validate_at_stop


def test_the_command_line_prints_the_curve(tmp_path, monkeypatch, capsys):
    module = types.ModuleType("training.syncnet")

    def make_task(data: Path, settings: FieldTrainingSettings, device: torch.device) -> Closer:
        return Closer()

    module.make_task = make_task
    module.LOOP = LoopSettings(steps=3, validate_every=2)
    monkeypatch.setitem(sys.modules, "training.syncnet", module)
    assert cli.main(["syncnet", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    table = [line.split() for line in printed.splitlines() if line.startswith("  ")]
    assert [cells[:3] for cells in table[1:]] == [
        ["2.00", "2", "22.00"],
        ["3.00", "3", "23.00"],
    ]
    assert len(read(tmp_path / "out")) == 2
