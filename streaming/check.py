"""`--check`: self-diagnosis, one line for each check, with the way out where one fails."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

import numpy as np

from models.onnx_runtime import load_onnxruntime
from models.settings import escaped
from models.speaker import load_speaker
from models.speaker_folders import find_speaker

from .desktop.microphone import input_devices
from .desktop.preview import open_pygame
from .errors import InputError
from .pipeline.clock import CpuClock, MonotonicClock
from .pipeline.cores import usable_cores
from .pipeline.cuda_device import find_cuda_device
from .pipeline.free_memory import free_memory_bytes
from .pipeline.gpu_renderer import GpuRenderer, open_gpu
from .pipeline.loaded_speaker import SpeakerOpening
from .pipeline.onnx_engine import CUDA_PROVIDER
from .pipeline.render_size import FRAME_BUDGET_MS
from .pipeline.renderers import OpenRaymarcher, open_cpu_raymarcher
from .server.tls import server_ssl_context
from .settings import StreamSettings
from .webrtc.opus import BLOCK_SAMPLES, OpusDecoder, OpusEncoder
from .webrtc.video_encoder import H264VideoEncoder, Vp8VideoEncoder

Status = Literal["ok", "warn", "fail"]

PROGRAM_PACKAGE = "geneface-stream"
OLDEST_PYTHON = (3, 11)
MIN_FREE_BYTES = 1 << 30
SOON_DAYS = 14
_PROBE_PX = 256
_COMPILED_S = 5.0  # reading the kernels from the cache is quicker
_MAX_PORTS = 200
_ANY_HOST = "0.0.0.0"
_STAND_INS = {"onnxruntime": ("onnxruntime-gpu",)}  # the same module under another name
_COLOURS = {"ok": "\033[32m", "warn": "\033[33m", "fail": "\033[31m"}


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Result of one check."""

    name: str
    status: Status  # a warning stops nothing
    detail: str
    way_out: str = ""


class _NotTriedError(Exception):
    """A check depends on one that failed."""


def run_checks(
    settings: StreamSettings,
    *,
    clock: MonotonicClock | None = None,
    cpu: CpuClock | None = None,
    say: Callable[[str], None] = lambda _: None,
    open_raymarcher: OpenRaymarcher = open_cpu_raymarcher,
) -> list[CheckResult]:
    """Returns a result for each check; a failure stops no other check.

    Args:
        settings: speaker, threads, render size, addresses and certificates that are to work.
        clock: measures what a GPU does.
        cpu: measures what the CPU does.
        say: takes a line where one check takes long, as the first start of an engine does.
        open_raymarcher: opens what draws on the CPU.
    """
    with contextlib.closing(
        _Checks(settings, clock=clock, cpu=cpu, say=say, open_raymarcher=open_raymarcher)
    ) as checks:
        return [
            _isolated(name, check)
            for name, check in (
                ("python", checks.python),
                ("cores", checks.cores),
                ("memory", checks.memory),
                ("gpu", checks.gpu),
                ("engines", checks.engines),
                ("speaker", checks.speaker),
                ("plates", checks.plates),
                ("networks", checks.networks),
                ("kernels", checks.kernels),
                ("frame", checks.frame),
                ("video H.264", checks.h264),
                ("video VP8", checks.vp8),
                ("sound Opus", checks.opus),
                ("port", checks.port),
                ("UDP ports", checks.udp_ports),
                ("TLS", checks.tls),
                ("microphone", checks.microphone),
                ("preview", checks.preview),
            )
        ]


def exit_code(results: Sequence[CheckResult]) -> int:
    """Returns 1 if a check failed, else 0."""
    return int(any(result.status == "fail" for result in results))


def table(results: Sequence[CheckResult], *, colour: bool | None = None) -> str:
    """Returns the results in lines: status, name, detail; the way out below it.

    Args:
        results: of the checks.
        colour: of the status; None: where standard output is a terminal and NO_COLOR is not set.
    """
    if colour is None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    width = max((len(result.name) for result in results), default=0)
    lines = []
    for result in results:
        mark = result.status.ljust(4)
        if colour:
            mark = f"{_COLOURS[result.status]}{mark}\033[0m"
        lines.append(f"{mark}  {result.name.ljust(width)}  {escaped(result.detail)}")
        if result.way_out:
            lines.append(f"{' ' * (width + 8)}-> {escaped(result.way_out)}")
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A result that has no name yet."""

    status: Status
    detail: str
    way_out: str = ""


def _isolated(name: str, check: Callable[[], _Found]) -> CheckResult:
    try:
        found = check()
    except _NotTriedError as reason:
        found = _Found(status="warn", detail=f"not tried: {reason}")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this check's result
        found = _failure(error)
    return CheckResult(name=name, status=found.status, detail=found.detail, way_out=found.way_out)


def _failure(error: Exception) -> _Found:
    """Returns an error's message, split at the last semicolon into problem and way out."""
    text = " ".join(str(error).split())
    detail, semicolon, way_out = text.rpartition("; ")
    if isinstance(error, InputError) and semicolon:
        return _Found(status="fail", detail=detail, way_out=way_out)
    return _Found(status="fail", detail=f"{type(error).__name__}: {text}" if text else type(error).__name__)


class _Checks:
    """The checks, in the order in which one uses what another found."""

    def __init__(
        self,
        settings: StreamSettings,
        *,
        clock: MonotonicClock | None,
        cpu: CpuClock | None,
        say: Callable[[str], None],
        open_raymarcher: OpenRaymarcher,
    ) -> None:
        self._settings = settings
        self._say = say
        self._clock, self._cpu = clock, cpu
        self._open_raymarcher = open_raymarcher
        self._cores, self._threads = settings.compute.usable_cores, settings.compute.drawing_threads
        self._opening: SpeakerOpening | None = None
        self._networks_open = False
        self._gpu: GpuRenderer | None = None

    def close(self) -> None:
        """Closes raymarcher and GPU renderer."""
        for opened in (self._opening, self._gpu):
            if opened is not None:
                opened.close()

    # The machine -------------------------------------------------------------------------------------

    def python(self) -> _Found:
        """The interpreter, and the packages that serving needs."""
        names = _required_packages()
        versions, missing = [], []
        for name in names:
            found = next(filter(None, map(_installed, (name, *_STAND_INS.get(name, ())))), None)
            if found:
                versions.append(found)
            else:
                missing.append(name)
        if sys.version_info < OLDEST_PYTHON:
            oldest = ".".join(str(part) for part in OLDEST_PYTHON)
            return _Found(
                status="fail",
                detail=f"Python {platform.python_version()}, expected {oldest} or newer",
                way_out="install a newer one and make the environment anew",
            )
        if missing:
            return _Found(
                status="fail",
                detail=f"not installed: {', '.join(missing)}",
                way_out=f"pip install {' '.join(missing)}",
            )
        return _Found(status="ok", detail=f"Python {platform.python_version()}, {', '.join(versions)}")

    def cores(self) -> _Found:
        """The CPU budget."""
        threads = f"{self._threads} thread{'s' if self._threads > 1 else ''}"
        here = usable_cores()
        counted_on = f"{self._cores} usable" if self._cores == here else f"{self._cores} of {here} counted on"
        detail = f"{counted_on}, {threads} where the CPU draws"
        if self._cores < 2:
            return _Found(
                status="warn",
                detail=detail,
                way_out="expect small pictures or lost frames; two cores or more are meant for a stream",
            )
        return _Found(status="ok", detail=detail)

    def memory(self) -> _Found:
        """Free memory of the machine and of this container."""
        free_bytes = free_memory_bytes()
        if free_bytes is None:
            return _Found(status="ok", detail="this system does not say what is free")
        detail = f"{free_bytes / (1 << 30):.1f} GiB free"
        if free_bytes < MIN_FREE_BYTES:
            return _Found(status="warn", detail=detail, way_out="1 GiB should be free; close other programs")
        return _Found(status="ok", detail=detail)

    def gpu(self) -> _Found:
        """The CUDA device, and whether it can draw."""
        device = find_cuda_device()
        said: list[str] = []
        self._gpu = open_gpu(self._settings.device, say=said.append)
        if device is None:
            return _Found(status="ok", detail="no CUDA device: the CPU draws and runs the networks")
        name = f"{device.name}, compute {device.capability[0]}.{device.capability[1]}"
        if self._gpu is not None:
            return _Found(status="ok", detail=f"{name}: draws, and runs large networks")
        if said:
            reason, _, way_out = said[0].rpartition("; ")
            return _Found(status="warn", detail=f"{name}: {reason}", way_out=way_out)
        return _Found(status="ok", detail=f"{name}: not used, as --device cpu says")

    def engines(self) -> _Found:
        """The runtimes that can run networks; without a CUDA device one is enough."""
        onnxruntime = load_onnxruntime()
        providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
        detail = f"ONNX Runtime {onnxruntime.__version__} ({', '.join(providers)})"
        tensorrt = _installed("tensorrt")
        detail += f", {tensorrt or 'no tensorrt'}"
        if find_cuda_device() is None or CUDA_PROVIDER in onnxruntime.get_available_providers():
            return _Found(status="ok", detail=detail)
        return _Found(
            status="warn",
            detail=f"{detail}: the GPU cannot run the networks",
            way_out="pip uninstall onnxruntime, then pip install onnxruntime-gpu",
        )

    # The speaker -------------------------------------------------------------------------------------

    def speaker(self) -> _Found:
        """The bundle, read whole and checked."""
        settings = self._settings
        speaker = load_speaker(find_speaker(settings.speaker, speakers_dir=settings.speakers_dir))
        self._opening = SpeakerOpening(
            speaker,
            settings.compute,
            open_raymarcher=self._open_raymarcher,
            gpu=self._gpu,
            say=self._say,
            clock=self._clock,
            cpu=self._cpu,
        )
        size = f"{speaker.image_size_px} x {speaker.image_size_px}"
        return _Found(status="ok", detail=f"{speaker.name}, {size}, {speaker.path}")

    def plates(self) -> _Found:
        """The pictures over which only what speech changes is drawn, read whole."""
        opening = self._need_speaker()
        files = opening.speaker.plates
        if files is None:
            return _Found(
                status="ok",
                detail="none in the bundle, which `geneface-export plates` changes: whole pictures are drawn",
            )
        if self._settings.plates_mb == 0:
            return _Found(status="ok", detail="not used, as --plates-mb 0 says")
        said: list[str] = []
        opening.open_plates(say=said.append)
        if not opening.wait_for_plates() or opening.plates is None:
            reason, _, way_out = said[0].rpartition("; ")
            return _Found(status="warn", detail=reason, way_out=way_out)
        share = f"{100 * opening.plates.masks.share:.0f} % of each picture is drawn"
        megabytes = f"{files.picture_bytes / 1e6:.0f} MB"
        return _Found(status="ok", detail=f"{len(opening.speaker.poses)}, {megabytes} in memory: {share}")

    def networks(self) -> _Found:
        """The speaker's networks, run on silence."""
        opening = self._need_speaker()
        networks, motion_ms = opening.networks, opening.motion_ms
        self._networks_open = True
        subject = "motion takes" if networks.features is None else "features and motion take"
        detail = f"{subject} {motion_ms:.1f} ms a frame; {networks.describe() or 'all on the CPU'}"
        if motion_ms > opening.motion_limit_ms:
            return _Found(
                status="warn",
                detail=f"{detail}: too slow for live use",
                way_out="run them on a GPU, or make a student of them with `geneface-export distil`",
            )
        return _Found(status="ok", detail=detail)

    def kernels(self) -> _Found:
        """The raymarcher's kernels, compiled or read from the cache."""
        opening = self._need_speaker()
        spent_s = opening.warm_up()
        compiled = "compiled, the next start is quick: " if spent_s > _COMPILED_S else ""
        return _Found(status="ok", detail=f"{opening.device}: {compiled}ready in {spent_s:.1f} s")

    def frame(self) -> _Found:
        """One frame, drawn, finished and encoded."""
        opening = self._need_speaker()
        if not (self._networks_open and opening.is_warm):
            raise _NotTriedError("it needs the networks and the kernels")
        full_px = opening.speaker.image_size_px
        size_px = self._settings.render_size or (full_px if opening.on_gpu else min(_PROBE_PX, full_px))
        cost = opening.measure(size_px)
        frame_ms = cost.frame_ms(threads=opening.threads, cores=self._cores)
        draw = f"{cost.render_ms:.1f}" if opening.on_gpu else f"{cost.render_ms:.0f}"
        detail = (
            f"drawn at {size_px} px in {draw} ms, all else {cost.other_ms:.0f} ms: one every "
            f"{frame_ms:.0f} of {FRAME_BUDGET_MS:.0f} ms, {cost.core_ms(threads=opening.threads):.0f} core-ms"
        )
        if frame_ms > FRAME_BUDGET_MS:
            return _Found(
                status="warn", detail=detail, way_out="--render-size auto draws as small as it must"
            )
        return _Found(status="ok", detail=detail)

    def _need_speaker(self) -> SpeakerOpening:
        if self._opening is None:
            raise _NotTriedError("it needs the speaker")
        return self._opening

    # The codecs --------------------------------------------------------------------------------------

    def h264(self) -> _Found:
        """libx264, on one picture."""
        return _encoded(H264VideoEncoder)

    def vp8(self) -> _Found:
        """libvpx, on one picture."""
        return _encoded(Vp8VideoEncoder)

    def opus(self) -> _Found:
        """libopus, a round trip."""
        packet = OpusEncoder().encode(np.zeros(BLOCK_SAMPLES, np.float32))
        samples = OpusDecoder().decode(packet)
        if len(samples) != BLOCK_SAMPLES:
            raise RuntimeError(f"expected {BLOCK_SAMPLES} samples back, got {len(samples)}")
        return _Found(status="ok", detail="works, and conceals what is lost on the way")

    # The network -------------------------------------------------------------------------------------

    def port(self) -> _Found:
        """Whether page and API can listen."""
        host, port = self._settings.host, self._settings.port
        try:
            _bind(host, port, socket.SOCK_STREAM)
        except OSError as error:
            way_out = (
                "give another with --host"
                if isinstance(error, socket.gaierror)
                else "give another with --port"
            )
            return _Found(status="fail", detail=f"{host}:{port}: {_reason(error)}", way_out=way_out)
        return _Found(status="ok", detail=f"{host}:{port or 'any'} is free")

    def udp_ports(self) -> _Found:
        """Whether sound and pictures have ports to come and go by."""
        ports = self._settings.udp_port_range
        if ports is None:
            _bind(_ANY_HOST, 0, socket.SOCK_DGRAM)
            return _Found(status="ok", detail="any that the system gives; a firewall needs --udp-port-range")
        first, last = ports
        tried = range(first, min(last + 1, first + _MAX_PORTS))
        refused: OSError | None = None
        free = 0
        for port in tried:
            try:
                _bind(_ANY_HOST, port, socket.SOCK_DGRAM)
                free += 1
            except OSError as error:
                refused = refused or error
        detail = f"{free} of {len(tried)} tried in {first}-{last} are free"
        if refused is None:
            return _Found(status="ok", detail=detail)
        return _Found(
            status="warn" if free else "fail",
            detail=f"{detail}: {_reason(refused)}",
            way_out="give other ports with --udp-port-range",
        )

    def tls(self) -> _Found:
        """The certificate: a browser gives a microphone to https and to localhost only."""
        settings = self._settings
        context = server_ssl_context(
            settings.tls_cert, settings.tls_key, settings.tls_self_signed, settings.host
        )
        if context is None:
            return _Found(
                status="ok", detail="none: http, to which browsers on this machine give a microphone"
            )
        if settings.tls_self_signed:
            return _Found(status="ok", detail="self-signed, new in each run: browsers warn")
        return _validity(
            context.certificate.not_valid_before_utc,
            context.certificate.not_valid_after_utc,
            datetime.datetime.now(datetime.UTC),
        )

    # Local use ---------------------------------------------------------------------------------------

    def microphone(self) -> _Found:
        """Whether there is a device for --mic."""
        try:
            devices = input_devices()
        except InputError as error:
            return _only_for("--mic", error)
        if not devices:
            return _Found(status="warn", detail="none on this machine; only --mic needs one")
        default = next((device for device in devices if device.is_default), devices[0])
        more = f", and {len(devices) - 1} more (--list-devices)" if len(devices) > 1 else ""
        return _Found(status="ok", detail=f"{default}{more}")

    def preview(self) -> _Found:
        """Whether --preview can open a window."""
        try:
            pygame = open_pygame()
        except InputError as error:
            return _only_for("--preview", error)
        driver = pygame.display.get_driver()
        pygame.display.quit()
        return _Found(status="ok", detail=f"pygame-ce {pygame.version.ver} on {driver}")


def _installed(package: str) -> str | None:
    """Returns name and version of a package, None where there is none."""
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return None


def _required_packages() -> list[str]:
    """Returns the names of the packages that this one asks for, extras left out."""
    try:
        requirements = metadata.requires(PROGRAM_PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise InputError(
            f"{PROGRAM_PACKAGE} is not installed in this environment; pip install -e . in its folder"
        ) from None
    plain = [requirement for requirement in requirements if "extra ==" not in requirement]
    return sorted(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0] for requirement in plain)


def _encoded(encoder_type: type[H264VideoEncoder] | type[Vp8VideoEncoder]) -> _Found:
    size_px = 512
    picture = np.full((size_px * 3 // 2, size_px), 128, np.uint8)
    payloads = encoder_type(size_px=size_px, bitrate=1_000_000).encode(picture, 0)
    if not payloads:
        raise RuntimeError("the encoder gave nothing for a picture")
    return _Found(status="ok", detail=f"encodes {size_px} x {size_px}")


def _bind(host: str, port: int, kind: socket.SocketKind) -> None:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=kind)[0]
    with socket.socket(family, kind) as bound:
        if kind is socket.SOCK_STREAM and os.name == "posix":  # as the server does
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        if kind is socket.SOCK_STREAM:
            bound.listen(1)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _validity(begins: datetime.datetime, ends: datetime.datetime, now: datetime.datetime) -> _Found:
    way_out = "give a certificate that is valid, with --tls-cert and --tls-key"
    if now < begins:
        return _Found(status="fail", detail=f"valid only from {begins:%Y-%m-%d %H:%M} UTC", way_out=way_out)
    if now >= ends:
        return _Found(status="fail", detail=f"expired on {ends:%Y-%m-%d %H:%M} UTC", way_out=way_out)
    days = (ends - now).days
    detail = f"certificate valid until {ends:%Y-%m-%d}, {days} day{'s' if days != 1 else ''} from now"
    if days < SOON_DAYS:
        return _Found(status="warn", detail=detail, way_out="renew it, then start the server anew")
    return _Found(status="ok", detail=detail)


def _only_for(flag: str, error: InputError) -> _Found:
    found = _failure(error)
    detail = found.detail.removeprefix(f"{flag}: ")
    return _Found(status="warn", detail=f"{detail} (only {flag} needs it)", way_out=found.way_out)
