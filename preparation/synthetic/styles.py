"""How one speaker differs from another in the way the mouth moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Style:
    """A speaker's habits; the defaults are the median's, the ranges those between people's quartiles.

    Attributes:
        opening: Gain of jaw and lips apart.
        rounding: Gain of rounding and funnel.
        spreading: Gain of spread.
        coupling: How far the corners go out with the jaw.
        loudness: What a vowel 6 dB louder opens more, as a share.
        stress: What a stressed vowel opens more, as a share.
        pace: Divides how far a phone reaches: above 1 movements are quicker.
        lead_s: Added to every lead.
        smile: Weight of drawn-up corners.
        parted: How far lips stay apart in short pauses.
        lids: How far they are closed at rest.
    """

    opening: float = 1.0
    rounding: float = 1.0
    spreading: float = 1.0
    coupling: float = 1.3
    loudness: float = 0.1
    stress: float = 0.12
    pace: float = 1.0
    lead_s: float = 0.0
    smile: float = 0.16
    parted: float = 0.45
    lids: float = 0.08

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Style:
        """Returns a random speaker's style."""
        return cls(
            opening=float(rng.uniform(0.92, 1.10)),
            rounding=float(rng.uniform(0.92, 1.08)),
            spreading=float(rng.uniform(0.85, 1.15)),
            coupling=float(rng.uniform(0.85, 1.15) * cls.coupling),
            loudness=float(rng.uniform(0.05, 0.15)),
            stress=float(rng.uniform(0.08, 0.16)),
            pace=float(rng.uniform(0.96, 1.05)),
            lead_s=float(rng.uniform(-0.006, 0.006)),
            smile=float(rng.uniform(0.10, 0.24)),
            parted=float(rng.uniform(0.8, 1.2) * cls.parted),
            lids=float(rng.uniform(0.03, 0.14)),
        )
