"""Trainings of a head and a torso by the kernels and by their twins: which is taken, and that both agree.

The kernels run here as C++ on the CPU.
"""

import dataclasses
from functools import partial

import pytest
import tiny_speaker
import torch
from tiny_fields import SMALL_HEAD, SMALL_TORSO
from torch.nn import functional

from cuda_kernels import torch_launcher
from cuda_kernels.torch_reference import composite, march, near_far, pack, unpack
from models.encodings import shared_rows
from training import head as head_task
from training import torso as torso_task
from training.fields import CAPACITY_STEP, draw_head, load_head, rays_of, sample_capacity, uses_cuda_kernels
from training.loop import LoopSettings, fit
from training.ray_sampler import composite_target, sample_pixels

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_speaker.write_tiny_speaker(tmp_path_factory.mktemp("speaker"))


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The folder of a head that has learnt where the ball is."""
    out = tmp_path_factory.mktemp("head")
    torch.manual_seed(0)
    task = head_task.make_task(folder, SMALL_HEAD, CPU)
    for step in range(150):
        task.training_step(step)
    fit(task, out, LoopSettings(steps=1, validate_every=99, checkpoint_every=1))
    return out


def head_in(folder, trained, **changes):
    torch.manual_seed(4)
    return head_task.make_task(folder, dataclasses.replace(SMALL_HEAD, start=trained, **changes), CPU)


# --- the choice


def test_auto_takes_the_kernels_where_they_run(monkeypatch, caplog):
    monkeypatch.setattr(torch_launcher, "usable", lambda device: True)
    with caplog.at_level("INFO"):
        assert uses_cuda_kernels("auto", GPU) is True
    assert "CUDA kernels" in caplog.text
    assert uses_cuda_kernels("cuda", GPU) is True
    assert uses_cuda_kernels("torch", GPU) is False
    assert uses_cuda_kernels("auto", CPU) is False


def test_auto_takes_the_twin_where_the_kernels_do_not_run(monkeypatch, caplog):
    monkeypatch.setattr(torch_launcher, "usable", lambda device: False)
    with caplog.at_level("INFO"):
        assert uses_cuda_kernels("auto", GPU) is False
    assert "plain torch" in caplog.text


@pytest.mark.parametrize(("device", "why"), [(CPU, "--device cuda"), (GPU, "the log says why")])
def test_kernels_that_do_not_run_are_refused_in_one_line(monkeypatch, device, why):
    monkeypatch.setattr(torch_launcher, "usable", lambda device: False)
    with pytest.raises(ValueError, match=why) as refused:
        uses_cuda_kernels("cuda", device)
    assert "\n" not in str(refused.value)
    assert "--kernels auto" in str(refused.value)


def test_a_training_refuses_missing_kernels_at_its_start(folder):
    with pytest.raises(ValueError, match="kernels: got cuda"):
        head_task.make_task(folder, dataclasses.replace(SMALL_HEAD, kernels="cuda"), CPU)
    with pytest.raises(ValueError, match="kernels: got cuda"):
        torso_task.make_task(folder, dataclasses.replace(SMALL_TORSO, kernels="cuda"), CPU)


# --- kernels against twin


def gradients(module):
    return {
        name: parameter.grad.clone()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and parameter.numel()
    }


def agree(ones, others):
    assert ones.keys() == others.keys()
    for name, one in ones.items():
        # Sums over some thousand samples in another order: a part of their largest member.
        torch.testing.assert_close(
            others[name], one, rtol=1e-3, atol=1e-5 * float(one.abs().max()) + 1e-12, msg=name
        )


@pytest.mark.parametrize("step", [1, 16])
def test_a_head_learns_the_same_by_the_kernels(kernels, folder, trained, step):
    found = []
    for by_kernels in (False, True):
        task = head_in(folder, trained)
        task.head.use_kernels(by_kernels)
        torch.manual_seed(5)
        scalars = task.training_step(step)
        found.append((scalars, gradients(task.head)))
    assert {"encode_3d", "encode_2d", "encode_table_gradient_3d", "encode_point_gradient_2d"} <= set(
        kernels.names
    )
    assert {"march_rays", "pack_samples", "composite_rays", "composite_gradient"} <= set(kernels.names)
    for name, value in found[0][0].items():
        assert float(found[1][0][name]) == pytest.approx(float(value), rel=1e-4), name
    assert max(float(grad.abs().max()) for grad in found[0][1].values()) > 0
    agree(found[0][1], found[1][1])


def test_a_torso_learns_the_same_by_the_kernels(kernels, folder, trained):
    found = []
    for by_kernels in (False, True):
        torch.manual_seed(4)
        task = torso_task.make_task(folder, dataclasses.replace(SMALL_TORSO, head=trained), CPU)
        task.torso.use_kernels(by_kernels)
        task.trained_head.head.use_kernels(by_kernels)
        torch.manual_seed(5)
        scalars = task.training_step(0)
        found.append((scalars, gradients(task.torso)))
    assert {"march_rays", "composite_rays"} <= set(kernels.names)
    for name, value in found[0][0].items():
        assert float(found[1][0][name]) == pytest.approx(float(value), rel=1e-4), name
    agree(found[0][1], found[1][1])


def test_a_head_is_drawn_the_same_by_the_kernels(kernels, folder, trained):
    data = head_in(folder, trained).data
    loaded = load_head(trained)
    drawn = []
    for by_kernels in (False, True):
        loaded.head.use_kernels(by_kernels)
        condition = loaded.head.encode_condition(data.landmarks_normalized[:1])
        drawn.append(draw_head(loaded.head, data.c2w[0], condition, loaded.camera, 64))
    assert "composite_rays" in kernels.names
    assert float(drawn[0].weights_sum.max()) > 0.9
    torch.testing.assert_close(drawn[1].image, drawn[0].image, rtol=0, atol=1e-4)
    for one, other in zip(drawn[0][2:], drawn[1][2:], strict=True):
        # A ray at the border of opaque may end a sample sooner.
        assert float(other) == pytest.approx(float(one), abs=2)
    assert float(drawn[0].samples_hundredth) <= float(drawn[0].samples)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's own tracing
def test_a_field_by_the_kernels_is_compiled_whole(kernels, folder, trained):
    # Traced with its way back, and run without code being made.
    compiled = []
    for wrap in (lambda values: values, partial(torch.compile, backend="aot_eager", fullgraph=True)):
        task = head_in(folder, trained, precision="bf16")
        task.head.use_kernels(True)
        task.values = wrap(task.values)
        torch.manual_seed(5)
        scalars = task.training_step(1)
        compiled.append((float(scalars["mse"]), gradients(task.head)))
    assert compiled[1][0] == pytest.approx(compiled[0][0], rel=1e-3)
    for name, one in compiled[0][1].items():
        # bfloat16 has eight bits.
        torch.testing.assert_close(
            compiled[1][1][name], one, rtol=2e-2, atol=2e-2 * float(one.abs().max()) + 1e-12, msg=name
        )


# --- the loss


def loss_from_padded_samples(task, step):
    """The loss of a step, from samples padded to (N, S), term by term as it is defined."""
    settings, data, head = task.settings, task.data, task.head
    share = task.optimizer.schedule.share(step)
    warm = step < task.warmup_steps
    pixels = sample_pixels(
        data,
        task.box,
        frames=settings.frames_per_step,
        pixels=settings.pixels_per_frame // (4 if warm else 1),
        shares=task.shares,
    )
    scene = composite_target(data, pixels, edge_random_share=settings.edge_random_share)
    rays_o, rays_d, frame = rays_of(pixels, task.poses, task.camera)
    condition = head.encode_condition(data.landmarks_normalized[pixels.frames])
    most = task._samples_allowed(step)
    near, far = near_far(rays_o, rays_d, head.aabb_train, min_near=head.config.min_near)
    samples = march(rays_o, rays_d, near, far, head.occupancy, points=head.points, max_steps=most)
    packed = pack(samples.mask, task.capacity)
    ray = packed.slots // most
    t = samples.t.reshape(-1)[packed.slots]
    positions = (rays_o[ray] + t[:, None] * rays_d[ray]).clamp(-1, 1)
    sigma, geometry, moved = head.density(positions, condition, frame[ray])
    color = head.color(geometry, head.view_features(rays_d, head.individual_embeddings[:1])[ray])
    values = torch.cat((sigma[:, None], color, moved.abs().sum(-1, keepdim=True)), 1)
    values = unpack(values, packed, (len(rays_o), most))  # (N, S, 5)
    drawn = composite(values[..., 0], values[..., 1:4], samples, step=head.step)

    fits = (samples.mask.sum(1).cumsum(0) <= task.capacity).float()
    rays = fits.sum().clamp(min=1)
    image = drawn.image + (1 - drawn.weights_sum)[:, None] * scene.behind.reshape(-1, 3)
    error = (image - scene.target.reshape(-1, 3)).square().mean(-1)
    alpha = drawn.weights_sum.clamp(1e-5, 1 - 1e-5)
    entropy = -(alpha * alpha.log2() + (1 - alpha) * (1 - alpha).log2())
    deep = (samples.t - samples.t[:, :1]) / head.step
    centre = ((drawn.weights * deep).sum(1) / drawn.weights_sum.clamp(min=1e-5)).detach()
    spread = (drawn.weights * (deep - centre[:, None]).square()).sum(1)
    outside = task._outside_face(pixels).reshape(-1).float() * fits
    ambient = (torch.where(drawn.live, values[..., 4], 0.0).mean(1) * outside).sum() / rays
    loss = (
        (error * fits).sum() / rays
        + settings.entropy_weight * (entropy * fits).sum() / rays
        + settings.concentration_weight * share * (spread.clamp(max=64) * fits).sum() / rays
        + settings.ambient_weight * share * ambient
    )
    return loss, fits


@pytest.mark.parametrize(("step", "room"), [(33, 64.0), (61, 64.0), (241, 64.0), (241, 0.5)])
def test_the_loss_of_packed_samples_is_that_of_padded_ones(folder, trained, monkeypatch, step, room):
    # Weights at which each term is a part of the loss that could not be missed.
    task = head_in(
        folder, trained, entropy_weight=0.01, concentration_weight=0.01, ambient_weight=0.3, anneal_steps=300
    )
    task.warmup_steps = SMALL_HEAD.warmup_steps
    task.capacity = int(SMALL_HEAD.frames_per_step * SMALL_HEAD.pixels_per_frame * room)
    losses = []

    def optimizer_step(loss, _step):
        losses.append(float(loss.detach()))
        loss.backward()

    monkeypatch.setattr(task.optimizer, "step", optimizer_step)
    torch.manual_seed(6)
    scalars = task.training_step(step)
    found = gradients(task.head)
    task.head.zero_grad(set_to_none=True)
    torch.manual_seed(6)
    loss, fits = loss_from_padded_samples(task, step)
    loss.backward()
    assert losses == [pytest.approx(float(loss.detach()), rel=1e-5)]
    assert float(scalars["fits"]) == pytest.approx(float(fits.mean()))
    assert (float(fits.mean()) < 1) == (room < 1)
    agree(gradients(task.head), found)


# --- room


def test_a_compiled_head_keeps_to_two_rooms(folder, trained):
    task = head_in(folder, trained, frames_per_step=64, pixels_per_frame=1024)
    task.settings = dataclasses.replace(task.settings, compile=True)
    limit = task.capacity
    settled = head_task.VISIBLE_EVERY
    task._set_capacity(settled - 1, limit // 3)
    assert task.capacity == limit
    task._set_capacity(settled, limit // 3)
    small = task.capacity
    assert limit // 3 < small < limit // 2
    task._set_capacity(settled + 1, limit // 10)
    assert task.capacity == small
    task._set_capacity(settled + 2, small + 1)
    assert task.capacity == limit
    task._set_capacity(settled + 3, limit // 3)
    assert task.capacity == small


def test_room_is_in_whole_steps_and_within_the_limit():
    assert sample_capacity(1, 1 << 20) == CAPACITY_STEP
    assert sample_capacity(0, 1 << 20) == CAPACITY_STEP
    assert sample_capacity(CAPACITY_STEP + 1, 1 << 20) == 2 * CAPACITY_STEP
    assert sample_capacity(1e9, 100_000) == 100_000


def test_rays_that_had_no_room_do_not_teach_the_torso(folder, trained):
    torch.manual_seed(4)
    task = torso_task.make_task(folder, dataclasses.replace(SMALL_TORSO, head=trained), CPU)
    found = []
    for room in (task.capacity, None, 200):
        task.capacity = room
        torch.manual_seed(5)
        pixels = task._sample_pixels()
        found.append(task._trace_head(pixels))
    roomy, exact, tight = found
    torch.testing.assert_close(roomy.drawn.image, exact.drawn.image)
    assert bool(exact.marched.fits.all())
    fits = tight.marched.fits
    assert 0 < int(fits.sum()) < len(fits)
    torch.testing.assert_close(tight.drawn.image[fits], exact.drawn.image[fits])
    task.capacity = 1
    assert torch.isfinite(task.training_step(1)["whole_mse"])


# --- few rows, many takers


@pytest.mark.parametrize("rows", [1, 7])
def test_shared_rows_are_those_of_an_index(rows):
    random = torch.Generator().manual_seed(1)
    table = torch.randn(rows, 5, generator=random, dtype=torch.float64, requires_grad=True)
    row = torch.randint(rows, (400,), generator=random)
    weight = torch.randn(400, 5, generator=random, dtype=torch.float64)
    (table[row] * weight).sum().backward()
    wanted, table.grad = table.grad, None
    taken = shared_rows(table, row)
    torch.testing.assert_close(taken.expand(400, 5), table[row])
    (taken * weight).sum().backward()
    torch.testing.assert_close(table.grad, wanted)


def test_look_and_colour_are_the_same_of_rays_and_of_samples(trained):
    head = load_head(trained).head
    random = torch.Generator().manual_seed(1)
    directions = functional.normalize(torch.randn(30, 3, generator=random), dim=1)
    ray = torch.randint(30, (200,), generator=random)
    geometry = torch.randn(200, head.config.geometry_features, generator=random)
    code = head.individual_embeddings[:1]
    torch.testing.assert_close(
        head.color(geometry, head.view_features(directions[ray], code)),
        head.color(geometry, head.view_features(directions, code)[ray]),
    )
