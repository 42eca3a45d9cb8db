"""Clips on a device: layout, re-basing on resting faces, crops by index, degradation."""

import numpy as np
import pytest
import torch
from tiny_corpus import FRAMES, make_corpus, make_speaker, opening_of, sound_of

from preparation.corpus_set import CorpusError
from preparation.speaker_set import SpeakerDataError
from training.corpus import (
    Corpus,
    CropSettings,
    DegradeSettings,
    clip_weights,
    crops_at,
    degrade,
    load_corpus,
    load_speaker,
    random_crops,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture(scope="module")
def corpus(folder) -> Corpus:
    return load_corpus(folder)


def test_splits_hold_their_clips_sound_and_landmarks(corpus):
    assert (len(corpus.train), len(corpus.validation)) == (3, 1)
    expected = sound_of(opening_of(1), 220.0)
    assert np.array_equal((corpus.train.clip_pcm(1) * 32768).numpy().astype(np.int16), expected)
    assert corpus.train.speech.tolist() == [True, True, False]
    assert corpus.train.clip_offsets(0).shape == (FRAMES, 204)


def test_every_identity_rests_at_zero_whatever_its_own_smile(corpus):
    for clip in range(3):
        resting = corpus.train.clip_offsets(clip)[:15]
        assert resting.abs().max() < 1e-4
    moved = corpus.train.clip_offsets(1).reshape(-1, 68, 3)
    assert moved[:, 66, 1].min() < -0.5  # ten times the offset in dm


def test_the_common_resting_face_is_the_mean_of_the_trained_identities(corpus):
    assert torch.allclose(corpus.train.rest, corpus.train.rests.mean(dim=0), atol=1e-6)


def test_a_crop_equals_the_slice_and_is_silent_and_still_beyond_the_clip(corpus):
    clips = corpus.train
    first = torch.tensor([-3.0, 100.0])
    crops = crops_at(clips, clip=torch.tensor([1, 0]), first_frame=first, frames=20, left_samples=192)
    assert crops.pcm.shape == (2, 192 + 640 * 20)
    assert torch.equal(crops.pcm[0, 192 + 3 * 640 :], clips.clip_pcm(1)[: 17 * 640])
    assert crops.pcm[0, : 192 + 3 * 640].abs().max() == 0
    assert torch.equal(crops.pcm[1, 192 : 192 + 640 * 10], clips.clip_pcm(0)[640 * 100 :])
    assert crops.pcm[1, 192 + 640 * 10 :].abs().max() == 0
    assert torch.equal(crops.pcm[1, :192], clips.clip_pcm(0)[640 * 100 - 192 : 640 * 100])
    assert torch.equal(crops.offsets[1, :10], clips.clip_offsets(0)[100:])
    assert torch.equal(crops.offsets[1, 10:], clips.clip_offsets(0)[-1:].expand(10, -1))


def test_a_faster_crop_keeps_lips_and_sound_together(corpus):
    clips = corpus.train
    crops = crops_at(
        clips,
        clip=torch.tensor([1]),
        first_frame=torch.tensor([25.0]),
        frames=50,
        speed=torch.tensor([1.2]),
    )
    loudness = crops.pcm[0].reshape(50, 640).square().mean(dim=1).sqrt()
    opening = -crops.offsets[0].reshape(50, 68, 3)[:, 66, 1]
    assert torch.corrcoef(torch.stack([loudness, opening]))[0, 1] > 0.97


def test_random_crops_are_seeded_and_take_their_share_of_silence(corpus):
    weights = clip_weights(corpus.train, nonspeech_share=0.25)
    assert weights[2] == pytest.approx(0.25)
    assert weights.sum() == pytest.approx(1.0)

    def drawn():
        torch.manual_seed(3)
        return random_crops(corpus.train, batch=8, frames=30, left_samples=0, weights=weights)

    assert torch.equal(drawn().pcm, drawn().pcm)
    assert torch.equal(drawn().offsets, drawn().offsets)


def test_crops_longer_than_the_clip_are_padded(corpus):
    crops = random_crops(
        corpus.train,
        batch=4,
        frames=300,
        left_samples=192,
        weights=clip_weights(corpus.train, nonspeech_share=0.1),
        settings=CropSettings(speed_share=1.0),
    )
    assert crops.offsets.shape == (4, 300, 204)
    assert torch.isfinite(crops.pcm).all()


def test_degraded_sound_is_finite_bounded_and_stays_in_step(corpus):
    torch.manual_seed(0)
    clean = corpus.train.clip_pcm(1)[None].repeat(8, 1)
    dirty = degrade(clean, DegradeSettings(share=1.0))
    assert torch.isfinite(dirty).all()
    assert dirty.abs().max() <= 1
    assert not torch.equal(dirty, clean)
    loudness = clean.reshape(8, -1, 640).square().mean(-1).sqrt()
    after = dirty.reshape(8, -1, 640).square().mean(-1).sqrt()
    for row in range(8):
        shifts = {d: float((loudness[row, 5:-5] * after[row].roll(d)[5:-5]).sum()) for d in range(-4, 5)}
        assert abs(max(shifts, key=shifts.get)) <= 1


def test_digital_silence_becomes_noise_at_most():
    torch.manual_seed(0)
    dirty = degrade(torch.zeros(16, 16000), DegradeSettings(share=1.0, noise_share=1.0))
    assert 0 < dirty.square().mean().sqrt() < 0.1


def test_a_gate_leaves_nothing_between_words_and_words_alone():
    clean = torch.zeros(4, 32000)
    clean[:, 12800:16000] = 0.5 * torch.sin(torch.arange(3200) * 0.3)
    only_noise = {
        "tone_db": 0.0,
        "band_share": 0.0,
        "room_share": 0.0,
        "babble_share": 0.0,
        "noise_share": 1.0,
    }
    gated = degrade(clean, DegradeSettings(share=1.0, gate_share=1.0, **only_noise))
    assert gated[:, :7000].abs().max() == 0
    assert gated[:, 22000:].abs().max() == 0
    assert gated[:, 12500:12800].abs().amin(1).max() > 0  # it opens before the word, noise is heard
    voice = (gated[:, 12800:16000] * clean[:, 12800:16000]).sum(1)
    assert (voice / gated[:, 12800:16000].norm(dim=1) / clean[0, 12800:16000].norm() > 0.7).all()


def test_a_share_of_zero_degrades_nothing(corpus):
    clean = corpus.train.clip_pcm(1)[None]
    assert torch.equal(degrade(clean, DegradeSettings(share=0.0)), clean)


def test_a_speaker_is_split_in_time_and_keeps_its_own_rest(folder, corpus, tmp_path):
    speaker = load_speaker(make_speaker(tmp_path / "speaker", folder), corpus.train.mean_face)
    assert speaker.train.frames.tolist() == [500]
    assert speaker.validation.frames.tolist() == [50]
    assert speaker.train.rest.abs().max() == 0
    assert torch.allclose(speaker.train.clip_offsets(0)[0], torch.full((204,), 0.5), atol=1e-5)
    lower_lip = speaker.train.clip_offsets(0).reshape(-1, 68, 3)[:, 66, 1]
    assert lower_lip.min() < lower_lip[0] - 0.5


def test_a_split_without_clips_is_refused(tmp_path):
    folder = make_corpus(tmp_path / "corpus")
    index = folder / "index.jsonl"
    index.write_text(index.read_text().replace('"val"', '"train"'))
    with pytest.raises(CorpusError) as caught:
        load_corpus(folder)
    assert (caught.value.file, caught.value.field) == (str(index), "split")


def test_a_speaker_of_too_few_frames_to_split_is_refused(folder, corpus, tmp_path):
    speaker = make_speaker(tmp_path / "speaker", folder, frames=1)
    with pytest.raises(SpeakerDataError) as caught:
        load_speaker(speaker, corpus.train.mean_face)
    assert (caught.value.file, caught.value.field) == (str(speaker / "truth.npz"), "landmarks")
