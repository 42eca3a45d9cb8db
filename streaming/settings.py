"""What a run of `geneface-stream` is told, mirrored by its flags and `GENEFACE_*` variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from models.settings import Flag, Option, Range, SettingsError, check_ranges, flags_of, from_flags, texts_of

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


def _port_range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last)


def _origin(text: str) -> str:
    return _as_browsers_write(text) or text


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


DRAWING = "who speaks, and how it is drawn"
VIDEO_FILE = "a recording into a video"
SERVER = "the live server"
LOCAL = "this machine's own microphone"
DEFAULT_MICROPHONE = "default"


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """Settings of one run; a flag wins over its environment variable, which wins over the default."""

    speaker: Annotated[
        str, Option("a speaker's name, or the path of its bundle", metavar="NAME", group=DRAWING)
    ] = "May"
    speakers_dir: Annotated[
        Path | None, Option("a folder of bundles, searched first", metavar="DIR", group=DRAWING)
    ] = None
    input: Annotated[
        Path | None,
        Option(
            "the recording to speak: anything ffmpeg decodes, sound or video",
            metavar="FILE",
            group=VIDEO_FILE,
        ),
    ] = None
    output: Annotated[
        Path | None,
        Option("the video to write (.mp4, .m4v, .mov or .mkv)", metavar="FILE", group=VIDEO_FILE),
    ] = None
    landmarks: Annotated[
        Path | None,
        Option("also write the motion that was drawn, as .npz", metavar="FILE", group=VIDEO_FILE),
    ] = None
    landmark_video: Annotated[
        Path | None,
        Option(
            "write the motion as a video of its 68 points; quick, and --output may be left out",
            metavar="FILE",
            group=VIDEO_FILE,
        ),
    ] = None
    render_size: Annotated[
        int | None,
        Range(MIN_RENDER_PX, words=f"auto or at least {MIN_RENDER_PX} pixels"),
        Option(
            "pixels a side that the raymarcher draws, or auto: the largest that keeps up here; live, "
            "it follows the machine's load, a recording steps down when it falls behind (default: auto)",
            metavar="N|auto",
            parse=_render_size,
            group=DRAWING,
        ),
    ] = None
    plates_mb: Annotated[
        int | None,
        Range(0, words="0 (none) or more MB"),
        Option(
            "memory for the plates of all speakers, over which only what speech changes is drawn; 0: the "
            "whole of each picture is drawn (default: a quarter of what is free, at most 512)",
            metavar="MB",
            group=DRAWING,
        ),
    ] = None
    seed: Annotated[
        int,
        Range(0, 2**63 - 1, words="0 to 2**63 - 1"),
        Option(
            "picks the blinks; the same sound, seed and render size give the same pictures", group=DRAWING
        ),
    ] = 0
    threads: Annotated[
        int,
        Range(0, 64, words="0 (one a core) to 64"),
        Option("threads of the raymarcher; 0: one a core, at most 8", group=DRAWING),
    ] = 0
    cores: Annotated[
        int,
        Range(0, words="0 (all there are) or more"),
        Option(
            "cores to count on, where others work on this machine, too; 0: all that affinity and "
            "container leave",
            group=DRAWING,
        ),
    ] = 0
    engine: Annotated[
        EngineName,
        Option(
            "what runs the networks; auto: on a GPU, TensorRT where it can, else ONNX Runtime", group=DRAWING
        ),
    ] = "auto"
    device: Annotated[
        DeviceName,
        Option(
            "what draws, and where the networks run; auto: a GPU that can draws and runs the large "
            "networks, else the CPU",
            group=DRAWING,
        ),
    ] = "auto"
    crf: Annotated[
        int,
        Range(0, 51, words="0 (best) to 51 (worst)"),
        Option("quality of the video, 0 (best) to 51 (worst)", group=VIDEO_FILE),
    ] = 20
    quiet: Annotated[bool, Option("show no progress", group=DRAWING)] = False
    host: Annotated[
        str,
        Option(
            "the address to listen on; any but this machine's own needs --token (or --allow-anonymous) "
            "and TLS",
            metavar="ADDRESS",
            group=SERVER,
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Range(0, 65535, words="0 (any) to 65535"),
        Option("the TCP port of page and API; 0: any", group=SERVER),
    ] = 8010
    token: Annotated[
        str | None, Option("who wants a session must know it (bearer)", metavar="SECRET", group=SERVER)
    ] = None
    forwarded_allow_ips: Annotated[
        tuple[str, ...],
        Option(
            "a proxy whose X-Forwarded-For is believed, or a network, * for any; several may be given",
            metavar="ADDRESS",
            group=SERVER,
            repeats=True,
        ),
    ] = ()
    allow_anonymous: Annotated[bool, Option("let everybody in who reaches --host", group=SERVER)] = False
    allow_origin: Annotated[
        tuple[str, ...],
        Option(
            "another site, https://example.org, whose pages may show the avatar; several may be given",
            metavar="ORIGIN",
            parse=_origin,
            group=SERVER,
            repeats=True,
        ),
    ] = ()
    tls_cert: Annotated[Path | None, Option("certificate chain, PEM", metavar="FILE", group=SERVER)] = None
    tls_key: Annotated[Path | None, Option("its private key, PEM", metavar="FILE", group=SERVER)] = None
    tls_self_signed: Annotated[
        bool, Option("make a certificate for this run; browsers will warn", group=SERVER)
    ] = False
    ice_server: Annotated[
        tuple[str, ...],
        Option(
            "stun:HOST[:PORT] or turn:USER:PASSWORD@HOST[:PORT][?transport=tcp]; several may be given; "
            "none is asked unless given",
            metavar="URL",
            group=SERVER,
            repeats=True,
        ),
    ] = ()
    udp_port_range: Annotated[
        tuple[int, int] | None,
        Option("UDP ports for sound and pictures", metavar="FIRST-LAST", parse=_port_range, group=SERVER),
    ] = None
    codec: Annotated[
        str,
        Option(
            "auto: the first of h264 and vp8 that the browser knows",
            metavar="auto|h264|vp8",
            parse=_codec,
            group=SERVER,
        ),
    ] = "auto"
    bitrate_kbps: Annotated[int, Range(150, 20000), Option("of the video, at most", group=SERVER)] = 1200
    max_sessions: Annotated[
        int,
        Range(0, words="0 (by measured cost) or more"),
        Option("at most so many at once; 0: as many as this machine draws, 8 at most", group=SERVER),
    ] = 0
    mic: Annotated[
        str | None,
        Option(
            "speak into this machine's microphone: a number or a part of its name (--list-devices)",
            metavar="DEVICE",
            group=LOCAL,
            without_value=DEFAULT_MICROPHONE,
        ),
    ] = None
    preview: Annotated[bool, Option("show the speaker in a window; with --mic", group=LOCAL)] = False

    def __post_init__(self) -> None:
        """Refuses values out of range.

        Raises:
            InputError: with the flag, what was expected, what came.
        """
        try:
            check_ranges(self)
        except SettingsError as error:
            flag = options()[error.field]
            way_out = f"{flag.default} is the default" if flag.default else "leave it out"
            raise InputError(f"{flag}: expected {error.expected}, got {error.got}; {way_out}") from None
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
            plates_mb=self.plates_mb,
        )

    @property
    def listens_beyond_this_machine(self) -> bool:
        """Whether others than this machine can reach the server."""
        return not is_loopback(self.host)

    def _check_server(self) -> None:
        if not self.host:
            raise InputError("--host: expected an address, got nothing; 127.0.0.1 is the default")
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


def options() -> dict[str, Flag]:
    """Returns each setting's flag, by field name and in their order."""
    return flags_of(StreamSettings)


def variable(name: str) -> str:
    """Returns a field's environment variable."""
    return options()[name].variable(ENVIRONMENT_PREFIX)


def resolve_settings(given: Mapping[str, Any], environment: Mapping[str, str]) -> StreamSettings:
    """Returns the settings of a run: flag, else environment, else default.

    Args:
        given: what the command line says, by field name.
        environment: the process environment; names that are not ours are ignored.

    Raises:
        InputError: an unknown name, a text that does not read as the field's type, values that do not fit.
    """
    texts = texts_of(options().values(), environment, prefix=ENVIRONMENT_PREFIX)
    return from_flags(StreamSettings, texts | dict(given), prefix=ENVIRONMENT_PREFIX)
