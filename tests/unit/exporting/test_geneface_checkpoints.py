from __future__ import annotations

import dataclasses
import os
import shutil

import pytest
import torch
import yaml
from geneface_checkpoint import refused, write_work_folder

from export.geneface.checkpoints import (
    build_audio2motion,
    build_head,
    build_postnet,
    build_syncnet,
    build_torso,
    read_checkpoint,
    read_networks,
)
from export.geneface.work_folders import GenefaceFolders, find_folders
from models.audio2motion import Audio2Motion, Audio2MotionConfig
from models.condition import ConditionConfig
from models.encodings import GridConfig
from models.head import Head, HeadConfig
from models.postnet import MotionDiscriminator, PostNet, PostNetConfig
from models.syncnet import SyncNet
from models.torso import Torso, TorsoConfig

FIELD = {
    "video_id": "May",
    "work_dir": "checkpoints/May/lm3d_radnerf",
    "cond_type": "idexp_lm3d_normalized",
    "cond_win_size": 1,
    "smo_win_size": 3,
    "with_att": True,
    "cond_out_dim": 8,
    "ambient_out_dim": 2,
    "bound": 1,
    "camera_scale": 3,
    "camera_offset": [0, 0.5, 0],
    "desired_resolution": 64,
    "log2_hashmap_size": 8,
    "grid_type": "hashgrid",
    "grid_interpolation_type": "smoothstep",
    "hidden_dim_ambient": 16,
    "hidden_dim_sigma": 24,
    "hidden_dim_color": 32,
    "num_layers_ambient": 2,
    "num_layers_sigma": 3,
    "num_layers_color": 2,
    "geo_feat_dim": 8,
    "individual_embedding_num": 5,
    "individual_embedding_dim": 4,
    "torso_individual_embedding_dim": 6,
    "torso_shrink": 0.75,
    "torso_head_aware": False,
    "grid_size": 16,
    "max_steps": 16,
    "min_near": 0.05,
    "density_thresh": 10,
    "density_thresh_torso": 0.01,
    "infer_lm3d_clamp_std": 2.0,
}
SMALL_GRID = GridConfig(desired_resolution=64, log2_rows=8, hashed=True, smoothstep=True)
HEAD = HeadConfig(
    condition=ConditionConfig(window_frames=3, lookahead_frames=1, outputs=8),
    position_grid=SMALL_GRID,
    ambient_grid=SMALL_GRID,
    hidden_ambient=16,
    hidden_sigma=24,
    hidden_color=32,
    layers_ambient=2,
    geometry_features=8,
    codes=5,
    grid_size=16,
    camera_scale=3.0,
    camera_offset=(0.0, 0.5, 0.0),
)
TORSO = TorsoConfig(codes=5, code_width=6, shrink=0.75, grid_size=16)
MOTION = {"video_id": "May", "work_dir": "checkpoints/May/lm3d_postnet_sync"}


def config(**changes):
    return yaml.safe_dump({key: value for key, value in (FIELD | changes).items() if value is not None})


def nested(network, name):
    return {f"{name}.{key}": value for key, value in network.state_dict().items()}


def state(network):
    return dict(network.state_dict())


@pytest.fixture(scope="module")
def field_states():
    torch.manual_seed(0)
    return state(Head(HEAD)), state(Torso(TORSO))


@pytest.fixture(scope="module")
def motion_checkpoint(tmp_path_factory):
    """A PostNet's checkpoint without SyncNet, which is large and not always needed."""
    torch.manual_seed(1)
    children = {
        "audio2motion_task": nested(Audio2Motion(), "model"),
        "disc_model": state(MotionDiscriminator()),
        "model": state(PostNet()),
    }
    return write_work_folder(tmp_path_factory.mktemp("postnet"), children, config=yaml.safe_dump(MOTION))


@pytest.fixture
def checkpoints(tmp_path, motion_checkpoint, field_states):
    """GeneFace's folder `checkpoints` with the work folders of May."""
    head, torso = field_states
    may = tmp_path / "checkpoints" / "May"
    shutil.copytree(motion_checkpoint.parent, may / "lm3d_postnet_sync", copy_function=os.link)
    criterion = {"criterion_lpips": {"scaling_layer.shift": torch.zeros(1)}}
    write_work_folder(may / "lm3d_radnerf", {**criterion, "model": head}, step=90, config=config())
    write_work_folder(
        may / "lm3d_radnerf_torso", {**criterion, "model": head | torso}, step=70, config=config()
    )
    return tmp_path / "checkpoints"


# A speaker -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "May"])
def test_a_speaker_out_of_geneface_s_folders(checkpoints, field_states, motion_checkpoint, below):
    networks = read_networks(find_folders(checkpoints / below, "May"), "May")
    saved = torch.load(motion_checkpoint, weights_only=False)["state_dict"]
    for name, tensor in networks.audio2motion.state_dict().items():
        assert torch.equal(tensor, saved["audio2motion_task"][f"model.{name}"])
    for ours, theirs in (
        (networks.postnet, saved["model"]),
        (networks.head, field_states[0]),
        (networks.torso, field_states[1]),
    ):
        assert not ours.training
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())
    assert networks.head.config == HEAD
    assert networks.torso.config == TORSO
    assert networks.syncnet is None
    assert not networks.takes_pitch
    assert (networks.camera_scale, networks.camera_offset) == (3.0, (0.0, 0.5, 0.0))
    assert (networks.clamp_std, networks.window_frames) == (2.0, 3)
    steps = {source.part: (source.path.parent.name, source.step) for source in networks.sources}
    assert steps == {
        "postnet": ("lm3d_postnet_sync", 10),
        "audio2motion": ("lm3d_postnet_sync", 10),
        "head": ("lm3d_radnerf_torso", 70),
        "torso": ("lm3d_radnerf_torso", 70),
    }


def test_a_speaker_without_torso_out_of_files_one_by_one(checkpoints):
    may = checkpoints / "May"
    shutil.rmtree(may / "lm3d_radnerf_torso")
    (may / "lm3d_radnerf" / "model_ckpt_steps_90.ckpt").rename(may / "lm3d_radnerf" / "model_ckpt_best.pt")
    folders = GenefaceFolders(
        postnet=may / "lm3d_postnet_sync" / "model_ckpt_steps_10.ckpt", head=may / "lm3d_radnerf"
    )
    networks = read_networks(folders, "May")
    assert networks.torso is None
    assert [(source.part, source.reason) for source in networks.sources] == [
        ("postnet", "given"),
        ("audio2motion", "PostNet's"),
        ("head", "the best in validation; no other was kept"),
    ]


def test_the_head_of_a_torsos_checkpoint_is_given_as_a_head(checkpoints):
    may = checkpoints / "May"
    folders = GenefaceFolders(postnet=may / "lm3d_postnet_sync", head=may / "lm3d_radnerf_torso")
    assert read_networks(folders, "May").torso is None


def test_flat_keys_are_parted(tmp_path, field_states):
    flat = {f"model.{key}": value for key, value in (field_states[0] | field_states[1]).items()}
    file = write_work_folder(tmp_path, flat | {"criterion_lpips.net.a": torch.zeros(1)}, config=config())
    checkpoint = read_checkpoint(file)
    assert checkpoint.kind == "torso"
    assert build_head(checkpoint).config == HEAD
    assert build_torso(checkpoint).config == TORSO


def test_the_newest_checkpoint_is_taken(checkpoints):
    folder = checkpoints / "May" / "lm3d_radnerf_torso"
    old = (folder / "model_ckpt_steps_70.ckpt").read_bytes()
    for name in ("model_ckpt_steps_9.ckpt", "model_ckpt_best.pt", "model_ckpt_steps_800.ckpt.part"):
        (folder / name).write_bytes(b"not to be opened")
    (folder / "model_ckpt_steps_100.ckpt").write_bytes(old)
    networks = read_networks(find_folders(checkpoints, "May"), "May")
    (torso,) = (source for source in networks.sources if source.part == "torso")
    assert (torso.path.name, torso.reason) == ("model_ckpt_steps_100.ckpt", "the newest of 3")


def test_the_postnet_s_step_can_be_given(checkpoints):
    networks = read_networks(find_folders(checkpoints, "May"), "May", postnet_steps=10)
    assert (networks.sources[0].step, networks.sources[0].reason) == (10, "the step given")


def test_pitch_is_told_by_keys(tmp_path):
    audio2motion = Audio2Motion(Audio2MotionConfig(pitch_channels=32))
    children = {
        "audio2motion_task": nested(audio2motion, "model"),
        "model": state(PostNet(PostNetConfig(pitch_channels=64))),
        "pitch_embed": {"weight": audio2motion.pitch_embed.weight.detach()},
    }
    checkpoint = read_checkpoint(write_work_folder(tmp_path, children, config="video_id: May"))
    assert build_audio2motion(checkpoint).config.pitch_channels == 32
    assert build_postnet(checkpoint).config.pitch_channels == 64


def test_a_postnet_that_takes_pitch_needs_its_embedding(tmp_path):
    children = {"audio2motion_task": {}, "model": state(PostNet(PostNetConfig(pitch_channels=64)))}
    checkpoint = read_checkpoint(write_work_folder(tmp_path, children, config="video_id: May"))
    key = "state_dict.audio2motion_task.model.pitch_embed.weight"
    said = refused(build_postnet, checkpoint)
    assert (said.where, said.got) == (f"{checkpoint.path}: {key}", "none")


def test_syncnet_is_taken_out_of_what_it_judged(tmp_path):
    syncnet = SyncNet()
    children = {"syncnet_task": nested(syncnet, "model"), "model": {"block1.x": torch.zeros(1)}}
    checkpoint = read_checkpoint(write_work_folder(tmp_path, children, config="video_id: May"))
    taken = build_syncnet(checkpoint).state_dict()
    assert all(torch.equal(tensor, taken[key]) for key, tensor in syncnet.state_dict().items())


# Configs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cond_type": "deepspeech"}, "cond_type"),
        ({"cond_win_size": 16}, "cond_win_size"),
        ({"with_att": False}, "with_att"),
        ({"ambient_out_dim": 3}, "ambient_out_dim"),
        ({"grid_type": "sparse"}, "grid_type"),
        ({"grid_interpolation_type": "cubic"}, "grid_interpolation_type"),
        ({"camera_scale": None}, "camera_scale: expected float, got none"),
        ({"camera_offset": [1, 2]}, "camera_offset"),
        ({"camera_offset": ["x", 1, 2]}, "camera_offset"),
        ({"grid_size": "16"}, "grid_size"),
        ({"grid_size": 17}, "grid_size"),
        ({"bound": 2}, "bound"),
        ({"hidden_dim_sigma": True}, "hidden_dim_sigma"),
        ({"log2_hashmap_size": 30}, "log2_hashmap_size: expected 3 to 19"),
        ({"smo_win_size": 0}, "smo_win_size: expected 1 to 64"),
        ({"smo_win_size": 10**6}, "smo_win_size: expected 1 to 64"),
        ({"bound": float("inf")}, "bound: expected above 0 and at most 1, got inf"),
        ({"bound": 1e308}, "bound: expected above 0 and at most 1, got 1e+308"),
        ({"bound": float("nan")}, "bound"),
        ({"desired_resolution": 10**39}, "desired_resolution: expected 16 to 2048, got a huge number"),
        ({"camera_offset": [float("inf"), 0, 0]}, "camera_offset: expected 3 numbers within 1e4"),
        ({"camera_offset": [10**39, 0, 0]}, "camera_offset"),
        ({"camera_scale": 0}, "camera_scale: expected 0.0001 to 10000"),
        ({"density_thresh": float("nan")}, "density_thresh: expected 0 to 1e+06, got nan"),
        *(
            ({key: value}, f"{key}: expected {expected}")
            for key, expected in (
                ("cond_out_dim", "1 to 1024"),
                ("hidden_dim_ambient", "1 to 1024"),
                ("hidden_dim_sigma", "1 to 1024"),
                ("hidden_dim_color", "1 to 1024"),
                ("num_layers_ambient", "1 to 16"),
                ("num_layers_sigma", "1 to 16"),
                ("num_layers_color", "1 to 16"),
                ("geo_feat_dim", "0 to 1024"),
                ("individual_embedding_num", "1 to 200000"),
                ("individual_embedding_dim", "0 to 256"),
                ("grid_size", "a power of two from 8 to 512"),
                ("max_steps", "1 to 1024"),
            )
            for value in (-1, 10**6, 10**18)
        ),
    ],
)
def test_a_config_that_cannot_be_streamed_is_refused(tmp_path, field_states, changes, named):
    file = write_work_folder(tmp_path, {"model": field_states[0]}, config=config(**changes))
    field, _, expected = named.partition(": ")
    said = refused(build_head, read_checkpoint(file))
    assert said.where == f"{tmp_path / 'config.yaml'}: {field}"
    assert f"expected {said.expected}, got {said.got}".startswith(expected)


@pytest.mark.parametrize("value", [-1, 10**6, 10**18])
@pytest.mark.parametrize(
    "key", ["individual_embedding_num", "torso_individual_embedding_dim", "torso_shrink", "grid_size"]
)
def test_a_torsos_size_out_of_range_is_refused(tmp_path, field_states, key, value):
    model = field_states[0] | field_states[1]
    checkpoint = read_checkpoint(write_work_folder(tmp_path, {"model": model}, config=config(**{key: value})))
    assert refused(build_torso, checkpoint).where == f"{tmp_path / 'config.yaml'}: {key}"


def test_a_number_too_large_for_a_float_is_refused(tmp_path, field_states):
    checkpoint = read_checkpoint(write_work_folder(tmp_path, {"model": field_states[0]}, config=config()))
    for changed in ({"bound": 10**400}, {"camera_offset": [10**400, 0, 0]}):
        said = refused(build_head, dataclasses.replace(checkpoint, config=FIELD | changed))
        assert said.where.endswith(f": {next(iter(changed))}")


def test_a_checkpoint_without_config_is_refused(tmp_path):
    file = write_work_folder(tmp_path, {"model": {"block1.a": torch.zeros(1)}})
    assert refused(read_checkpoint, file).where == str(tmp_path / "config.yaml")


# Refusals --------------------------------------------------------------------------------------------


def torso_refused(tmp_path, field_states, change, settings=None):
    model = field_states[0] | field_states[1]
    change(model)
    checkpoint = read_checkpoint(
        write_work_folder(tmp_path, {"model": model}, config=config(**(settings or {})))
    )

    return refused(lambda: (build_head(checkpoint), build_torso(checkpoint)))


@pytest.mark.parametrize(
    ("change", "key", "expected", "got"),
    [
        (
            lambda model: model.pop("sigma_net.net.1.weight"),
            "sigma_net.net.1.weight", "24x24 float32", "none",
        ),
        (lambda model: model.pop("torso_embedder.offsets"), "torso_embedder.offsets", "17 int32", "none"),
        (lambda model: model.update(extra=torch.zeros(2, 3)), "extra", "no such key", "2x3 float32"),
        (
            lambda model: model.update({"color_net.net.0.weight": torch.zeros(64, 28)}),
            "color_net.net.0.weight", "32x28 float32", "64x28 float32",
        ),
        (
            lambda model: model.update({"color_net.net.0.weight": torch.zeros(32, 28).half()}),
            "color_net.net.0.weight", "32x28 float32", "32x28 float16",
        ),
        (
            lambda model: model.update({"torso_deform_net.net.2.weight": torch.full((2, 64), torch.nan)}),
            "torso_deform_net.net.2.weight", "finite numbers", "others",
        ),
    ],
)  # fmt: skip
def test_a_key_that_does_not_fit_is_named(tmp_path, field_states, change, key, expected, got):
    said = torso_refused(tmp_path, field_states, change)
    file = tmp_path / "model_ckpt_steps_10.ckpt"
    assert said[:3] == (f"{file}: state_dict.model.{key}", expected, got)


def test_a_config_of_another_training_is_told_by_the_first_key_and_their_number(tmp_path, field_states):
    said = torso_refused(tmp_path, field_states, lambda model: None, {"hidden_dim_sigma": 48})
    assert ": state_dict.model.sigma_net.net" in said.where
    assert said.expected.startswith("48x")
    assert said.got.startswith("24x")
    assert said.got.endswith("(and 2 keys more)")


@pytest.mark.parametrize(
    ("change", "settings", "named"),
    [
        (
            lambda model: model.update({"head_color_weights_encoder.0.weight": torch.zeros(16, 4)}),
            {},
            "head_color_weights_encoder.0.weight",
        ),
        (lambda model: None, {"torso_head_aware": True}, "torso_head_aware"),
    ],
)
def test_a_torso_that_looks_at_the_head_is_refused(tmp_path, field_states, change, settings, named):
    said = torso_refused(tmp_path, field_states, change, settings)
    assert said.where.endswith(f": {named}")
    assert "by chance" in said.got


@pytest.mark.parametrize(
    ("place", "keys", "project"),
    [
        ("model", ("encoder_xy.embeddings", "audio_net.encoder_conv.0.weight"), "ER-NeRF"),
        ("model", ("anchor_points", "torso_net.net.0.weight", "audio_net.encoder_conv.0.weight"), "ER-NeRF"),
        ("model", ("encoder_ambient.embeddings", "ambient_net.net.0.weight"), "RAD-NeRF"),
        ("nested", ("sr_net.block0.conv0.weight", "ambient_net.net.0.weight"), "GeneFace++"),
        ("flat", ("blink_embedding.weight", "cond_prenet.encoder_conv.0.weight"), "GeneFace++"),
        ("nested", ("blink_embed.weight", "vae.g_pre_net.0.weight"), "GeneFace++"),
        ("nested", ("model_fine.density_linears.0.weight", "lm_encoder.encoder_conv.0.weight"), "vanilla"),
        ("top", ("network_fn_state_dict", "network_audnet_state_dict"), "vanilla"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_another_projects_checkpoint_is_named_and_refused(tmp_path, place, keys, project, zipped):
    tensors = {key: torch.zeros(1) for key in keys}
    content = {
        "model": {"epoch": 1, "global_step": 2, "model": tensors},
        "nested": {"global_step": 2, "state_dict": {"model": tensors}},
        "flat": {"global_step": 2, "state_dict": {f"model.{key}": value for key, value in tensors.items()}},
        "top": {"global_step": 2, **tensors},
    }[place]
    file = tmp_path / "ngp_ep0035.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    said = refused(read_checkpoint, file)
    assert (said.where, said.expected) == (str(file), "a GeneFace checkpoint")
    assert project in said.got
    assert "lm3d_radnerf" in said.way_out


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([1], "a dict"),
        ({"weight": torch.zeros(1)}, "state_dict"),
        ({"state_dict": {"model": {"vae.a": torch.zeros(1)}}}, "global_step"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content, named):
    torch.save(content, tmp_path / "a.ckpt")
    said = refused(read_checkpoint, tmp_path / "a.ckpt")
    assert said.where.startswith(str(tmp_path / "a.ckpt"))
    assert named in (said.expected, said.where.rpartition(": ")[2])


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("vae.a", "Audio2Motion"),
        ("hubert_encoder.a", "SyncNet"),
        ("ambient_net.a", "head"),
        ("torso_embedder.a", "torso"),
    ],
)
def test_another_kind_in_postnets_folder_is_refused(checkpoints, key, kind):
    folder = checkpoints / "May" / "lm3d_postnet_sync"
    shutil.rmtree(folder)
    write_work_folder(folder, {"model": {key: torch.zeros(1)}}, config=yaml.safe_dump(MOTION))
    said = refused(read_networks, find_folders(checkpoints, "May"), "May")
    assert said.where.startswith(str(folder))
    assert (said.expected, said.got) == ("a checkpoint of PostNet", f"one of {kind}")


def test_a_head_in_the_torsos_folder_and_unknown_keys_are_refused(tmp_path, field_states):
    head = read_checkpoint(write_work_folder(tmp_path, {"model": field_states[0]}, config=config()))
    assert refused(build_torso, head)[1:3] == ("a checkpoint of torso", "one of head")
    strange = read_checkpoint(write_work_folder(tmp_path, {"model": {"a": torch.zeros(1)}}, config=config()))
    said = refused(build_head, strange)
    assert said.where.endswith(": state_dict.model")
    assert said.expected.startswith("the keys of one of PostNet")


def test_a_postnet_without_audio2motion_is_refused(tmp_path):
    children = {"model": {"block1.a": torch.zeros(1)}}
    checkpoint = read_checkpoint(write_work_folder(tmp_path, children, config="video_id: May"))
    for build, task in ((build_audio2motion, "audio2motion_task"), (build_syncnet, "syncnet_task")):
        assert refused(build, checkpoint).where == f"{checkpoint.path}: state_dict.{task}"


@pytest.mark.parametrize("part", ["lm3d_postnet_sync", "lm3d_radnerf_torso"])
@pytest.mark.parametrize(
    ("text", "got"),
    [("video_id: Obama", "Obama"), ("work_dir: checkpoints/Obama/x", "Obama"), ("a: 1", "none")],
)
def test_another_speaker_is_refused(checkpoints, part, text, got):
    file = checkpoints / "May" / part / "config.yaml"
    file.unlink()
    file.write_text(text)
    said = refused(read_networks, find_folders(checkpoints, "May"), "May")
    assert said.where.startswith(f"{file}: ")
    assert (said.expected, said.got) == ("May", got)


def test_without_video_id_the_work_folder_names_the_speaker(checkpoints):
    file = checkpoints / "May" / "lm3d_postnet_sync" / "config.yaml"
    file.unlink()
    file.write_text("work_dir: checkpoints/May/lm3d_postnet_sync")
    assert read_networks(find_folders(checkpoints, "May"), "May").clamp_std == 2.0


def test_a_truncated_checkpoint_is_refused(checkpoints):
    file = checkpoints / "May" / "lm3d_radnerf_torso" / "model_ckpt_steps_70.ckpt"
    os.truncate(file, file.stat().st_size - 100)
    said = refused(read_networks, find_folders(checkpoints, "May"), "May")
    assert said.where.startswith(f"{file}: storage ")
    assert "truncated" in said.way_out


def test_absent_folders_are_refused(tmp_path, checkpoints):
    for root, speaker in ((tmp_path / "none", "May"), (checkpoints, "Obama")):
        said = refused(find_folders, root, speaker)
        assert said.where.startswith(str(root))
        assert speaker in " ".join(said)
    empty = tmp_path / "empty"
    for head in (empty, tmp_path / "absent"):
        empty.mkdir(exist_ok=True)
        given = GenefaceFolders(postnet=checkpoints / "May" / "lm3d_postnet_sync", head=head)
        assert refused(read_networks, given, "May").where.startswith(str(head))
