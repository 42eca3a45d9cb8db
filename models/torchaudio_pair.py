"""torchaudio, imported where it is used: all else runs without it, or beside one that does not load."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from cuda_kernels.errors import InputError

from .settings import one_line


class TorchaudioError(InputError):
    """torchaudio does not load beside this torch: which two are installed, and which pair to install."""


def import_torchaudio() -> Any:  # noqa: ANN401 - a module without types
    """Returns the module `torchaudio`.

    Raises:
        ModuleNotFoundError: It is not installed.
        TorchaudioError: It does not load: it was built for another torch.
    """
    try:
        import torchaudio
    except ModuleNotFoundError as error:
        if error.name == "torchaudio":
            raise
        reason: BaseException = error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = error
    else:
        return torchaudio
    torch_version, torchaudio_version = (_version(name) for name in ("torch", "torchaudio"))
    release = torch_version.partition("+")[0]
    raise TorchaudioError(
        f"torchaudio: expected one built for torch {torch_version}, got {torchaudio_version}, which does not "
        f"load ({one_line(str(reason), 100)}); install the pair: "
        f"pip install torch=={release} torchaudio=={release}"
    ) from reason


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "of unknown version"
