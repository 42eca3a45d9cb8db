"""Training of a head: it resumes to the bit and keeps to its settings; rates and averages on their way."""

import pytest
import tiny_speaker
import torch
from tiny_fields import SMALL_HEAD

from training import head as head_task
from training.field_optimizer import Average, Schedule
from training.loop import CheckpointError, LoopSettings, fit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_speaker.write_tiny_speaker(tmp_path_factory.mktemp("speaker"))


def test_a_resumed_head_ends_with_the_same_bits(folder, tmp_path):
    # Time does not enter: the rates fall by steps.
    ends = []
    for name, stops in (("at_once", (6,)), ("in_two", (3, 6))):
        for steps in stops:
            torch.manual_seed(1)
            task = head_task.make_task(folder, SMALL_HEAD, CPU)
            fit(
                task,
                tmp_path / name,
                LoopSettings(steps=steps, validate_every=99, checkpoint_every=3, seed=1),
            )
        ends.append(task.head.state_dict())
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key


def test_a_checkpoint_of_a_head_of_another_size_is_refused(folder, tmp_path):
    fit(head_task.make_task(folder, SMALL_HEAD, CPU), tmp_path, LoopSettings(steps=1, validate_every=99))
    other = head_task.make_task(
        folder, head_task.HeadTrainingSettings(**{**vars(SMALL_HEAD), "hidden": 8}), CPU
    )
    with pytest.raises(CheckpointError, match="settings"):
        fit(other, tmp_path, LoopSettings(steps=2))


def test_the_rate_rises_shortly_and_falls_to_the_end():
    course = Schedule(1000, None)
    rates = [course.rate(step, course.share(step), 0.02) for step in range(1001)]
    assert rates[0] < 0.02
    assert max(rates) == pytest.approx(1, abs=0.03)
    assert rates[-1] == pytest.approx(0.02)
    assert Schedule(10, 1.0).share(9) == 0  # by time, of which none was spent


def test_an_average_follows_and_lends_itself():
    module = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(0)
    average = Average(module, 0.5)
    with torch.no_grad():
        module.weight.fill_(1)
    for step in range(1000, 1030):
        average.update(step)
    assert float(average.values[0]) == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        module.weight.fill_(3)
    with average.in_place():
        assert float(module.weight.detach()) == pytest.approx(1, abs=1e-6)
    assert float(module.weight.detach()) == 3
