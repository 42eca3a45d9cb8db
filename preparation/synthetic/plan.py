"""What a corpus consists of, clip by clip, drawn from one seed before anything is spoken."""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..sounds import SPEECH
from .nonspeech import KINDS
from .texts import draw_text
from .voices.catalogue import ESPEAK_ENGLISH, ESPEAK_HELD_OUT, ESPEAK_OTHERS, ESPEAK_VARIANTS, voice_named

IDENTITIES = 14
HELD_OUT_IDENTITIES = (12, 13)
TRAIN, VALIDATION = "train", "val"
_TEXT_RATE = 17.0  # characters a second
_CLIP_S = 7.5
_PROMPT_S = 5.0
_PROMPT_TEXT_S = 0.5  # what a prompt lasts beside its characters
_SYNTHESISED, _NONSPEECH = 0.8, 0.027
"""Shares of the minutes asked for; the prompts of real speakers are as many as there are."""
_VALIDATION_PART = 1 / 12
_TRAIN_SHARES = {
    "piper-joe": 0.27,
    "hibari-heart": 0.2,
    "flite-slt": 0.07,
    "flite-rms": 0.06,
    "flite-awb": 0.06,
    "festival-slt-hts": 0.06,
    "festival-kal": 0.04,
    "espeak-english": 0.15,
    "espeak-others": 0.09,
}
"""Of the speech that is synthesised for training; prompts are as many as there are."""
_VALIDATION_SHARES = {
    "hibari-low": 0.25,
    "piper-joe": 0.1,
    "hibari-heart": 0.1,
    "flite-kal16": 0.15,
    "flite-slt": 0.05,
    "flite-rms": 0.05,
    "festival-slt-hts": 0.05,
    "espeak-held-out": 0.15,
    "espeak-others": 0.1,
}
HELD_OUT_PROMPTS = "asterisk-it"
"""The real speaker that is kept for validation, and with her or him a language's prompts."""
HELD_OUT_VOICES = ("hibari-low", "flite-kal16", HELD_OUT_PROMPTS, *ESPEAK_HELD_OUT)
PROMPTS = ("asterisk-en", "asterisk-es", "asterisk-fr", "asterisk-ru", HELD_OUT_PROMPTS)
_PROMPTS_VALIDATION = 0.1  # of the speakers that train, too


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """A clip to be made."""

    id: str
    kind: str  # speech, or one of nonspeech's kinds
    split: str
    voice: str  # empty where nobody speaks
    texts: tuple[str, ...]
    params: dict[str, float]
    identity: int
    seconds: float  # of a clip without speech

    def rng(self, seed: int, purpose: str) -> np.random.Generator:
        """Returns the clip's own generator for a purpose, whatever other clips there are."""
        return np.random.default_rng([seed, zlib.crc32(self.id.encode()), zlib.crc32(purpose.encode())])

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON holds it."""
        return {**dataclasses.asdict(self), "texts": list(self.texts)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ClipPlan:
        """Returns what `to_json` gave."""
        return cls(**{**value, "texts": tuple(value["texts"])})


def draw_plan(minutes: float, seed: int) -> list[ClipPlan]:
    """Returns the clips of a corpus of about `minutes`, a twelfth of it for validation, in random order.

    Each family of voices has its own generator: what one says changes no other.

    Args:
        minutes: how long all is; prompts of real speakers come on top of what is synthesised.
        seed: what is drawn from.
    """
    plans: list[ClipPlan] = []
    of_validation: set[str] = set()
    # Validation first: no clip of training has one of its texts.
    for split, shares, part in (
        (VALIDATION, _VALIDATION_SHARES, _VALIDATION_PART),
        (TRAIN, _TRAIN_SHARES, 1 - _VALIDATION_PART),
    ):
        for family, share in shares.items():
            rng = _generator(seed, f"{split} {family}")
            seen = set(of_validation)
            left_s = 60 * minutes * _SYNTHESISED * part * share
            number = 0
            while left_s > 0:
                plan = _speech_plan(f"{split}-{family}-{number:04d}", family, split, rng, seed, seen)
                plans.append(plan)
                number += 1
                left_s -= sum(map(_duration_s, plan.texts)) + 0.8
            if split == VALIDATION:
                of_validation |= seen
    for name in PROMPTS:
        plans += _prompt_plans(name, _generator(seed, name))
    plans += _quiet_plans(60 * minutes * _NONSPEECH, _generator(seed, "quiet"))
    order = _generator(seed, "order").permutation(len(plans))
    return [plans[position] for position in order]


def _generator(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def _quiet_plans(left_s: float, rng: np.random.Generator) -> list[ClipPlan]:
    """Returns clips in which nobody speaks, every tenth for validation."""
    plans: list[ClipPlan] = []
    while left_s > 0:
        seconds = round(float(rng.uniform(5, 9)), 2)
        number = len(plans)
        split = VALIDATION if number % 10 == 9 else TRAIN
        plans.append(
            ClipPlan(
                id=f"{split}-quiet-{number:04d}",
                kind=KINDS[number % len(KINDS)],
                split=split,
                voice="",
                texts=(),
                params={},
                identity=_identity(split, rng),
                seconds=seconds,
            )
        )
        left_s -= seconds
    return plans


def _identity(split: str, rng: np.random.Generator) -> int:
    if split == VALIDATION and rng.random() < 0.6:
        return int(rng.choice(HELD_OUT_IDENTITIES))
    return int(rng.choice([i for i in range(IDENTITIES) if i not in HELD_OUT_IDENTITIES]))


def _voice_of(family: str, rng: np.random.Generator) -> str:
    if family == "espeak-english":
        name = f"espeak-{rng.choice(ESPEAK_ENGLISH)}"
        variant = rng.choice(ESPEAK_VARIANTS)
    elif family == "espeak-others":
        name = f"espeak-{rng.choice(ESPEAK_OTHERS)}"
        variant = rng.choice(ESPEAK_VARIANTS)
    elif family == "espeak-held-out":
        name = f"espeak-{rng.choice(ESPEAK_ENGLISH)}"
        variant = rng.choice(ESPEAK_HELD_OUT)
    else:
        return family
    return f"{name}+{variant}" if variant else name


def _speech_plan(
    name: str, family: str, split: str, rng: np.random.Generator, seed: int, seen: set[str]
) -> ClipPlan:
    voice = _voice_of(family, rng)
    language = voice_named(voice).language
    goal_s = float(rng.uniform(0.6, 1.4)) * _CLIP_S
    texts: list[str] = []
    while not texts or sum(map(_duration_s, texts)) < goal_s:
        for _ in range(20):
            text = draw_text(language, rng)
            if text not in seen:
                break
        seen.add(text)
        texts.append(text)
    plan = ClipPlan(
        id=name,
        kind=SPEECH,
        split=split,
        voice=voice,
        texts=tuple(texts),
        params={},
        identity=_identity(split, rng),
        seconds=0.0,
    )
    return dataclasses.replace(plan, params=voice_named(voice).draw(plan.rng(seed, "params")))


def _prompt_plans(name: str, rng: np.random.Generator) -> list[ClipPlan]:
    """Returns clips of all that one speaker recorded, short prompts joined."""
    plans: list[ClipPlan] = []
    texts = list(voice_named(name).texts() or ())
    group: list[str] = []
    for position in rng.permutation(len(texts)):
        group.append(texts[position])
        if sum(_duration_s(text) + _PROMPT_TEXT_S for text in group) < _PROMPT_S:
            continue
        held_out = name == HELD_OUT_PROMPTS or rng.random() < _PROMPTS_VALIDATION
        split = VALIDATION if held_out else TRAIN
        plans.append(
            ClipPlan(
                id=f"{split}-{name}-{len(plans):04d}",
                kind=SPEECH,
                split=split,
                voice=name,
                texts=tuple(group),
                params={},
                identity=_identity(split, rng),
                seconds=0.0,
            )
        )
        group = []
    return plans


def _duration_s(text: str) -> float:
    return len(text) / _TEXT_RATE
