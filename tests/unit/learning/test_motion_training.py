"""SyncNet, Audio2Motion and PostNet train, resume to the bit and leave frozen networks alone."""

import json

import numpy as np
import pytest
import torch
from tiny_corpus import make_corpus, make_speaker

from models.features import LogMel
from models.time_base import FRAME_SAMPLES
from preparation.sounds import PHONE_CLASSES, UNKNOWN_PHONE, Sound
from training import audio2motion, cli, loop, postnet, syncnet
from training.audio2motion import (
    Audio2MotionSettings,
    MotionWeights,
    PhoneHead,
    WeightAverage,
    load_audio2motion,
    motion_loss,
    voice_scalars,
)
from training.measures import MotionTrack
from training.postnet import load_postnet
from training.syncnet import audio_windows, load_syncnet, mouth_windows


def train(task, data, out, *flags):
    common = ["--validate-every", "2", "--checkpoint-every", "2", "--log-every", "2"]
    sizes = ["--batch", "3", "--frames", "16"]
    return cli.main([task, "--data", str(data), "--out", str(out), *common, *sizes, *flags])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture(scope="module")
def speaker(tmp_path_factory, corpus):
    return make_speaker(tmp_path_factory.mktemp("data") / "speaker", corpus)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus):
    """Training folders of a SyncNet and an Audio2Motion of two steps."""
    out = tmp_path_factory.mktemp("trained")
    assert train("syncnet", corpus, out / "syncnet", "--steps", "2") == 0
    assert train("audio2motion", corpus, out / "audio2motion", "--steps", "2") == 0
    return out


def postnet_flags(corpus, trained):
    return [
        "--corpus",
        str(corpus),
        "--audio2motion",
        str(trained / "audio2motion"),
        "--syncnet",
        str(trained / "syncnet"),
    ]


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


@pytest.mark.parametrize("task", ["syncnet", "audio2motion", "postnet"])
def test_a_resumed_run_ends_with_the_same_bits(task, corpus, speaker, trained, tmp_path):
    data, flags = corpus, []
    if task == "postnet":
        data, flags = speaker, postnet_flags(corpus, trained)
    elif task == "audio2motion":
        flags = ["--syncnet", str(trained / "syncnet"), "--sync-below", "9"]
    assert train(task, data, tmp_path / "whole", "--steps", "4", *flags) == 0
    stopped = train(task, data, tmp_path / "parts", "--steps", "4", "--max-minutes", "1e-9", *flags)
    assert stopped == 0
    assert list(loop.checkpoints(tmp_path / "parts")) == [1]
    assert train(task, data, tmp_path / "parts", "--steps", "4", *flags) == 0
    whole, parts = (
        loop.load_checkpoint(tmp_path / name / "checkpoint_00000004.pt") for name in ("whole", "parts")
    )
    assert_same(whole["state"], parts["state"])
    assert list((tmp_path / "whole" / "pictures").glob("*.png"))


def test_postnet_leaves_the_frozen_networks_alone_and_its_checkpoint_is_chosen(
    corpus, speaker, trained, tmp_path, capsys
):
    out = tmp_path / "postnet"
    assert train("postnet", speaker, out, "--steps", "4", *postnet_flags(corpus, trained)) == 0
    assert list(loop.checkpoints(out)) == [2, 4]  # all are kept for the choice
    chosen = json.loads((out / "choice.json").read_text())
    net = load_postnet(out)
    state = loop.load_task_state(out / chosen["checkpoint"], "postnet")
    assert torch.equal(net.block3[1].bias, state["model"]["block3.1.bias"])
    assert not net.training
    (out / "choice.json").unlink()
    assert train("postnet", speaker, out, "--choose-only") == 0
    assert json.loads((out / "choice.json").read_text()) == chosen
    assert "chose step" in capsys.readouterr().out


def test_postnet_reports_by_how_much_it_delays_the_motion(corpus, speaker, trained):
    settings = postnet.PostNetSettings(
        corpus=corpus, audio2motion=trained / "audio2motion", syncnet=trained / "syncnet"
    )
    task = postnet.make_task(speaker, settings, torch.device("cpu"))
    waves = torch.sin(torch.arange(110.0)[:, None] * torch.tensor([0.3, 0.47, 0.8])).sum(dim=1)
    task.frozen["corpus validation"].motion[0, :, 3 * 66 + 1] = waves
    assert task.validate(0).scalars["added_lag_ms"] == pytest.approx(0, abs=1)  # at first it moves the rest

    class Late(torch.nn.Module):
        def forward(self, landmarks):
            return torch.cat([landmarks[:, :1].expand(-1, 2, -1), landmarks[:, :-2]], dim=1)

    task.net = Late()
    assert task.validate(0).scalars["added_lag_ms"] == pytest.approx(80, abs=8)


def test_frozen_networks_stay_in_evaluation_mode(corpus, trained):
    device = torch.device("cpu")
    settings = audio2motion.Audio2MotionSettings(batch=2, frames=12, syncnet=trained / "syncnet")
    task = audio2motion.make_task(corpus, settings, device)
    task.sync_on = True
    before = {name: value.clone() for name, value in task.syncnet.state_dict().items()}
    found = task.training_step(0)
    assert "sync" in found
    for name, value in task.syncnet.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(weight.requires_grad for weight in task.syncnet.parameters())


def test_sync_is_switched_on_by_its_validation(corpus, trained):
    settings = audio2motion.Audio2MotionSettings(
        batch=2, frames=12, syncnet=trained / "syncnet", sync_below=99
    )
    task = audio2motion.make_task(corpus, settings, torch.device("cpu"))
    assert not task.sync_on
    task.validate(1)
    assert task.sync_on
    assert task.state_dict()["sync_on"]


def test_windows_of_sound_and_mouth_begin_together():
    features = torch.arange(40.0).reshape(1, 40, 1)
    offsets = torch.arange(20.0).reshape(1, 20, 1).expand(1, 20, 204)
    sound, mouth = audio_windows(features), mouth_windows(offsets)
    assert sound.shape == (1, 16, 10, 1)
    assert mouth.shape == (1, 16, 5, 60)
    assert sound[0, 3, :, 0].tolist() == list(range(6, 16))
    assert mouth[0, 3, :, 0].tolist() == [3, 4, 5, 6, 7]


def test_motion_loss_is_zero_for_the_truth_and_weighs_lips_and_closure():
    truth = torch.zeros(1, 3, 204)
    sounds = torch.zeros(1, 3, dtype=torch.uint8)
    assert motion_loss(truth, truth, sounds) == 0

    def loss_of(point, sounds, weights=None):
        wrong = torch.zeros(1, 3, 68, 3)
        wrong[:, :, point, 1] = 0.1
        return float(motion_loss(wrong.reshape(1, 3, 204), truth, sounds, weights))

    assert loss_of(66, sounds) > loss_of(50, sounds) > loss_of(8, sounds) > loss_of(40, sounds) > 0
    shut = torch.full_like(sounds, Sound.BILABIAL)
    assert loss_of(66, shut) > loss_of(66, sounds)
    flat = MotionWeights(closure=1.0)
    assert loss_of(66, shut, flat) == pytest.approx(loss_of(66, sounds, flat))


def test_the_phone_loss_takes_each_half_of_a_frame_and_of_the_next_and_no_unknown_one():
    torch.manual_seed(0)
    head = PhoneHead(8, 1)
    g = torch.randn(2, 8, 5)
    phones = torch.randint(len(PHONE_CLASSES), (2, 12))
    phones[0, 3] = UNKNOWN_PHONE
    logits = head(g)
    assert logits.shape == (2, 5, 4, len(PHONE_CLASSES))
    assert torch.equal(head.own_phones(g)[1], logits[1, :, :2].argmax(dim=2).flatten())
    terms, wrong = [], []
    for clip in range(2):
        for frame in range(5):
            for half in range(4):
                wanted = int(phones[clip, 2 * frame + half])
                if wanted == UNKNOWN_PHONE:
                    continue
                terms.append(-logits[clip, frame, half].log_softmax(0)[wanted])
                if half < 2:
                    wrong.append(int(logits[clip, frame, half].argmax()) != wanted)
    loss, error = head.loss(g, phones)
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    assert float(error) == pytest.approx(sum(wrong) / len(wrong))
    nothing, _ = head.loss(g, torch.full_like(phones, UNKNOWN_PHONE))
    assert nothing == 0


def test_phones_and_motion_of_a_frame_depend_on_nothing_after_the_lookahead(corpus):
    """The whole way from sound: the front end's windows, the encoder, the head, the decoder."""
    task = audio2motion.make_task(corpus, Audio2MotionSettings(codec_share=0), torch.device("cpu"))
    net, head, frame = task.net.eval(), task.phone_head, 20
    first_later = FRAME_SAMPLES * (frame + 1 + task.settings.lookahead_frames)
    assert first_later == 640 * 21 + 2560  # 160 ms after the frame's end
    pcm = 0.1 * torch.randn(1, FRAME_SAMPLES * 40)
    later, within = pcm.clone(), pcm.clone()
    later[:, first_later:] = 0.5
    within[:, first_later - 1] = 0.5

    def found(sound):
        with torch.no_grad():
            g = net.condition(LogMel().causal(sound))
            parts = (net.decode_prior(g), head(g).flatten(2))
        return [part[:, : frame + 1] for part in parts]

    before = found(pcm)
    for one, other in zip(before, found(later), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(before, found(within), strict=True):
        assert torch.equal(one[:, :frame], other[:, :frame])
        assert not torch.equal(one[:, frame], other[:, frame])


def test_a_phone_head_stays_out_of_the_network_and_may_be_absent(corpus, trained, tmp_path):
    net = load_audio2motion(trained / "audio2motion")
    state = loop.load_task_state(trained / "audio2motion", "audio2motion")
    assert state["phone_head"]["classify.weight"].shape[1] == net.config.condition_channels
    assert not [name for name in state["model"] if "classify" in name]
    assert train("audio2motion", corpus, tmp_path, "--steps", "2", "--phone-weight", "0") == 0
    state = loop.load_task_state(tmp_path, "audio2motion")
    assert state.keys() == {"model", "config", "live", "optimizer", "sync_on"}
    assert train("audio2motion", corpus, tmp_path, "--steps", "3", "--phone-weight", "0") == 0  # goes on
    (last,) = loop.read_validations(tmp_path)[-1:]
    assert "phone_error" not in last
    assert last["voice/high/aperture_r"] == last["aperture_r"] == last["unheard_aperture_r"]
    (told,) = loop.read_validations(trained / "audio2motion")
    assert 0 <= told["phone_error"] <= 1


def test_phones_are_learnt(corpus):
    settings = Audio2MotionSettings(batch=4, frames=40, codec_share=0, average_decay=0, phone_weight=5)
    task = audio2motion.make_task(corpus, settings, torch.device("cpu"))
    torch.manual_seed(0)
    first = task.training_step(300)["phones"]  # the rate is at its highest from there on
    for step in range(301, 312):
        last = task.training_step(step)["phones"]
    assert last < 0.7 * first
    assert (
        audio2motion.validate_motion(
            task.average.average, task.mel, task.validation, phone_head=task.phone_average.average
        ).phone_error
        < 0.9
    )


def test_voices_are_measured_apart_and_those_not_trained_on_together():
    up, down = np.arange(30, dtype=np.float32), np.arange(30, 0, -1, dtype=np.float32)

    def track(predicted):
        return MotionTrack(
            predicted_aperture_mm=predicted,
            predicted_width_mm=predicted,
            true_aperture_mm=up,
            true_width_mm=down,
            sounds=np.zeros(30, np.uint8),
        )

    tracks = [track(up), track(down), track(down), track(up)]
    found = voice_scalars(tracks, ["ann", "bob+thin", "bob", ""], ["ann"])
    assert found["voice/ann/aperture_r"] == pytest.approx(1)
    assert found["voice/ann/width_r"] == pytest.approx(-1)
    assert found["voice/bob/aperture_r"] == found["unheard_aperture_r"] == pytest.approx(-1)
    assert not [name for name in found if name.startswith("voice//")]
    assert voice_scalars(tracks[:1], ["ann"], ["ann"]).keys() == {"voice/ann/aperture_r", "voice/ann/width_r"}


@pytest.mark.parametrize("task", ["syncnet", "audio2motion"])
def test_the_rate_may_fall_over_minutes_which_a_checkpoint_keeps(task, corpus, tmp_path):
    assert train(task, corpus, tmp_path, "--anneal-minutes", "1e-9", "--steps", "2") == 0
    state = loop.load_task_state(tmp_path, task)
    assert state["spent_s"] > 0
    small = {"batch": 2, "frames": 13, "anneal_minutes": 1e-9}
    if task == "syncnet":
        fresh = syncnet.make_task(corpus, syncnet.SyncNetSettings(**small), torch.device("cpu"))
        last_rate = 0.0
    else:
        settings = Audio2MotionSettings(codec_share=0, **small)
        fresh = audio2motion.make_task(corpus, settings, torch.device("cpu"))
        last_rate = settings.learning_rate * settings.last_rate_share
    fresh.load_state_dict(state)
    assert fresh.training_step(299)["rate"] == pytest.approx(last_rate)


def test_the_average_follows_the_weights():
    net, average = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    follower = WeightAverage(net, average, 0.9)
    assert torch.equal(average.weight, net.weight)
    start = net.weight.detach().clone()
    with torch.no_grad():
        net.weight += 1
    follower.update(1000)
    assert torch.allclose(average.weight, start + 0.1, atol=1e-6)


def test_loaded_networks_are_frozen(trained):
    for net in (load_syncnet(trained / "syncnet"), load_audio2motion(trained / "audio2motion")):
        assert not net.training
        assert not any(weight.requires_grad for weight in net.parameters())


def test_missing_parts_are_named_in_one_line(corpus, speaker, trained, tmp_path, capsys):
    assert train("postnet", speaker, tmp_path / "a", "--steps", "2") == 2
    assert "give --corpus DIR" in capsys.readouterr().err
    flags = postnet_flags(corpus, trained)
    flags[-1] = str(trained / "audio2motion")
    assert train("postnet", speaker, tmp_path / "b", "--steps", "2", *flags) == 2
    message = capsys.readouterr().err
    assert "expected syncnet, got audio2motion" in message
    flags[-1] = str(tmp_path / "nowhere")
    assert train("postnet", speaker, tmp_path / "c", "--steps", "2", *flags) == 2
    assert "run `geneface-train syncnet" in capsys.readouterr().err
    assert train("audio2motion", speaker, tmp_path / "d", "--steps", "2") == 2
    assert "index.jsonl: expected an index with a clip a line, got no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"kind": "silence"}, "none"),
        ({"frames": 1, "row1": 331, "samples": 640}, "one of 1 frames"),
    ],
)
@pytest.mark.parametrize("task", ["syncnet", "postnet"])
def test_clips_that_sync_cannot_be_judged_by_are_refused(
    task, changes, got, speaker, trained, tmp_path, capsys
):
    corpus = make_corpus(tmp_path / "corpus")
    clips = [json.loads(line) for line in (corpus / "index.jsonl").read_text().splitlines()]
    assert clips[3]["split"] == "val"
    clips[3] |= changes
    (corpus / "index.jsonl").write_text("".join(json.dumps(clip) + "\n" for clip in clips))
    flags = postnet_flags(corpus, trained) if task == "postnet" else []
    data = speaker if task == "postnet" else corpus
    assert train(task, data, tmp_path / "out", "--steps", "1", *flags) == 2
    expected = "clips of speech of 5 frames or more in the split val"
    said = f"{corpus / 'index.jsonl'}: kind and frames: expected {expected}, got {got};"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"geneface-train {task}: {said}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: syncnet.SyncNetSettings(frames=6), "frames: expected 13 to 10000"),
        (lambda: syncnet.SyncNetSettings(mouth_scale=1.5), "mouth_scale"),
        (lambda: audio2motion.Audio2MotionSettings(average_decay=1.0), "average_decay"),
        (lambda: audio2motion.Audio2MotionSettings(lookahead_frames=-1), "lookahead_frames"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_resting_face_is_known_from_pauses_or_loudness_or_refused(corpus, speaker, trained, tmp_path):
    folder = tmp_path / "speaker"
    folder.mkdir()
    for name in ("audio.flac", "truth.npz"):
        (folder / name).write_bytes((speaker / name).read_bytes())
    settings = postnet.PostNetSettings(
        corpus=corpus, audio2motion=trained / "audio2motion", syncnet=trained / "syncnet"
    )
    by_phones = postnet.make_task(speaker, settings, torch.device("cpu"))
    by_loudness = postnet.make_task(folder, settings, torch.device("cpu"))
    assert torch.allclose(by_phones.speaker_rest, by_loudness.speaker_rest, atol=0.05)
    (folder / "phones.json").write_text(json.dumps({"phones": [["aa", 0.0, 22.0]]}))
    with pytest.raises(ValueError, match="record some silence"):
        postnet.make_task(folder, settings, torch.device("cpu"))
