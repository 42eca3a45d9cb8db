"""Clips on a device: layout, re-basing on resting faces, crops by index, degradation."""

import numpy as np
import pytest
import torch
from tiny_corpus import FRAMES, make_corpus, make_speaker, opening_of, sound_of

from models.features import LogMel
from preparation.corpus_set import CorpusError
from preparation.sounds import PHONE_CLASSES
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
    warp_bands,
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


def test_phones_of_a_crop_are_those_at_its_own_times(corpus):
    clips = corpus.train
    whole = clips.phones[:FRAMES].flatten().tolist()
    assert whole[38:42] == [PHONE_CLASSES.index(label) for label in ("pau", "pau", "aa", "aa")]
    first = torch.tensor([-3.0, 100.0])
    crops = crops_at(clips, clip=torch.tensor([0, 0]), first_frame=first, frames=20)
    assert crops.phones.shape == (2, 40)
    silence = PHONE_CLASSES.index("pau")
    assert crops.phones[0].tolist() == [silence] * 6 + whole[:34]
    assert crops.phones[1].tolist() == whole[200:] + [silence] * 20
    fast = crops_at(
        clips, clip=torch.tensor([0]), first_frame=torch.tensor([10.5]), frames=40, speed=torch.tensor([1.2])
    )
    middle = (2 * 10.5 + (np.arange(80) + 0.5) * 1.2).astype(int)
    assert fast.phones[0].tolist() == [whole[place] for place in middle]


def test_crops_come_through_the_codecs_at_their_share(folder):
    clips = load_corpus(folder, codec_bps=(16_000, 32_000)).train
    assert clips.pcm.shape == (3, 3 * FRAMES * 640)
    assert load_corpus(folder, codec_bps=(16_000,)).validation.pcm.shape == (1, FRAMES * 640)
    coded = [
        crops_at(
            clips,
            clip=torch.tensor([1]),
            first_frame=torch.tensor([30.0]),
            frames=40,
            codec=torch.tensor([codec]),
        ).pcm
        for codec in range(3)
    ]
    assert torch.equal(coded[0][0], clips.clip_pcm(1)[30 * 640 : 70 * 640])
    for other in coded[1:]:
        assert 0.9 < torch.corrcoef(torch.cat([coded[0], other]))[0, 1] < 0.99999
    weights = clip_weights(clips, nonspeech_share=0)

    def crops(share):
        torch.manual_seed(0)
        settings = CropSettings(codec_share=share, speed_share=0)
        return random_crops(clips, batch=6, frames=40, left_samples=0, weights=weights, settings=settings)

    clean, all_coded = crops(0), crops(1)
    assert torch.equal(clean.offsets, all_coded.offsets)
    assert ((clean.pcm != all_coded.pcm).any(dim=1)).all()


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


def test_rooms_filters_and_gates_leave_a_click_where_it_was():
    """The direct sound comes first and at its time, whatever the filters' phases."""
    torch.manual_seed(0)
    clicks = torch.zeros(64, 16000)
    clicks[:, 8000] = 0.2
    still = {"noise_share": 0.0, "babble_share": 0.0, "gate_share": 0.0}
    filtered = degrade(clicks, DegradeSettings(share=1.0, band_share=1.0, room_share=0.0, **still))
    assert (filtered.abs().argmax(dim=1) == 8000).all()
    rooms = degrade(clicks, DegradeSettings(share=1.0, band_share=0.0, tone_db=0.0, room_share=1.0, **still))
    assert (rooms.abs().argmax(dim=1) == 8000).all()
    before, after = rooms[:, :7999].square().sum(dim=1), rooms[:, 8001:].square().sum(dim=1)
    assert (before < 1e-6 * after).all()
    early = rooms[:, 8000 + 1 : 8000 + 640].abs().amax(dim=1) / rooms[:, 8000]
    assert early.max() > 0.25  # a wall's reflection stands out of the tail
    assert early.min() < 0.05


def test_a_band_limit_holds_for_voice_and_noise():
    torch.manual_seed(0)
    voice = 0.1 * torch.randn(200, 16000)
    still = {"tone_db": 0.0, "room_share": 0.0, "babble_share": 0.0, "gate_share": 0.0}
    found = degrade(voice, DegradeSettings(share=1.0, band_share=1.0, noise_share=1.0, **still))
    level_db = 20 * torch.fft.rfft(found * torch.hann_window(16000)).abs().log10()
    middle = level_db[:, 800:2000].mean(dim=1)
    above = level_db[:, 7700:7990].mean(dim=1) - middle
    assert ((above < -40).float().mean()) > 0.4  # nothing of either is left: a telephone's
    assert ((above > -15).float().mean()) > 0.05  # and of some, hardly anything is lost


def test_bands_move_with_the_vocal_tract_and_nothing_moves_in_time():
    mel = LogMel()
    time_s = torch.arange(16000) / 16000
    tones = torch.stack([torch.sin(2 * torch.pi * hz * time_s) for hz in (1000.0, 1000.0, 1000.0, 1160.0)])
    tones[:, :8000] = 0
    features = mel.causal(tones)
    factor = torch.tensor([1.0, 1.16, 1 / 1.16, 1.0])
    warped = warp_bands(mel, features, factor)
    torch.testing.assert_close(warped[0], features[0], rtol=0, atol=1e-4)
    peak = mel.centre_hz[warped[:, 40].argmax(dim=1)]
    torch.testing.assert_close(peak, 1000 * torch.tensor([1.0, 1.16, 1 / 1.16, 1.16]), rtol=0.04, atol=0)
    loud = warped.amax(dim=2) > -2
    assert torch.equal(loud, loud[:1].expand_as(loud))


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
