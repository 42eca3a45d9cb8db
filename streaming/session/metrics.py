"""The server's Prometheus metrics: base units, prefix `geneface_`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STAGE_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16, 0.2, 0.3, 0.5, 1.0)
_GLASS_BUCKETS_S = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.8, 1.0, 1.5, 2.0)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 24, 32)
_KERNEL_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.004, 0.006, 0.01, 0.015, 0.02, 0.04, 0.1)
_SKEW_BUCKETS_S = (-0.2, -0.1, -0.06, -0.04, -0.02, 0.0, 0.02, 0.04, 0.06, 0.1, 0.2)


class Metrics:
    """One server's metrics in a registry of their own; thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.sessions_active = Gauge("geneface_sessions_active", "Sessions now.", registry=registry)
        self.sessions = Counter(
            "geneface_sessions_total", "Sessions by how they ended.", ["end"], registry=registry
        )
        self.refused = Counter(
            "geneface_offers_refused_total", "Offers refused, by HTTP status.", ["status"], registry=registry
        )
        self.frames_rendered = Counter(
            "geneface_frames_rendered_total", "Frames drawn and sent.", ["speaker"], registry=registry
        )
        self.frames_dropped = Counter(
            "geneface_frames_dropped_total",
            "Frames not sent: skipped undrawn, late by more than a frame, or too much for the line.",
            ["speaker", "reason"],
            registry=registry,
        )
        self.network_failures = Counter(
            "geneface_network_failures_total",
            "Runs of a speaker's network that gave nothing usable; the last good face holds.",
            ["speaker", "network"],
            registry=registry,
        )
        self.render_size_px = Gauge(
            "geneface_render_size_pixels",
            "Side of what the raymarcher draws.",
            ["session"],
            registry=registry,
        )
        self.render_size_changes = Counter(
            "geneface_render_size_changes_total", "Changes of it.", ["direction"], registry=registry
        )
        self.drawn_ratio = Gauge(
            "geneface_drawn_ratio",
            "Share of the last picture that was drawn; the rest is the plate's.",
            ["session"],
            registry=registry,
        )
        self.plates_bytes = Gauge(
            "geneface_plates_bytes", "Memory of the plates of all speakers.", registry=registry
        )
        self.stage = Histogram(
            "geneface_stage_duration_seconds",
            "Time from one stage of a frame to the next.",
            ["stage"],
            buckets=_STAGE_BUCKETS_S,
            registry=registry,
        )
        self.room_core_s = Gauge(
            "geneface_admission_room_core_seconds",
            "CPU time that one frame of all sessions together may take.",
            registry=registry,
        )
        self.taken_core_s = Gauge(
            "geneface_admission_taken_core_seconds",
            "CPU time that one frame of all sessions would take at the smallest sizes, as they ran lately.",
            registry=registry,
        )
        self.gpu_draws = Gauge(
            "geneface_gpu_draws",
            "1 while a GPU draws, 0 where the CPU does, or has to because the GPU failed.",
            registry=registry,
        )
        self.gpu_batch = Histogram(
            "geneface_gpu_batch_frames",
            "Frames drawn by one launch.",
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        self.gpu_kernel = Histogram(
            "geneface_gpu_kernel_duration_seconds",
            "What a launch's kernels took on the GPU.",
            buckets=_KERNEL_BUCKETS_S,
            registry=registry,
        )
        self.microphone_depth = Gauge(
            "geneface_microphone_depth_seconds", "Sound in the jitter buffer.", ["session"], registry=registry
        )
        self.microphone_lost = Counter(
            "geneface_microphone_packets_lost_total", "Packets lost on the way in.", registry=registry
        )
        self.microphone_concealed = Counter(
            "geneface_microphone_concealed_seconds_total",
            "Audio synthesised by packet loss concealment.",
            registry=registry,
        )
        self.microphone_late = Counter(
            "geneface_microphone_packets_late_total",
            "Packets that came when their place was over.",
            registry=registry,
        )
        self.microphone_recovered = Counter(
            "geneface_microphone_packets_recovered_total",
            "Lost packets that were decoded from the in-band FEC of the next one.",
            registry=registry,
        )
        self.microphone_accelerated = Counter(
            "geneface_microphone_accelerated_seconds_total",
            "Sound left out to make the delay shorter.",
            registry=registry,
        )
        self.microphone_expanded = Counter(
            "geneface_microphone_expanded_seconds_total",
            "Sound put in to make the delay longer.",
            registry=registry,
        )
        self.malformed_packets = Counter(
            "geneface_malformed_packets_total",
            "Packets of peers that were dropped because they could not be parsed or taken.",
            ["kind"],
            registry=registry,
        )
        self.mic_to_glass = Histogram(
            "geneface_mic_to_glass_seconds",
            "From the microphone to the screen, medians as browsers report them.",
            buckets=_GLASS_BUCKETS_S,
            registry=registry,
        )
        self.av_skew = Histogram(
            "geneface_av_skew_seconds",
            "Pictures ahead of their sound, as browsers report it; negative: behind.",
            buckets=_SKEW_BUCKETS_S,
            registry=registry,
        )
        self.round_trip = Gauge(
            "geneface_round_trip_seconds", "To the peer and back.", ["session"], registry=registry
        )

    def gpu_drew(self, frames: int, kernel_ms: float) -> None:
        """Observes a launch: its batch size and the time of its kernels."""
        self.gpu_batch.observe(frames)
        self.gpu_kernel.observe(kernel_ms / 1000)

    def forget(self, session: str) -> None:
        """Removes one session's gauges."""
        for gauge in (self.render_size_px, self.drawn_ratio, self.microphone_depth, self.round_trip):
            try:
                gauge.remove(session)
            except KeyError:
                continue

    def text(self) -> bytes:
        """Returns everything in Prometheus' text format."""
        return generate_latest(self.registry)
