"""What a run of `geneface-stream` is told, mirrored by its flags and `GENEFACE_*` variables."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from .addresses import TrustedProxies, is_loopback
from .errors import InputError
from .pipeline.compute_settings import ComputeSettings
from .pipeline.engine_choice import DeviceName, EngineName
from .pipeline.render_size import MIN_RENDER_PX

ENVIRONMENT_PREFIX = "GENEFACE_"
MIN_TOKEN_CHARS = 16
_DEFAULT_PORTS = {"http": 80, "https": 443}


def _render_size(text: str) -> int | None:
    return None if text == "auto" else int(text)


def _texts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _port_range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last)


def _origins(text: str) -> tuple[str, ...]:
    return tuple(_as_browsers_write(origin) or origin for origin in _texts(text))


def _as_browsers_write(origin: str) -> str | None:
    """Returns an origin as the header of that name has it (RFC 6454, 6.2), None of what is no origin."""
    try:
        parts = urlsplit(origin)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError:
        return None
    beside = parts.path.removeprefix("/") or parts.query or parts.fragment or parts.username
    if parts.scheme not in _DEFAULT_PORTS or not host or beside:
        return None
    host = f"[{host}]" if ":" in host else host
    shown_port = "" if port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{host}{shown_port}"


def _codec(text: str) -> str:
    return {"auto": "auto", "h264": "H264", "vp8": "VP8"}[text.lower()]


def _one_of(*names: str) -> Callable[[str], str]:
    return {name: name for name in names}.__getitem__


def _switch(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]


@dataclass(frozen=True, kw_only=True)
class Option:
    """How a setting is given as a text, by flag or environment variable."""

    parse: Callable[[str], object]
    help: str
    metavar: str = ""  # empty: a switch, which takes no value as a flag
    group: str = "who speaks, and how it is drawn"
    several: bool = False  # the flag may be given several times; as a variable, separated by commas
    without_value: str | None = None  # what the flag means when no value follows it


VIDEO_FILE = "a recording into a video"
SERVER = "the live server"
LOCAL = "this machine's own microphone"
DEFAULT_MICROPHONE = "default"


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """Settings of one run; a flag wins over its environment variable, which wins over the default."""

    speaker: Annotated[
        str, Option(parse=str, help="a speaker's name, or the path of its bundle", metavar="NAME")
    ] = "May"
    speakers_dir: Annotated[
        Path | None, Option(parse=Path, help="a folder of bundles, searched first", metavar="DIR")
    ] = None
    input: Annotated[
        Path | None,
        Option(
            parse=Path,
            help="the recording to speak: anything ffmpeg decodes, sound or video",
            metavar="FILE",
            group=VIDEO_FILE,
        ),
    ] = None
    output: Annotated[
        Path | None,
        Option(
            parse=Path, help="the video to write (.mp4, .m4v, .mov or .mkv)", metavar="FILE", group=VIDEO_FILE
        ),
    ] = None
    landmarks: Annotated[
        Path | None,
        Option(
            parse=Path,
            help="also write the motion that was drawn, as .npz",
            metavar="FILE",
            group=VIDEO_FILE,
        ),
    ] = None
    landmark_video: Annotated[
        Path | None,
        Option(
            parse=Path,
            help="write the motion as a video of its 68 points; quick, and --output may be left out",
            metavar="FILE",
            group=VIDEO_FILE,
        ),
    ] = None
    render_size: Annotated[
        int | None,
        Option(
            parse=_render_size,
            help="pixels a side that the raymarcher draws, or auto: the largest that keeps up here; live, "
            "it follows the machine's load, a recording steps down when it falls behind (default: auto)",
            metavar="N|auto",
        ),
    ] = None
    seed: Annotated[
        int,
        Option(
            parse=int,
            help="picks the blinks; the same sound, seed and render size give the same pictures",
            metavar="N",
        ),
    ] = 0
    threads: Annotated[
        int, Option(parse=int, help="threads of the raymarcher; 0: one a core, at most 8", metavar="N")
    ] = 0
    cores: Annotated[
        int,
        Option(
            parse=int,
            help="cores to count on, where others work on this machine, too; 0: all that affinity and "
            "container leave",
            metavar="N",
        ),
    ] = 0
    engine: Annotated[
        EngineName,
        Option(
            parse=_one_of("auto", "onnx", "tensorrt"),
            help="what runs the networks; auto: on a GPU, TensorRT where it can, else ONNX Runtime",
            metavar="auto|onnx|tensorrt",
        ),
    ] = "auto"
    device: Annotated[
        DeviceName,
        Option(
            parse=_one_of("auto", "cpu", "cuda"),
            help="what draws, and where the networks run; auto: a GPU that can draws and runs the large "
            "networks, else the CPU",
            metavar="auto|cpu|cuda",
        ),
    ] = "auto"
    crf: Annotated[
        int,
        Option(parse=int, help="quality of the video, 0 (best) to 51 (worst)", metavar="N", group=VIDEO_FILE),
    ] = 20
    quiet: Annotated[bool, Option(parse=_switch, help="show no progress")] = False
    host: Annotated[
        str,
        Option(
            parse=str,
            help="the address to listen on; any but this machine's own needs --token (or --allow-anonymous) "
            "and TLS",
            metavar="ADDRESS",
            group=SERVER,
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, Option(parse=int, help="the TCP port of page and API; 0: any", metavar="N", group=SERVER)
    ] = 8010
    token: Annotated[
        str | None,
        Option(parse=str, help="who wants a session must know it (bearer)", metavar="SECRET", group=SERVER),
    ] = None
    forwarded_allow_ips: Annotated[
        tuple[str, ...],
        Option(
            parse=_texts,
            help="a proxy whose X-Forwarded-For is believed, or a network, * for any; several may be given",
            metavar="ADDRESS",
            group=SERVER,
            several=True,
        ),
    ] = ()
    allow_anonymous: Annotated[
        bool, Option(parse=_switch, help="let everybody in who reaches --host", group=SERVER)
    ] = False
    allow_origin: Annotated[
        tuple[str, ...],
        Option(
            parse=_origins,
            help="another site, https://example.org, whose pages may show the avatar; several may be given",
            metavar="ORIGIN",
            group=SERVER,
            several=True,
        ),
    ] = ()
    tls_cert: Annotated[
        Path | None, Option(parse=Path, help="certificate chain, PEM", metavar="FILE", group=SERVER)
    ] = None
    tls_key: Annotated[
        Path | None, Option(parse=Path, help="its private key, PEM", metavar="FILE", group=SERVER)
    ] = None
    tls_self_signed: Annotated[
        bool, Option(parse=_switch, help="make a certificate for this run; browsers will warn", group=SERVER)
    ] = False
    ice_server: Annotated[
        tuple[str, ...],
        Option(
            parse=_texts,
            help="stun:HOST[:PORT] or turn:USER:PASSWORD@HOST[:PORT][?transport=tcp]; several may be given; "
            "none is asked unless given",
            metavar="URL",
            group=SERVER,
            several=True,
        ),
    ] = ()
    udp_port_range: Annotated[
        tuple[int, int] | None,
        Option(
            parse=_port_range, help="UDP ports for sound and pictures", metavar="FIRST-LAST", group=SERVER
        ),
    ] = None
    codec: Annotated[
        str,
        Option(
            parse=_codec,
            help="auto: the first of h264 and vp8 that the browser knows",
            metavar="auto|h264|vp8",
            group=SERVER,
        ),
    ] = "auto"
    bitrate_kbps: Annotated[
        int, Option(parse=int, help="of the video, at most", metavar="N", group=SERVER)
    ] = 1200
    max_sessions: Annotated[
        int,
        Option(
            parse=int,
            help="at most so many at once; 0: as many as this machine draws, 8 at most",
            metavar="N",
            group=SERVER,
        ),
    ] = 0
    mic: Annotated[
        str | None,
        Option(
            parse=str,
            help="speak into this machine's microphone: a number or a part of its name (--list-devices)",
            metavar="DEVICE",
            group=LOCAL,
            without_value=DEFAULT_MICROPHONE,
        ),
    ] = None
    preview: Annotated[
        bool, Option(parse=_switch, help="show the speaker in a window; with --mic", group=LOCAL)
    ] = False

    def __post_init__(self) -> None:
        """Refuses values out of range.

        Raises:
            InputError: with the flag, what was expected, what came.
        """
        size = self.render_size
        if size is not None and size < MIN_RENDER_PX:
            raise InputError(
                f"--render-size: expected auto or at least {MIN_RENDER_PX} pixels, got {size}; "
                "give 256, or leave it out"
            )
        if not 0 <= self.crf <= 51:
            raise InputError(f"--crf: expected 0 (best) to 51 (worst), got {self.crf}; 20 is the default")
        if not 0 <= self.threads <= 64:
            raise InputError(f"--threads: expected 0 (one a core) to 64, got {self.threads}; leave it out")
        if self.cores < 0:
            raise InputError(f"--cores: expected 0 (all there are) or more, got {self.cores}; leave it out")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed: expected 0 to 2**63 - 1, got {self.seed}; leave it out")
        _ = self.compute  # refuses what does not go together
        self._check_server()
        if self.preview and self.mic is None:
            raise InputError("--preview: expected --mic with it, got none; give --mic, or leave both out")
        if self.mic is not None and not self.preview:
            raise InputError("--mic: expected --preview with it, the window to show the speaker in, got none")
        if self.mic is not None and (self.input or self.output or self.landmark_video):
            raise InputError(
                "--mic: expected no --input, --output or --landmark-video beside it; give one or the other"
            )
        if not self.speaker:
            raise InputError("--speaker: expected a name or a path, got nothing; --list-speakers shows names")

    @property
    def compute(self) -> ComputeSettings:
        """What draws and runs the networks, and where."""
        return ComputeSettings(
            device=self.device,
            engine=self.engine,
            threads=self.threads,
            cores=self.cores,
            render_px=self.render_size,
        )

    @property
    def listens_beyond_this_machine(self) -> bool:
        """Whether others than this machine can reach the server."""
        return not is_loopback(self.host)

    def _check_server(self) -> None:
        if not self.host:
            raise InputError("--host: expected an address, got nothing; 127.0.0.1 is the default")
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port: expected 0 (any) to 65535, got {self.port}; 8010 is the default")
        if self.udp_port_range is not None:
            first, last = self.udp_port_range
            if not 1024 <= first <= last <= 65535:
                raise InputError(
                    f"--udp-port-range: expected FIRST-LAST within 1024-65535, got {first}-{last}; "
                    "40000-40100 would do"
                )
        if self.token is not None and len(self.token) < MIN_TOKEN_CHARS:
            raise InputError(
                f"--token: expected at least {MIN_TOKEN_CHARS} characters, got {len(self.token)}; "
                'python -c "import secrets; print(secrets.token_urlsafe())" makes one'
            )
        if self.token is not None and not all("!" <= character <= "~" for character in self.token):
            raise InputError(
                "--token: expected visible characters of ASCII, as a header takes them, got others; "
                'python -c "import secrets; print(secrets.token_urlsafe())" makes one'
            )
        try:
            TrustedProxies(self.forwarded_allow_ips)
        except ValueError as error:
            raise InputError(
                "--forwarded-allow-ips: expected addresses like 10.0.0.2, networks like 10.0.0.0/8, or *, "
                f"got: {error}"
            ) from None
        if self.listens_beyond_this_machine and not (self.token or self.allow_anonymous):
            raise InputError(
                f"--host {self.host}: others can reach it; give --token SECRET, or --allow-anonymous to let "
                "everybody in"
            )
        with_tls = self.tls_self_signed or self.tls_cert is not None
        if self.listens_beyond_this_machine and not with_tls:
            raise InputError(
                f"--host {self.host}: browsers give no microphone without TLS; give --tls-cert and "
                "--tls-key, or --tls-self-signed"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("--tls-cert, --tls-key: expected both or neither, got one; give the other too")
        if self.tls_cert is not None and self.tls_self_signed:
            raise InputError("--tls-self-signed: expected no --tls-cert beside it; give one or the other")
        for origin in self.allow_origin:
            if _as_browsers_write(origin) != origin:
                raise InputError(
                    f"--allow-origin: expected a site like https://example.org, got {origin}; "
                    "leave out all but scheme, name and port"
                )
        if not 150 <= self.bitrate_kbps <= 20000:
            raise InputError(
                f"--bitrate-kbps: expected 150 to 20000, got {self.bitrate_kbps}; 1200 is the default"
            )
        if self.max_sessions < 0:
            raise InputError(
                f"--max-sessions: expected 0 (by measured cost) or more, got {self.max_sessions}"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, str]) -> StreamSettings:
        """Returns settings from texts by field name; what is absent keeps its default.

        Raises:
            InputError: an unknown name, or a text that does not read as the field's type.
        """
        known = options()
        parsed: dict[str, typing.Any] = {}
        for name, text in values.items():
            if name not in known:
                raise InputError(f"{name}: no such setting; expected one of {', '.join(known)}")
            option = known[name]
            try:
                parsed[name] = option.parse(text)
            except (ValueError, KeyError):
                expected = option.metavar or "true or false"
                raise InputError(
                    f"{flag(name)} (or {variable(name)}): expected {expected}, got {text!r}; {option.help}"
                ) from None
        return cls(**parsed)


def options() -> dict[str, Option]:
    """Returns each setting's option, by field name and in their order."""
    hints = typing.get_type_hints(StreamSettings, include_extras=True)
    return {field.name: hints[field.name].__metadata__[0] for field in dataclasses.fields(StreamSettings)}


def flag(name: str) -> str:
    """Returns a field's flag."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """Returns a field's environment variable."""
    return ENVIRONMENT_PREFIX + name.upper()


def resolve_settings(flags: Mapping[str, str], environment: Mapping[str, str]) -> StreamSettings:
    """Returns the settings of a run: flag, else environment, else default.

    Args:
        flags: texts by field name, of the flags that were given.
        environment: the process environment; names that are not ours are ignored.
    """
    texts = {name: environment[variable(name)] for name in options() if environment.get(variable(name))}
    return StreamSettings.from_mapping(texts | dict(flags))
