"""The one interface of all voices."""

from __future__ import annotations

import abc
import shutil
import subprocess
from collections.abc import Mapping, Sequence

import numpy as np

from cuda_kernels.errors import InputError

from ..utterance import Utterance

Params = Mapping[str, float]
"""What a voice takes beside its text: speed, pitch, size."""
ENGINE_TIMEOUT_S = 120.0


class VoiceError(InputError):
    """A voice that is not known or not installed, or a text that it does not say."""


class Voice(abc.ABC):
    """A voice.

    Attributes:
        name: unique, as the corpus's index says it.
        language: BCP 47.
        licence: of its sound.
    """

    name: str
    language: str
    licence: str

    @abc.abstractmethod
    def missing(self) -> str:
        """Returns what is not installed and how to get it, on one line; empty where nothing is missing."""

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Returns random parameters inside what sounds natural."""

    @abc.abstractmethod
    def speak(self, text: str, params: Params) -> Utterance:
        """Returns the text spoken; the same bytes for the same text and parameters.

        Raises:
            VoiceError: the voice is not installed or does not say this text.
        """

    def texts(self) -> Sequence[str] | None:
        """Returns all that the voice can say; None where it says anything of its language."""
        return None


def lacks_program(name: str, package: str) -> str:
    """Returns the line for a program that is not installed, else nothing."""
    return "" if shutil.which(name) else f"{name} is not installed: apt-get install {package}"


def run_engine(command: Sequence[str], *, stdin: str = "") -> str:
    """Returns what an engine printed.

    Raises:
        VoiceError: it is absent, failed, or did not end.
    """
    try:
        done = subprocess.run(
            command,
            input=stdin.encode(),
            capture_output=True,
            timeout=ENGINE_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise VoiceError(f"{command[0]}: expected the program, found none; install it") from None
    except subprocess.TimeoutExpired:
        raise VoiceError(f"{command[0]}: expected an end within {ENGINE_TIMEOUT_S:.0f} s, got none") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise VoiceError(f"{command[0]}: expected exit code 0, got {done.returncode} ({' '.join(said[-1:])})")
    return done.stdout.decode(errors="replace")
