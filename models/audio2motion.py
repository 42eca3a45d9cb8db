"""Audio2Motion: a variational auto-encoder with a flow prior that turns audio features into landmarks.

With `Audio2MotionConfig()` it is GeneFace's network (Ye et al., ICLR 2023), key for key; with
`Audio2MotionConfig.streaming()` it is the same network made causal, small and free of the time squeeze, for a
live stream. Names of children are those of GeneFace's checkpoints.

Time: features come at 50 Hz, two to a video frame. A call takes the features of T + lookahead_frames video
frames and returns the first T of them as landmarks: frame i is emitted at step i + lookahead_frames, and
where causal depends on nothing later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cuda_kernels.errors import InputError

from .time_convolution import TimeConv1d, WeightNormConv1d, last_frames

LANDMARK_DIMENSION = 204
"""68 points by x, y, z."""


@dataclass(frozen=True, kw_only=True)
class Audio2MotionConfig:
    """Sizes of Audio2Motion; the defaults are GeneFace's.

    Attributes:
        feature_dimension: Numbers in one 50 Hz feature frame (HuBERT-large: 1024).
        stack_features: Both feature frames of a video frame enter, side by side; else only the even one does.
        feature_offset, feature_scale: A feature f enters as (f + offset) * scale.
        condition_channels: Channels of the encoded audio.
        context_layers: Residual convolutions that follow the two of the audio encoder; 0 in GeneFace.
        pitch_channels: Channels of the encoded pitch, 0 for the variant without it.
        pitch_embedding_channels: Width of the embedding of a coarse pitch.
        squeeze: Video frames to one latent step.
        latent_channels: Channels of the latent.
        hidden_channels: Width of the encoder's and decoder's WaveNet.
        encoder_layers, decoder_layers, kernel: Their depth and kernel.
        flow_hidden_channels, flow_layers, flow_kernel, flow_couplings: The prior's.
        causal: Everything that runs at inference looks only back.
        lookahead_frames: Video frames of audio, after its own, that a frame depends on.
    """

    feature_dimension: int = 1024
    stack_features: bool = False
    feature_offset: float = 0.0
    feature_scale: float = 1.0
    condition_channels: int = 64
    context_layers: int = 0
    pitch_channels: int = 0
    pitch_embedding_channels: int = 64
    squeeze: int = 4
    latent_channels: int = 16
    hidden_channels: int = 256
    encoder_layers: int = 8
    decoder_layers: int = 4
    kernel: int = 5
    flow_hidden_channels: int = 64
    flow_layers: int = 4
    flow_kernel: int = 3
    flow_couplings: int = 4
    causal: bool = False
    lookahead_frames: int = 0

    def __post_init__(self) -> None:
        """Raises InputError where sizes contradict each other."""
        if self.causal and self.squeeze != 1:
            raise InputError(
                f"Audio2MotionConfig: squeeze: expected 1 where causal is true, since a latent step takes "
                f"all of its frames, got {self.squeeze}; set squeeze=1"
            )
        if not self.causal and self.squeeze % 2:
            raise InputError(
                f"Audio2MotionConfig: squeeze: expected an even number where causal is false, got "
                f"{self.squeeze}; set causal=True or an even squeeze"
            )
        if not self.causal and self.lookahead_frames:
            raise InputError(
                f"Audio2MotionConfig: lookahead_frames: expected 0 where causal is false, got "
                f"{self.lookahead_frames}; set causal=True"
            )
        if self.latent_channels % 2:
            raise InputError(
                f"Audio2MotionConfig: latent_channels: expected an even number, got {self.latent_channels}; "
                f"the flow halves them"
            )

    @classmethod
    def streaming(
        cls, *, lookahead_frames: int = 4, condition_channels: int = 128, context_layers: int = 6
    ) -> Audio2MotionConfig:
        """Returns May's sizes: log-mel input, causal, at most `lookahead_frames` frames of audio ahead."""
        return cls(
            feature_dimension=80,
            stack_features=True,
            feature_offset=6.0,  # silence is -6 in log-mel and 0 here: what a causal layer pads with
            feature_scale=0.4,
            condition_channels=condition_channels,
            context_layers=context_layers,
            squeeze=1,
            hidden_channels=96,
            encoder_layers=4,
            decoder_layers=4,
            kernel=3,
            flow_hidden_channels=32,
            flow_layers=1,
            causal=True,
            lookahead_frames=lookahead_frames,
        )

    @property
    def total_condition_channels(self) -> int:
        """Channels of the audio and the pitch together."""
        return self.condition_channels + self.pitch_channels

    @property
    def receptive_field_frames(self) -> int:
        """Video frames of features and latents, lookahead included, that one emitted frame depends on.

        Only where causal, which alone has one that a stream could wait for; InputError else.
        """
        if not self.causal:
            raise InputError(
                "Audio2MotionConfig: receptive_field_frames: expected causal=True, got causal=False; "
                "a network that looks both ways has no streaming window"
            )
        audio = 2 * 2 + 2 * self.context_layers  # kernels of 3
        # 1: g_pre_net's kernel of 2.
        latent = 1 + self.flow_couplings * self.flow_layers * (self.flow_kernel - 1)
        decoder = self.decoder_layers * (self.kernel - 1)
        return 1 + audio + latent + decoder


class Audio2MotionOutput(NamedTuple):
    """The inputs of the loss.

    Attributes:
        reconstruction: (B, T, 204) decoded from the posterior's sample.
        mean: (B, T / squeeze, latent) of the posterior.
        log_std: (B, T / squeeze, latent) of the posterior.
        z: (B, T / squeeze, latent), the posterior's sample.
        z_prior: (B, T / squeeze, latent), that sample through the flow: standard normal where the prior fits.
        step_mask: (B, T / squeeze), 1 where a latent step counts.
    """

    reconstruction: Tensor
    mean: Tensor
    log_std: Tensor
    z: Tensor
    z_prior: Tensor
    step_mask: Tensor

    def kl(self) -> Tensor:
        """Returns the Monte Carlo estimate of KL(posterior | prior) per latent number, ().

        log N(z | mean, std) - log N(z_prior | 0, 1); the flow keeps volume, so no determinant enters.
        """
        standard = (self.z - self.mean) * torch.exp(-self.log_std)
        ratio = 0.5 * (self.z_prior**2 - standard**2) - self.log_std  # (B, steps, latent)
        mask = self.step_mask[..., None]
        return (ratio * mask).sum() / (mask.sum() * self.z.shape[-1])


def f0_to_coarse(f0_hz: Tensor) -> Tensor:
    """Returns pitch as one of 1..255 on a mel scale between 50 and 1100 Hz, int64; unvoiced (0 Hz) is 1."""

    def to_mel(hz: Tensor | float) -> Tensor:
        return 1127.0 * torch.log1p(torch.as_tensor(hz) / 700.0)

    mel, lowest, highest = to_mel(f0_hz), to_mel(50.0), to_mel(1100.0)
    scaled = torch.where(mel > 0, (mel - lowest) * 254.0 / (highest - lowest) + 1.0, mel)
    return (torch.clamp(scaled, 1.0, 255.0) + 0.5).long()


class WaveNet(nn.Module):
    """Gated convolutions under a condition; returns the sum of the layers' skips."""

    def __init__(
        self, channels: int, condition_channels: int, *, kernel: int, layers: int, causal: bool
    ) -> None:
        super().__init__()
        self.channels = channels
        self.in_layers = nn.ModuleList()
        self.res_skip_layers = nn.ModuleList()
        self.cond_layer = WeightNormConv1d(condition_channels, 2 * channels * layers, 1)
        for layer in range(layers):
            outputs = 2 * channels if layer < layers - 1 else channels  # the last layer only skips
            self.in_layers.append(WeightNormConv1d(channels, 2 * channels, kernel, causal=causal))
            self.res_skip_layers.append(WeightNormConv1d(channels, outputs, 1))

    def forward(self, x: Tensor, mask: Tensor | None, condition: Tensor) -> Tensor:
        """Returns (B, channels, T) of x (B, channels, T), mask (B, 1, T) and condition (B, C, >= T)."""
        layers = len(self.in_layers)
        conditions = self.cond_layer(condition).chunk(layers, dim=1)  # layers of (B, 2 channels, T)
        skips: list[Tensor] = []
        for convolve, mix, given in zip(self.in_layers, self.res_skip_layers, conditions, strict=True):
            gates = convolve(x)  # (B, 2 channels, T)
            gates = gates + last_frames(given, gates)
            opened = torch.tanh(gates[:, : self.channels]) * torch.sigmoid(gates[:, self.channels :])
            mixed = mix(opened)  # (B, 2 channels, T), the last (B, channels, T)
            if len(skips) < layers - 1:
                x = last_frames(x, mixed) + mixed[:, : self.channels]
                if mask is not None:
                    x = x * mask
                mixed = mixed[:, self.channels :]
            skips.append(mixed)
        total = skips[-1]  # (B, channels, T)
        for skip in skips[:-1]:
            total = total + last_frames(skip, total)
        return total if mask is None else total * mask


class Coupling(nn.Module):
    """Mean-only affine coupling: the second half of the channels is shifted by a function of the first."""

    def __init__(self, config: Audio2MotionConfig) -> None:
        super().__init__()
        half = config.latent_channels // 2
        self.kept_channels = half
        self.pre = nn.Conv1d(half, config.flow_hidden_channels, 1)
        self.enc = WaveNet(
            config.flow_hidden_channels,
            config.total_condition_channels,
            kernel=config.flow_kernel,
            layers=config.flow_layers,
            causal=config.causal,
        )
        self.post = nn.Conv1d(config.flow_hidden_channels, half, 1)
        nn.init.zeros_(self.post.weight)  # the flow begins as the identity
        nn.init.zeros_(self.post.bias)  # type: ignore[arg-type]

    def forward(self, z: Tensor, mask: Tensor | None, condition: Tensor, *, reverse: bool) -> Tensor:
        """Returns (B, latent, steps)."""
        kept, moved = z[:, : self.kept_channels], z[:, self.kept_channels :]
        hidden = self.pre(kept)
        if mask is not None:
            hidden = hidden * mask
        shift = self.post(self.enc(hidden, mask, condition))  # (B, latent / 2, steps)
        if mask is not None:
            shift = shift * mask
        moved = last_frames(moved, shift)
        moved = moved - shift if reverse else moved + shift
        if mask is not None:
            moved = moved * mask
        return torch.cat([last_frames(kept, moved), moved], dim=1)


class PriorFlow(nn.Module):
    """Couplings with the channels flipped between them: posterior to standard normal, or back."""

    def __init__(self, config: Audio2MotionConfig) -> None:
        super().__init__()
        # Every second entry is a flip and has no parameters: the keys count it.
        self.flows = nn.ModuleList(
            module for _ in range(config.flow_couplings) for module in (Coupling(config), nn.Identity())
        )

    def forward(self, z: Tensor, mask: Tensor | None, condition: Tensor, *, reverse: bool) -> Tensor:
        """Returns (B, latent, steps) of z (B, latent, steps), mask (B, 1, steps), condition (B, C, steps)."""
        for module in reversed(self.flows) if reverse else self.flows:
            z = module(z, mask, condition, reverse=reverse) if isinstance(module, Coupling) else z.flip(1)
        return z


class PosteriorEncoder(nn.Module):
    """Motion to the mean and log-std of its latent; runs in training only, so it looks both ways."""

    def __init__(self, config: Audio2MotionConfig) -> None:
        super().__init__()
        self.squeeze = config.squeeze
        hidden = config.hidden_channels
        kernel = 2 * config.squeeze if config.squeeze > 1 else 3
        self.pre_net = nn.Sequential(TimeConv1d(LANDMARK_DIMENSION, hidden, kernel, stride=config.squeeze))
        self.wn = WaveNet(
            hidden,
            config.total_condition_channels,
            kernel=config.kernel,
            layers=config.encoder_layers,
            causal=False,
        )
        self.out_proj = nn.Conv1d(hidden, 2 * config.latent_channels, 1)

    def forward(self, motion: Tensor, mask: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and log-std, each (B, latent, steps), of motion (B, 204, T); mask is (B, 1, steps)."""
        x = self.pre_net(motion) * mask  # (B, hidden, steps)
        x = self.wn(x, mask, condition)  # (B, hidden, steps)
        mean, log_std = self.out_proj(x).chunk(2, dim=1)
        return mean, log_std


class MotionDecoder(nn.Module):
    """Latent steps to landmarks under the audio."""

    def __init__(self, config: Audio2MotionConfig) -> None:
        super().__init__()
        hidden = config.hidden_channels
        self.pre_net = nn.Sequential(
            nn.ConvTranspose1d(config.latent_channels, hidden, config.squeeze, config.squeeze)
        )
        self.wn = WaveNet(
            hidden,
            config.total_condition_channels,
            kernel=config.kernel,
            layers=config.decoder_layers,
            causal=config.causal,
        )
        self.out_proj = nn.Conv1d(hidden, LANDMARK_DIMENSION, 1)

    def forward(self, z: Tensor, mask: Tensor | None, condition: Tensor) -> Tensor:
        """Returns motion (B, 204, T) of z (B, latent, steps), mask (B, 1, T) and condition (B, C, T)."""
        x = self.pre_net(z)  # (B, hidden, T)
        if mask is not None:
            x = x * mask
        return self.out_proj(self.wn(x, mask, condition))  # type: ignore[no-any-return]


class FlowVae(nn.Module):
    """The variational auto-encoder, without the audio encoder."""

    def __init__(self, config: Audio2MotionConfig) -> None:
        super().__init__()
        channels = config.total_condition_channels
        self.g_pre_net = nn.Sequential(
            TimeConv1d(channels, channels, 2 * config.squeeze, stride=config.squeeze, causal=config.causal)
        )
        self.encoder = PosteriorEncoder(config)
        self.prior_flow = PriorFlow(config)
        self.decoder = MotionDecoder(config)


class ResidualConv(nn.Module):
    """Residual block: convolution, batch norm, GELU."""

    def __init__(self, channels: int, *, causal: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            TimeConv1d(channels, channels, 3, causal=causal, bias=False), nn.BatchNorm1d(channels), nn.GELU()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, channels, T)."""
        y: Tensor = self.layers(x)
        return last_frames(x, y) + y


def _encoder(inputs: int, hidden: int, outputs: int, *, causal: bool) -> nn.Sequential:
    return nn.Sequential(
        TimeConv1d(inputs, hidden, 3, causal=causal, bias=False),
        nn.BatchNorm1d(hidden),
        nn.GELU(),
        TimeConv1d(hidden, outputs, 3, causal=causal, bias=False),
    )


class Audio2Motion(nn.Module):
    """Audio features to landmarks; for time see the module's docstring."""

    def __init__(self, config: Audio2MotionConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or Audio2MotionConfig()
        inputs = config.feature_dimension * (2 if config.stack_features else 1)
        channels = config.condition_channels
        self.mel_encoder = _encoder(inputs, channels, channels, causal=config.causal)
        self.mel_encoder.extend(
            ResidualConv(channels, causal=config.causal) for _ in range(config.context_layers)
        )
        if config.pitch_channels:
            embedding = config.pitch_embedding_channels
            self.pitch_embed = nn.Embedding(300, embedding)
            self.pitch_encoder = _encoder(embedding, embedding, config.pitch_channels, causal=config.causal)
        self.vae = FlowVae(config)

    def condition(self, features: Tensor, f0_hz: Tensor | None = None) -> Tensor:
        """Returns the audio's encoding (B, C, T) of the features of T + lookahead_frames video frames.

        Args:
            features: (B, 2 (T + lookahead_frames), feature_dimension) at 50 Hz.
            f0_hz: (B, 2 (T + lookahead_frames)) for the pitch variant.
        """
        config = self.config
        if features.ndim != 3 or features.shape[2] != config.feature_dimension or features.shape[1] % 2:
            raise InputError(
                f"Audio2Motion: features: expected (batch, two a video frame, {config.feature_dimension}), "
                f"got {tuple(features.shape)}; check the front end, and pad to whole video frames"
            )
        frames = features.shape[1] // 2 - config.lookahead_frames
        if frames <= 0 or frames % config.squeeze:
            raise InputError(
                f"Audio2Motion: features: expected a positive multiple of {config.squeeze} video frames and "
                f"{config.lookahead_frames} of lookahead after them, got "
                f"{features.shape[1] // 2}; pad the audio"
            )
        if config.stack_features:
            x = features.reshape(features.shape[0], -1, 2 * config.feature_dimension)  # (B, T + L, 2 F)
        else:
            x = features[:, ::2]  # (B, T + L, F)
        if (config.feature_offset, config.feature_scale) != (0.0, 1.0):
            x = (x + config.feature_offset) * config.feature_scale
        g: Tensor = self.mel_encoder(x.transpose(1, 2))  # (B, condition_channels, T + L)
        if config.pitch_channels:
            if f0_hz is None:
                raise InputError(
                    "Audio2Motion: f0_hz: expected (batch, features' length), got none; "
                    "this variant hears pitch"
                )
            pitch = self.pitch_embed(f0_to_coarse(f0_hz[:, ::2]))  # (B, T + L, embedding)
            g = torch.cat([g, last_frames(self.pitch_encoder(pitch.transpose(1, 2)), g)], dim=1)
        # Frame i is emitted at step i + L; a causal layer may consume context, never the newest frames.
        return g if not config.lookahead_frames else g[..., -min(frames, g.shape[-1]) :]

    def forward(
        self,
        features: Tensor,
        motion: Tensor,
        *,
        mask: Tensor | None = None,
        f0_hz: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Audio2MotionOutput:
        """Returns the reconstruction of `motion` through its posterior, and what the KL term needs.

        Args:
            features: (B, 2 (T + lookahead_frames), feature_dimension).
            motion: (B, T, 204), the ground truth.
            mask: (B, T), 1 where a frame counts; all do if absent. A latent step follows its first frame.
            f0_hz: (B, 2 (T + lookahead_frames)), for the pitch variant.
            noise: (B, latent, T / squeeze) standard normal; drawn if absent.
        """
        return self.reconstruct(self.condition(features, f0_hz), motion, mask=mask, noise=noise)

    def reconstruct(
        self, g: Tensor, motion: Tensor, *, mask: Tensor | None = None, noise: Tensor | None = None
    ) -> Audio2MotionOutput:
        """Returns what `forward` does, under the audio's encoding `g` (B, C, T)."""
        squeeze = self.config.squeeze
        if mask is None:
            mask = motion.new_ones(motion.shape[:2])
        frame_mask = mask[:, None]  # (B, 1, T)
        step_mask = frame_mask[..., ::squeeze]  # (B, 1, T / squeeze)
        steps = self.vae.g_pre_net(g)  # (B, C, T / squeeze)
        mean, log_std = self.vae.encoder(motion.transpose(1, 2), step_mask, steps)
        if noise is None:
            noise = torch.randn_like(mean)
        z = mean + noise * torch.exp(log_std)  # (B, latent, T / squeeze)
        z_prior = self.vae.prior_flow(z, step_mask, steps, reverse=False)
        x = self.vae.decoder(z, frame_mask, g) * frame_mask  # (B, 204, T)
        return Audio2MotionOutput(
            reconstruction=x.transpose(1, 2),
            mean=mean.transpose(1, 2),
            log_std=log_std.transpose(1, 2),
            z=z.transpose(1, 2),
            z_prior=z_prior.transpose(1, 2),
            step_mask=step_mask[:, 0],
        )

    def predict(
        self,
        features: Tensor,
        *,
        f0_hz: Tensor | None = None,
        mask: Tensor | None = None,
        z_prior: Tensor | None = None,
    ) -> Tensor:
        """Returns landmarks (B, T, 204) for the audio.

        Args:
            features: (B, 2 (T + lookahead_frames), feature_dimension).
            f0_hz: (B, 2 (T + lookahead_frames)), for the pitch variant.
            mask: (B, T), multiplies the landmarks.
            z_prior: (B, latent, T / squeeze), the prior's noise already times its temperature,
                `models.latent_noise` for a stream. Absent it is zero: the prior's mode, the same motion for
                the same audio.
        """
        x = self.decode_prior(self.condition(features, f0_hz), z_prior)  # (B, T, 204)
        return x if mask is None else x * mask[..., None]

    def decode_prior(self, g: Tensor, z_prior: Tensor | None = None) -> Tensor:
        """Returns landmarks (B, T, 204) under the audio's encoding `g` (B, C, T); see `predict`."""
        steps = self.vae.g_pre_net(g)  # (B, C, T / squeeze)
        if z_prior is None:
            z_prior = steps.new_zeros(steps.shape[0], self.config.latent_channels, steps.shape[-1])
        z = self.vae.prior_flow(z_prior, None, steps, reverse=True)  # (B, latent, T / squeeze)
        x: Tensor = self.vae.decoder(z, None, g).transpose(1, 2)  # (B, T, 204)
        return x
