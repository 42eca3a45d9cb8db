"""From checkpoints to a bundle: small networks with random weights, a made-up speaker, the real export."""

from __future__ import annotations

import dataclasses
import json
import shutil

import bundle_factory
import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from causal_networks import motion_windows

from cuda_kernels.torch_reference import render_scene
from export.bundle.motion import motion_window_frames
from export.bundle.pose_loop import rotations_of
from export.cli import main
from models.audio2motion import Audio2Motion, Audio2MotionConfig
from models.condition import ConditionConfig
from models.encodings import GridConfig
from models.features import LogMel
from models.head import Head, HeadConfig
from models.postnet import PostNet, PostNetConfig
from models.speaker import load_speaker
from models.syncnet import SyncNet, SyncNetConfig
from models.torso import Torso, TorsoConfig
from training.loop import save_checkpoint

SIZE_PX = 64
FRAMES = 1500


def save(folder, task, state):
    folder.mkdir(parents=True)
    content = {"version": 1, "task": task, "step": 1234, "state": state, "rng": {}}
    save_checkpoint(folder / "checkpoint_00001234.pt", content)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Checkpoints and a speaker's folder, as training leaves and finds them."""
    root = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    a2m = Audio2Motion(Audio2MotionConfig.streaming()).eval()
    save(root / "audio2motion", "audio2motion", trained(a2m))
    (root / "audio2motion" / "settings.json").write_text(
        json.dumps({"settings": {"batch": 3, "data": "/somewhere"}, "loop": {"seed": 77}})
    )
    save(root / "postnet", "postnet", trained(PostNet(PostNetConfig.streaming()).eval()))
    save(root / "syncnet", "syncnet", trained(SyncNet(SyncNetConfig.streaming()).eval()))

    scene = bundle_factory.tiny_scene(random, image_size_px=SIZE_PX)
    camera = dataclasses.asdict(scene.camera)
    mean_face = bundle_factory.schematic_face()
    facts = {
        "camera": camera,
        "image_size_px": SIZE_PX,
        "mean_face": torch.from_numpy(mean_face),
        "landmark_mean": torch.zeros(68, 3),
        "landmark_std": torch.full((68, 3), 0.4),
    }
    grid = GridConfig(levels=4, log2_rows=8, desired_resolution=64)
    head = Head(
        HeadConfig(
            condition=ConditionConfig(window_frames=1, lookahead_frames=0, hidden=(16,) * 4, outputs=8),
            position_grid=grid,
            ambient_grid=grid,
            hidden_ambient=16,
            hidden_sigma=16,
            hidden_color=16,
            geometry_features=15,
            codes=1,
            code_width=0,
            camera_scale=camera["scale"],
        )
    )
    with torch.no_grad():
        for embedder in (head.position_embedder, head.ambient_embedder):
            embedder.embeddings.uniform_(-1, 1)
        head.sigma_net.net[-1].weight[0] += 0.3
        head.density_bitfield.copy_(torch.from_numpy(scene.head.density_bitfield))
    save(root / "head", "head", trained(head) | {"speaker": facts})
    torso = Torso(TorsoConfig(grid=grid, hidden_deform=16, hidden_canonical=16, codes=1))
    with torch.no_grad():
        torso.torso_embedder.embeddings.uniform_(-1, 1)
        torso.density_grid_torso.view(128, 128)[30:100, 90:] = 1.0
    save(root / "torso", "torso", trained(torso) | {"speaker": facts})

    data = root / "data"
    data.mkdir()
    landmarks = np.tile(mean_face, (FRAMES, 1, 1))
    landmarks += 0.002 * random.normal(size=landmarks.shape)
    for peak in range(60, FRAMES - 60, 90):
        for lid in (37, 38, 43, 44):
            landmarks[peak - 1 : peak + 3, lid, 1] -= 0.085 * np.array([0.4, 1.0, 0.8, 0.3])
    times = np.arange(FRAMES)[:, None] / 25
    turns = 0.08 * np.sin(2 * np.pi * times * [0.05, 0.1, 0.15] + [0, 1, 2])
    w2c = np.tile(np.eye(4), (FRAMES, 1, 1))
    w2c[:, :3, :3] = rotations_of(turns)
    w2c[:, 2, 3] = -bundle_factory.CAMERA_DISTANCE_DM
    np.savez(
        data / "truth.npz", landmarks=landmarks.astype(np.float32), c2w=np.linalg.inv(w2c).astype(np.float32)
    )
    cv2.imwrite(str(data / "background.png"), scene.background[..., ::-1])
    corpus = root / "corpus"
    corpus.mkdir()
    np.savez(corpus / "landmarks.npz", mean_face=mean_face)
    (root / "origin.json").write_text(
        json.dumps(
            {
                "subject": "an ellipsoid",
                "consent": "none needed",
                "data": "made up",
                "recipe": "none",
                "synthetic": True,
                "licence": "Apache-2.0",
            }
        )
    )
    (root / "figures.json").write_text(json.dumps({"head": {"psnr_db": 31.25}, "note": "x"}))
    return root


def trained(net):
    return {"model": net.state_dict(), "config": dataclasses.asdict(net.config)}


def arguments(sources, out, **changes):
    given = {
        "audio2motion": sources / "audio2motion",
        "postnet": sources / "postnet",
        "syncnet": sources / "syncnet",
        "head": sources / "head",
        "torso": sources / "torso",
        "data": sources / "data",
        "corpus": sources / "corpus",
        "origin": sources / "origin.json",
        "figures": sources / "figures.json",
        "name": "Tess",
        "out": out,
        "check_size_px": 64,
        "check_poses": 2,
    } | changes
    flags = []
    for key, value in given.items():
        if value is not None:
            flags += ["--" + key.replace("_", "-"), str(value)]
    return ["bundle", *flags]


@pytest.fixture(scope="module")
def made(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "Tess"
    assert main(arguments(sources, out)) == 0
    return out


def test_the_bundle_holds_what_was_trained(sources, made):
    speaker = load_speaker(made)
    assert speaker.name == "Tess"
    assert speaker.synthetic
    assert speaker.lookahead_frames == 4
    sizes = Audio2MotionConfig.streaming(), PostNetConfig.streaming()
    assert speaker.motion.window_frames == motion_window_frames(*sizes)
    assert speaker.figures == {"head.psnr_db": 31.25}
    assert set(speaker.verification) == {
        "plates_psnr_db",
        "plates_share",
        "motion_largest_error",
        "motion_float16_change",
        "syncnet_largest_error",
        "syncnet_float16_change",
        "condition_largest_error",
        "loop_seam_step",
        "loop_seam_acceleration",
        "float16_psnr_db",
        "raymarcher_psnr_db",
    }
    assert speaker.verification["raymarcher_psnr_db"] >= 45
    np.testing.assert_array_equal(speaker.motion.mean_face, bundle_factory.schematic_face())


def test_motion_onnx_gives_what_the_torch_chain_gives(sources, made):
    speaker = load_speaker(made)
    state = torch.load(sources / "audio2motion" / "checkpoint_00001234.pt", weights_only=True)["state"]
    net = Audio2Motion(Audio2MotionConfig(**state["config"])).eval()
    net.load_state_dict(state["model"])
    post = torch.load(sources / "postnet" / "checkpoint_00001234.pt", weights_only=True)["state"]
    postnet = PostNet(PostNetConfig(**post["config"])).eval()
    postnet.load_state_dict(post["model"])

    pcm = (0.2 * np.random.default_rng(5).normal(size=640 * 60)).astype(np.float32)
    windows = motion_windows(
        pcm,
        window_frames=speaker.motion.window_frames,
        lookahead_frames=speaker.lookahead_frames,
        left_context_samples=192,
    )
    session = onnxruntime.InferenceSession(speaker.motion_onnx)
    got = np.stack([session.run(None, {"pcm": window[None]})[0][0] for window in windows])  # (60, 204)
    silence = np.zeros(640 * 4, np.float32)
    with torch.no_grad():
        features = LogMel().causal(torch.from_numpy(np.concatenate([pcm, silence]))[None])
        expected = postnet(net.predict(features))[0].numpy()
    # The first frames differ: the window hears silence before the clip, the whole clip is padded with zeros.
    warm = speaker.motion.window_frames
    # Weights are float16 in the bundle: the change was measured at export, on other sound.
    allowed = 1e-4 + 5 * speaker.verification["motion_float16_change"]
    np.testing.assert_allclose(got[warm:], expected[warm:60], atol=allowed)
    assert allowed < 0.1


def test_graphs_keep_nothing_of_the_machine_they_were_made_on(made):
    for file in made.glob("*.onnx"):
        content = file.read_bytes()
        assert b"/models/" not in content, file.name
        assert b'File "' not in content, file.name


def test_the_picture_is_the_trained_heads(sources, made):
    speaker = load_speaker(made)
    from training.fields import load_head, load_torso

    head, torso = load_head(sources / "head"), load_torso(sources / "torso")
    scene = dataclasses.replace(
        speaker.scene, head=head.head.field(), torso=torso.torso.field(), camera=head.camera
    )
    condition = np.random.default_rng(1).normal(size=8).astype(np.float32)
    for c2w in speaker.poses[::200]:
        expected = render_scene(scene, c2w=c2w, condition=condition, size_px=64).numpy()
        got = render_scene(speaker.scene, c2w=c2w, condition=condition, size_px=64).numpy()
        assert -10 * np.log10(np.mean((got - expected) ** 2)) > 45  # grids are float16 in the bundle
        assert got.std() > 0.05  # a picture, not a plain


def test_the_card_says_what_it_is_and_how_it_was_made(made):
    card = (made / "MODEL_CARD.md").read_text()
    assert "Tess is a synthetic character, nobody's likeness." in card
    assert "| audio2motion | 1234 |" in card
    assert "| 77 | batch 3 |" in card
    assert "/somewhere" not in card
    assert "| head.psnr_db | 31.25 |" in card
    assert "4 frames (160 ms)" in card


def test_verify_passes_and_finds_a_swapped_network(made, tmp_path, capsys):
    assert main(["verify", str(made)]) == 0
    printed = capsys.readouterr().out
    assert "CPU raymarcher against torch" in printed
    assert "FAILED" not in printed

    forged = tmp_path / "Forged"
    shutil.copytree(made, forged)
    shutil.copy(made / "condition.onnx", forged / "motion.onnx")
    assert main(["seal", str(forged)]) == 0
    capsys.readouterr()
    assert main(["verify", str(forged)]) == 2
    assert "motion.onnx: graph: expected a graph from pcm" in capsys.readouterr().err


def motion_arguments(sources, bundle, **changes):
    """Returns the command line that gives a bundle other motion."""
    options = {
        "audio2motion": sources / "audio2motion",
        "data": sources / "data",
        "corpus": sources / "corpus",
    }
    flags = [f"--{name}={value}" for name, value in (options | changes).items()]
    return ["motion", str(bundle), *flags, "--no-plates"]


def contents(bundle):
    """Returns the bytes of each of a bundle's files by name."""
    return {path.name: path.read_bytes() for path in bundle.iterdir()}


def test_other_motion_takes_the_place_of_the_old_and_all_else_stays(sources, made, tmp_path):
    copy = tmp_path / "Tess"
    shutil.copytree(made, copy)
    (tmp_path / "of_motion.json").write_text(json.dumps({"corpus_aperture_r": 0.5, "own_voice_width_r": 0.6}))
    assert main(["figures", str(copy), str(tmp_path / "of_motion.json")]) == 0
    before = contents(copy)
    assert main(motion_arguments(sources, copy, ema=0.05, origin=sources / "origin.json")) == 0
    after = contents(copy)
    changed = {"motion.onnx", "syncnet.onnx", "speaker.json", "MODEL_CARD.md"}
    assert {name for name in before if before[name] != after.get(name)} == changed
    assert "syncnet.onnx" not in after  # none was given
    speaker = load_speaker(copy)
    assert speaker.motion.ema == 0.05
    assert speaker.motion.window_frames < load_speaker(made).motion.window_frames  # no PostNet any more
    assert speaker.figures == {"head.psnr_db": 31.25}
    card = after["MODEL_CARD.md"].decode()
    frames = speaker.motion.window_frames
    assert f"| memory | {frames} frames ({0.04 * frames:.2f} s) of sound |" in card
    assert "corpus_aperture_r" not in card
    assert "| postnet |" not in card
    assert "syncnet" not in card
    assert card.count("\n| head | 1234 |") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"audio2motion": "nowhere"}, "nowhere: expected a training folder or a checkpoint"),
        ({"data": "nowhere"}, "nowhere/truth.npz: expected an npz with landmarks, c2w, got no such file"),
        ({"origin": "nowhere.json"}, "nowhere.json: expected a JSON object with subject"),
        ({"advance_features": 9}, "advance_features: expected"),
    ],
)
def test_motion_that_is_refused_leaves_the_bundle_as_it_was(sources, made, tmp_path, capsys, changes, said):
    copy = tmp_path / "Tess"
    shutil.copytree(made, copy)
    before = contents(copy)
    changes = {name.replace("_", "-"): value for name, value in changes.items()}
    assert main(motion_arguments(sources, copy, **changes)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert contents(copy) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["Tess"]


def test_figures_go_into_bundle_and_card(made, tmp_path, capsys):
    copy = tmp_path / "Tess"
    shutil.copytree(made, copy)
    (tmp_path / "more.json").write_text(json.dumps({"sync": {"wins": 0.97}}))
    assert main(["figures", str(copy), str(tmp_path / "more.json")]) == 0
    speaker = load_speaker(copy)
    assert speaker.figures == {"head.psnr_db": 31.25, "sync.wins": 0.97}
    card = (copy / "MODEL_CARD.md").read_text()
    assert "| sync.wins | 0.97 |" in card
    assert card.count("## How good it is") == 1
    assert "## How the export was checked" in card
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head": "nowhere"}, "nowhere: expected a training folder or a checkpoint"),
        ({"data": "nowhere"}, "nowhere/truth.npz: expected an npz with landmarks, c2w, got no such file"),
        ({"corpus": "nowhere"}, "nowhere/landmarks.npz: expected an npz with mean_face, got no such file"),
        ({"origin": "nowhere.json"}, "nowhere.json: expected a JSON object with subject"),
        ({"figures": "nowhere.json"}, "nowhere.json: expected JSON with measured figures"),
        ({"max_mb": 0.01, "postnet": None, "syncnet": None}, "size: expected at most 10000 bytes"),
        ({"max_mb": -1}, "max_mb: expected more than 0"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(sources, tmp_path, capsys, changes, said):
    out = tmp_path / "Tess"
    assert main(arguments(sources, out, **changes)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("geneface-export bundle: ")
    assert said in error
    assert not out.exists()


def test_a_network_that_has_diverged_is_refused(sources, tmp_path, capsys):
    content = torch.load(sources / "syncnet" / "checkpoint_00001234.pt", weights_only=True)
    content["state"]["model"]["mouth_encoder.3.conv_block.0.bias"][:] = torch.nan
    (tmp_path / "syncnet").mkdir()
    save_checkpoint(tmp_path / "syncnet" / "checkpoint_00001234.pt", content)
    changes = {"syncnet": tmp_path / "syncnet", "postnet": None}
    assert main(arguments(sources, tmp_path / "Tess", **changes)) == 2
    assert "of torch, got nan" in capsys.readouterr().err
    assert not (tmp_path / "Tess").exists()


def test_a_torso_of_another_field_space_is_refused(sources, tmp_path, capsys):
    content = torch.load(sources / "torso" / "checkpoint_00001234.pt", weights_only=True)
    content["state"]["speaker"]["camera"]["scale"] *= 1.1
    (tmp_path / "torso").mkdir()
    save_checkpoint(tmp_path / "torso" / "checkpoint_00001234.pt", content)
    assert main(arguments(sources, tmp_path / "Tess", torso=tmp_path / "torso")) == 2
    assert "torso: camera.scale: expected the head's 0.385" in capsys.readouterr().err
