"""Speech with landmarks, resident on one device: clips, random crops, audio augmentation.

A resting face differs from person to person and cannot be predicted from sound. So each identity's own (the
mean over its pauses and non-speech clips) is replaced by a common one. PostNet later maps the motion into one
speaker's domain, resting face included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models.audio2motion import LANDMARK_DIMENSION
from models.features import LogMel
from models.settings import Range, check_ranges
from models.time_base import FRAME_SAMPLES, SAMPLE_RATE_HZ
from preparation import speaker_set
from preparation.corpus_set import INDEX_FILE, CorpusError, read_corpus_set
from preparation.corpus_set import read_sound as read_clips_sound
from preparation.sounds import (
    PAUSE,
    PHONE_CLASSES,
    PHONES_PER_FRAME,
    SPEECH,
    UNKNOWN_PHONE,
    Sound,
    classify_frames,
    classify_phones,
    quiet_frames,
)

from .codecs import through_opus_each
from .ranges import DECIBELS, SHARE, SPEED


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Clips of sound with the landmarks of each frame, on one device."""

    pcm: Tensor  # (1 + codecs, samples) int16, 16 kHz, clips one after another: as it is, then through codecs
    offsets: Tensor  # (rows, 204) float32, landmarks less the identity's resting face
    sounds: Tensor  # (rows,) uint8, `Sound` of each frame
    phones: Tensor  # (rows, 2) uint8, place in `PHONE_CLASSES` of each half frame, or `UNKNOWN_PHONE`
    first_sample: Tensor  # (clips,) int64, into pcm
    first_row: Tensor  # (clips,) int64, into offsets
    frames: Tensor  # (clips,) int64
    speech: Tensor  # (clips,) bool, somebody speaks in it
    rests: Tensor  # (identities, 204) float32, resting faces
    rest: Tensor  # (204,) float32, the common resting face
    mean_face: Tensor  # (204,) float32, head space, dm; positions are mean_face + landmarks / 10
    voices: tuple[str, ...]  # of each clip, "" where it is not known

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.pcm.device

    def __len__(self) -> int:
        """Returns the number of clips."""
        return len(self.frames)

    def clip_pcm(self, clip: int) -> Tensor:
        """Returns the samples of a clip, float32 (640 * frames,) in [-1, 1]."""
        first = int(self.first_sample[clip])
        return self.pcm[0, first : first + FRAME_SAMPLES * int(self.frames[clip])].float() / 32768

    def clip_offsets(self, clip: int) -> Tensor:
        """Returns the landmarks of a clip less its identity's resting face, (frames, 204)."""
        first = int(self.first_row[clip])
        return self.offsets[first : first + int(self.frames[clip])]

    def clip_sounds(self, clip: int) -> Tensor:
        """Returns the `Sound` of each frame of a clip, uint8 (frames,)."""
        first = int(self.first_row[clip])
        return self.sounds[first : first + int(self.frames[clip])]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Training and validation split of one data folder."""

    train: Clips
    validation: Clips


def load_corpus(
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    max_clips: int | None = None,
    codec_bps: Sequence[int] = (),
) -> Corpus:
    """Returns both splits of a corpus folder, with sound through codecs to train on; see `load_clips`."""
    return Corpus(
        train=load_clips(folder, "train", device=device, max_clips=max_clips, codec_bps=codec_bps),
        validation=load_clips(folder, "val", device=device, max_clips=max_clips),
    )


def require_speech(folder: Path, validation: Clips, *, frames: int) -> None:
    """Refuses clips of a corpus's validation split that SyncNet cannot judge.

    Raises:
        CorpusError: none is of speech, or one that is has fewer than so many frames.
    """
    lengths = validation.frames[validation.speech]
    if not len(lengths) or int(lengths.min()) < frames:
        expected = f"clips of speech of {frames} frames or more in the split val"
        got = f"one of {int(lengths.min())} frames" if len(lengths) else "none"
        raise CorpusError(folder / INDEX_FILE, "kind and frames", expected, got, "mark other clips with it")


def load_clips(
    folder: Path,
    split: str,
    *,
    device: str | torch.device = "cpu",
    max_clips: int | None = None,
    codec_bps: Sequence[int] = (),
) -> Clips:
    """Returns one split of a corpus; see `preparation.corpus_set`.

    Args:
        folder: The corpus.
        split: "train" or "val".
        device: Where the tensors go.
        max_clips: Keeps at most so many clips.
        codec_bps: Opus's bit rates by which the sound comes as well.

    Raises:
        FileError: a file is missing, or its content is not what the layout says.
    """
    corpus = read_corpus_set(folder)
    motion, neutral, row_identity = corpus.motion(), corpus.neutral_offsets(), corpus.row_identity
    sounds = np.zeros(len(motion), np.uint8)
    classes = np.full((len(motion), PHONES_PER_FRAME), UNKNOWN_PHONE, np.uint8)
    for clip in corpus.clips:
        rows = slice(clip.row0, clip.row1)
        sounds[rows] = classify_frames(clip.frames, clip.phones, clip.kind)
        classes[rows] = classify_phones(clip.frames, clip.phones, clip.kind)
    rests = neutral.copy()
    at_rest = sounds == Sound.REST
    for identity in np.unique(row_identity):
        chosen = at_rest & (row_identity == identity)
        if chosen.any():
            rests[identity] += motion[chosen].mean(axis=0)
    motion += neutral[row_identity] - rests[row_identity]
    trained = [clip for clip in corpus.clips if clip.split == "train"] or corpus.clips
    rest = rests[np.unique([row_identity[clip.row0] for clip in trained])].mean(axis=0)
    clips = [clip for clip in corpus.clips if clip.split == split]
    if not clips:
        way_out = "mark some clips with it"
        raise CorpusError(folder / INDEX_FILE, "split", f"clips of the split {split}", "none", way_out)
    if max_clips is not None:
        clips = [clips[i] for i in np.linspace(0, len(clips) - 1, min(max_clips, len(clips))).astype(int)]
    kept = np.concatenate([np.arange(clip.row0, clip.row1) for clip in clips])
    pcm = read_clips_sound(folder, clips)
    ends = np.cumsum([clip.samples for clip in clips])
    return _clips(
        pcm=np.stack([pcm, *(through_opus_each(pcm, ends, bps=bps) for bps in codec_bps)]),
        offsets=motion[kept],
        sounds=sounds[kept],
        phones=classes[kept],
        frames=np.array([clip.frames for clip in clips]),
        speech=np.array([clip.kind == SPEECH for clip in clips]),
        rests=rests,
        rest=rest,
        mean_face=corpus.mean_face.reshape(LANDMARK_DIMENSION),
        voices=tuple(clip.voice for clip in clips),
        device=device,
    )


def load_speaker(folder: Path, mean_face: Tensor, *, device: str | torch.device = "cpu") -> Corpus:
    """Returns one speaker's sound and landmarks, one clip a split, from `audio.flac` and `truth.npz`.

    Pauses come from `phones.json` or, without it, from loudness. The resting face stays in: `rests` holds
    zeros, so `offsets` are landmarks in the speaker's domain, ten times the offset from `mean_face` in dm.

    Raises:
        FileError: a file is missing, or its content is not what the layout says.
    """
    landmarks = speaker_set.read_truth(folder, "landmarks")["landmarks"].reshape(-1, LANDMARK_DIMENSION)
    mean = mean_face.cpu().numpy().reshape(LANDMARK_DIMENSION)
    offsets = 10 * (landmarks - mean)
    frames = len(offsets)
    pcm = speaker_set.read_sound(folder, frames)
    phones = speaker_set.read_phones(folder)
    classes = classify_phones(frames, phones or (), SPEECH)
    if phones is not None:
        sounds = classify_frames(frames, phones, SPEECH)
    else:
        sounds = np.where(quiet_frames(pcm), Sound.REST, Sound.OTHER).astype(np.uint8)
    first_validation = speaker_set.training_frames(frames)
    if not first_validation:
        way_out = "take a longer video"
        raise speaker_set.SpeakerDataError(
            folder / speaker_set.TRUTH_FILE, "landmarks", "2 frames or more to split", frames, way_out
        )

    def part(first: int, last: int) -> Clips:
        return _clips(
            pcm=pcm[None, FRAME_SAMPLES * first : FRAME_SAMPLES * last],
            offsets=offsets[first:last],
            sounds=sounds[first:last],
            phones=classes[first:last],
            frames=np.array([last - first]),
            speech=np.ones(1, bool),
            rests=np.zeros((1, LANDMARK_DIMENSION), np.float32),
            rest=np.zeros(LANDMARK_DIMENSION, np.float32),
            mean_face=mean,
            voices=("",),
            device=device,
        )

    return Corpus(train=part(0, first_validation), validation=part(first_validation, frames))


def _clips(
    *,
    pcm: npt.NDArray[np.int16],
    offsets: npt.NDArray[np.float32],
    sounds: npt.NDArray[np.uint8],
    phones: npt.NDArray[np.uint8],
    frames: npt.NDArray[np.int64],
    speech: npt.NDArray[np.bool_],
    rests: npt.NDArray[np.float32],
    rest: npt.NDArray[np.float32],
    mean_face: npt.NDArray[np.float32],
    voices: tuple[str, ...],
    device: str | torch.device,
) -> Clips:
    first_row = np.concatenate([[0], np.cumsum(frames)[:-1]])

    def on_device(array: npt.NDArray[Any], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device=device, dtype=dtype)

    return Clips(
        pcm=on_device(pcm, torch.int16),
        offsets=on_device(offsets, torch.float32),
        sounds=on_device(sounds, torch.uint8),
        phones=on_device(phones, torch.uint8),
        first_sample=on_device(first_row * FRAME_SAMPLES, torch.int64),
        first_row=on_device(first_row, torch.int64),
        frames=on_device(frames, torch.int64),
        speech=on_device(speech, torch.bool),
        rests=on_device(rests, torch.float32),
        rest=on_device(rest, torch.float32),
        mean_face=on_device(mean_face, torch.float32),
        voices=voices,
    )


@dataclass(frozen=True, kw_only=True)
class Crops:
    """A batch of crops of equal length."""

    pcm: Tensor  # (B, left_samples + 640 * frames) float32 in [-1, 1]; silence beyond the clip's ends
    offsets: Tensor  # (B, frames, 204); the first and last frame are held beyond the clip's ends
    sounds: Tensor  # (B, frames) uint8
    phones: Tensor  # (B, 2 frames) int64; pause beyond the clip's ends


@dataclass(frozen=True, kw_only=True)
class CropSettings:
    """How crops are sampled."""

    nonspeech_share: Annotated[float, SHARE] = 0.08  # of crops, from clips without speech
    lead_frames: Annotated[int, Range(0, 10_000)] = 12  # of silence before its clip that a crop may start in
    speed_share: Annotated[float, SHARE] = 0.5  # of crops, played faster or slower
    slowest: Annotated[float, SPEED] = 0.85
    fastest: Annotated[float, SPEED] = 1.2
    codec_share: Annotated[float, SHARE] = 0.4  # of crops, through one of the clips' codecs if there are any

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)


def clip_weights(clips: Clips, *, nonspeech_share: float) -> Tensor:
    """Returns each clip's sampling probability (clips,): by length, clips without speech a given share."""
    weight = clips.frames.float()
    spoken, silent = weight * clips.speech, weight * ~clips.speech
    if not bool(clips.speech.any()) or bool(clips.speech.all()):
        return weight / weight.sum()
    return (1 - nonspeech_share) * spoken / spoken.sum() + nonspeech_share * silent / silent.sum()


def random_crops(
    clips: Clips,
    *,
    batch: int,
    frames: int,
    left_samples: int,
    weights: Tensor,
    settings: CropSettings | None = None,
) -> Crops:
    """Returns a batch of random crops of clips sampled by `weights` (clips,).

    Speed perturbation shifts pitch and formants together; landmarks are resampled alike.
    """
    settings = settings or CropSettings()
    device = clips.device
    clip = torch.multinomial(weights, batch, replacement=True)  # (B,)
    speed = torch.ones(batch, device=device)
    if settings.speed_share:
        low, high = np.log(settings.slowest), np.log(settings.fastest)
        drawn = torch.exp(low + (high - low) * torch.rand(batch, device=device))
        speed = torch.where(torch.rand(batch, device=device) < settings.speed_share, drawn, speed)
    lead = settings.lead_frames
    room = (clips.frames[clip] - frames * speed + lead).clamp(min=1)  # (B,)
    first = torch.rand(batch, device=device) * room - lead  # (B,) frames, whole where speed is 1
    first = torch.where(speed == 1, first.floor(), first)
    codec = None
    if len(clips.pcm) > 1:
        codec = torch.randint(1, len(clips.pcm), (batch,), device=device)
        codec = codec * (torch.rand(batch, device=device) < settings.codec_share)
    return crops_at(
        clips,
        clip=clip,
        first_frame=first,
        frames=frames,
        left_samples=left_samples,
        speed=speed,
        codec=codec,
    )


def crops_at(
    clips: Clips,
    *,
    clip: Tensor,
    first_frame: Tensor,
    frames: int,
    left_samples: int = 0,
    speed: Tensor | None = None,
    codec: Tensor | None = None,
) -> Crops:
    """Returns crops of given clips from first frames (B,), which may be fractional or outside the clip.

    Frame f of a crop shows the middle of its stretch of the source, at any `speed` (B,). Its sound is that of
    row `codec` (B,) of the clips' `pcm`, the first if absent.
    """
    device = clips.device
    if speed is None:
        speed = torch.ones(len(clip), device=device)
    samples = clips.frames[clip] * FRAME_SAMPLES  # (B,)
    step = torch.arange(-left_samples, FRAME_SAMPLES * frames, device=device, dtype=torch.float64)  # (N,)
    position = first_frame.double()[:, None] * FRAME_SAMPLES + step * speed.double()[:, None]  # (B, N)
    whole = position.floor()
    inside = (position >= 0) & (position <= (samples - 1)[:, None])  # (B, N)
    index = whole.long()
    last = (samples - 1)[:, None]
    base = clips.first_sample[clip][:, None]
    if codec is not None:
        base = base + codec[:, None] * clips.pcm.shape[1]
    flat = clips.pcm.view(-1)
    here = flat[base + index.clamp(min=0).minimum(last)].float()  # (B, N)
    after = flat[base + (index + 1).clamp(min=0).minimum(last)].float()
    pcm = torch.lerp(here, after, (position - whole).float()) * inside / 32768  # (B, N)

    middle = first_frame[:, None] + (torch.arange(frames, device=device) + 0.5) * speed[:, None] - 0.5
    middle = middle.clamp(min=0).minimum((clips.frames[clip] - 1)[:, None])  # (B, T)
    row = middle.floor()
    share = (middle - row)[..., None]  # (B, T, 1)
    row_base = clips.first_row[clip][:, None]
    row_index = row.long()
    next_index = (row_index + 1).minimum((clips.frames[clip] - 1)[:, None])
    offsets = torch.lerp(clips.offsets[row_base + row_index], clips.offsets[row_base + next_index], share)
    sounds = clips.sounds[row_base + middle.round().long()]  # (B, T)
    half = torch.arange(PHONES_PER_FRAME * frames, device=device) + 0.5
    half = (PHONES_PER_FRAME * first_frame[:, None] + half * speed[:, None]).floor().long()  # (B, 2 T)
    last_half = PHONES_PER_FRAME * clips.frames[clip][:, None] - 1
    phones = clips.phones.view(-1)[PHONES_PER_FRAME * row_base + half.clamp(min=0).minimum(last_half)].long()
    phones = torch.where((half < 0) | (half > last_half), PHONE_CLASSES.index(PAUSE), phones)
    return Crops(pcm=pcm, offsets=offsets, sounds=sounds, phones=phones)


@dataclass(frozen=True, kw_only=True)
class DegradeSettings:
    """Audio augmentation: random microphones and rooms."""

    share: Annotated[float, SHARE] = 0.85  # of crops that are degraded at all; of those:
    gain_low_db: Annotated[float, DECIBELS] = -24.0
    gain_high_db: Annotated[float, DECIBELS] = 10.0
    noise_share: Annotated[float, SHARE] = 0.7  # with coloured noise
    snr_low_db: Annotated[float, DECIBELS] = 3.0
    snr_high_db: Annotated[float, DECIBELS] = 40.0
    tone_db: Annotated[float, Range(0, 100)] = 9.0  # largest boost or cut of an octave
    band_share: Annotated[float, SHARE] = 0.4  # with a band limit
    room_share: Annotated[float, SHARE] = 0.4  # with reverberation
    room_longest_s: Annotated[float, Range(0.08, 60)] = 0.5  # longest RT60
    reflections_db: Annotated[float, Range(0, 100)] = 6.0  # first ones over its tail, at most
    warp_share: Annotated[float, SHARE] = 0.5  # with another length of the vocal tract
    warp_largest: Annotated[float, Range(1, 2)] = 1.16  # by which formants are moved up or down, at most
    babble_share: Annotated[float, SHARE] = 0.12  # with another voice far behind
    gate_share: Annotated[float, SHARE] = 0.2  # with a noise gate: zeros between words

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)


def degraded_features(mel: LogMel, pcm: Tensor, settings: DegradeSettings | None = None) -> Tensor:
    """Returns log-mel features (B, T, bands) of sound (B, N): random microphones, rooms, vocal tracts."""
    settings = settings or DegradeSettings()
    features: Tensor = mel(degrade(pcm, settings))
    place, drawn = torch.rand(2, len(pcm), device=pcm.device)
    factor = settings.warp_largest ** (2 * place - 1)
    return warp_bands(mel, features, torch.where(drawn < settings.warp_share, factor, 1))


def warp_bands(mel: LogMel, features: Tensor, factor: Tensor) -> Tensor:
    """Returns log-mel features (B, T, bands) with all frequencies times `factor` (B,).

    Vocal tract length perturbation (Jaitly and Hinton, 2013): band b takes the level at 1 / factor of its own
    frequency, by linear interpolation between bands; at the ends that of the last band.
    """
    centre = mel.centre_hz  # (bands,)
    wanted = (centre / factor[:, None]).clamp(min=centre[0]).minimum(centre[-1])  # (B, bands)
    above = torch.searchsorted(centre, wanted).clamp(1, len(centre) - 1)  # (B, bands)
    share = (wanted - centre[above - 1]) / (centre[above] - centre[above - 1])
    above = above[:, None].expand_as(features)
    return torch.lerp(features.gather(2, above - 1), features.gather(2, above), share[:, None])


def degrade(pcm: Tensor, settings: DegradeSettings | None = None) -> Tensor:
    """Returns augmented sound (B, N): equalisation, room, noise, band limit, noise gate, gain, clipping.

    The direct path is not delayed, so lips and sound stay in sync.
    """
    settings = settings or DegradeSettings()
    batch, samples = pcm.shape
    device = pcm.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, device=device)

    def chosen(share: float) -> Tensor:
        return (torch.rand(batch, 1, device=device) < share).float()

    length = _fast_length(samples + round(SAMPLE_RATE_HZ * settings.room_longest_s))
    hz = torch.fft.rfftfreq(length, 1 / SAMPLE_RATE_HZ).to(device)  # (K,)
    octave = torch.log2(hz.clamp(min=20) / 60).clamp(0, 6.99)  # 60 Hz to 7.7 kHz
    knots = uniform(-settings.tone_db, settings.tone_db, 8)  # (B, 8) dB at the octaves
    low = octave.floor().long()
    tone_db = torch.lerp(knots[:, low], knots[:, (low + 1).clamp(max=7)], octave - low)  # (B, K)
    lowest, highest = uniform(50, 350, 1), 2800 * (7500 / 2800) ** uniform(0, 1, 1)
    outside = torch.log2(lowest / hz.clamp(min=1)).clamp(min=0)  # (B, K) octaves
    outside = outside + torch.log2(hz.clamp(min=1) / highest).clamp(min=0)
    cut_db = (uniform(24, 120, 1) * outside).clamp(max=96) * chosen(settings.band_share)

    tail = round(SAMPLE_RATE_HZ * settings.room_longest_s)
    time_s = torch.arange(tail, device=device) / SAMPLE_RATE_HZ
    decay_s = uniform(0.08, settings.room_longest_s, 1)
    echo = torch.randn(batch, tail, device=device) * 10 ** (-3 * time_s / decay_s)
    echo = echo * (time_s > 0.002)
    echo = echo / echo.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-6)
    walls = torch.randint(1, round(0.04 * SAMPLE_RATE_HZ), (batch, 8), device=device)  # a few ms to 14 m
    falling = torch.randn(batch, 8, device=device) * 10 ** (-3 * walls / SAMPLE_RATE_HZ / decay_s)
    falling = falling / falling.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-6)
    echo = echo.scatter_add(1, walls, falling * 10 ** (uniform(-20, settings.reflections_db, 1) / 20))
    echo = echo / echo.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-6)
    echo = echo * 10 ** (-uniform(0, 15, 1) / 20) * chosen(settings.room_share)  # direct to reverberant, dB
    spectrum = torch.fft.rfft(pcm, length) * 10 ** (tone_db / 20) * (1 + torch.fft.rfft(echo, length))
    wet = torch.fft.irfft(spectrum, length)[:, :samples]  # (B, N)

    level = wet.square().mean(dim=1, keepdim=True).sqrt()  # (B, 1)
    other = torch.roll(wet, 1, 0)
    other_level = torch.roll(level, 1, 0).clamp(min=1e-5)
    behind = 10 ** (-uniform(12, 28, 1) / 20) * level / other_level
    mixed = wet + chosen(settings.babble_share) * behind * other

    noise_spectrum = torch.fft.rfft(torch.randn(batch, length, device=device))
    noise = torch.fft.irfft(noise_spectrum * (hz.clamp(min=30) / 1000) ** -uniform(-0.3, 1.2, 1), length)[
        :, :samples
    ]
    noise = noise / noise.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-6)
    ratio = 10 ** (-uniform(settings.snr_low_db, settings.snr_high_db, 1) / 20)
    quiet = 10 ** (uniform(-75, -30, 1) / 20)  # noise floor where nobody speaks
    noise_level = torch.where(level > 1e-3, level * ratio, quiet)
    mixed = mixed + chosen(settings.noise_share) * noise_level * noise
    # What limits the band, a line or a headset, does so to noise as well.
    mixed = torch.fft.irfft(torch.fft.rfft(mixed, length) * 10 ** (-cut_db / 20), length)[:, :samples]

    mixed = mixed * (1 - chosen(settings.gate_share) * (1 - _gate(pcm)))

    loud = 10 ** (uniform(settings.gain_low_db, settings.gain_high_db, 1) / 20)
    return torch.lerp(pcm, (mixed * loud).clamp(-1, 1), chosen(settings.share))


def _gate(clean: Tensor) -> Tensor:
    """Returns the noise gate (B, N) of sound (B, N): 1 during sound and 50 to 300 ms around it, else 0."""
    hop = SAMPLE_RATE_HZ // 50
    batch, samples = clean.shape
    hops = functional.pad(clean.abs(), (0, -samples % hop)).view(batch, -1, hop).amax(2)  # (B, hops)
    loud = (hops > 0.03 * hops.amax(1, keepdim=True).clamp(min=1e-3)).float()
    around = int(torch.randint(2, 16, ()))
    open_ = functional.max_pool1d(loud[:, None], 2 * around + 1, stride=1, padding=around)[:, 0]
    return open_.repeat_interleave(hop, 1)[:, :samples]


def _fast_length(samples: int) -> int:
    """Returns the next fast FFT length: a power of two times 1, 3 or 5."""
    best = 1 << (samples - 1).bit_length()
    for odd in (3, 5):
        size = odd
        while size < samples:
            size *= 2
        best = min(best, size)
    return best
