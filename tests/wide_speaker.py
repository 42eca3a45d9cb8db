"""A tiny bundle whose head is wider than a slim one, and speech that moves it: `import wide_speaker`."""

from __future__ import annotations

import dataclasses
import wave
from pathlib import Path

import bundle_factory
import numpy as np
import torch

from cuda_kernels.scene import HeadField
from export.bundle.writer import BundleParts, write_bundle
from models.condition import ConditionConfig
from models.encodings import GridConfig
from models.head import Head, HeadConfig
from models.speaker import Speaker

SIZE_PX = 64
HIDDEN = 48
POSES = 50


def wide_parts(*, hidden: int = HIDDEN) -> BundleParts:
    """Returns the parts of `bundle_factory.tiny_parts` with a head of that width, its ellipsoid opaque."""
    parts = bundle_factory.tiny_parts(image_size_px=SIZE_PX)
    scene = dataclasses.replace(parts.scene, head=wide_head(parts.scene.head, hidden))
    return dataclasses.replace(parts, scene=scene, figures={"psnr_db": 31.0})


def wide_head(tiny: HeadField, hidden: int) -> HeadField:
    """Returns a head with smooth random colours in the tiny head's cells."""
    torch.manual_seed(5)
    grid = GridConfig(levels=4, log2_rows=9, desired_resolution=32)
    config = HeadConfig(
        condition=ConditionConfig(
            window_frames=1, lookahead_frames=0, hidden=(4,) * 4, outputs=bundle_factory.CONDITION_SIZE
        ),
        position_grid=grid,
        ambient_grid=grid,
        hidden_ambient=hidden,
        hidden_sigma=hidden,
        hidden_color=hidden,
        geometry_features=hidden,
        codes=1,
        code_width=4,
        max_steps=4,
    )
    head = Head(config)
    with torch.no_grad():
        for embedder in (head.position_embedder, head.ambient_embedder):
            first = embedder.layout.offsets[1]
            embedder.embeddings[:first].uniform_(-1, 1)  # the coarsest level alone: a smooth face
            embedder.embeddings.copy_(embedder.embeddings.half().float())
        for net in (head.ambient_net, head.sigma_net, head.color_net):
            for layer in net.net:
                layer.weight *= 2
        head.sigma_net.net[-1].weight[0] = 3.0
        head.color_net.net[-1].weight *= 4
        head.density_bitfield.copy_(torch.from_numpy(tiny.density_bitfield))
    return head.field()


def write_wide_bundle(path: Path, **changes: int) -> Path:
    """Returns the bundle folder `path`."""
    write_bundle(path, wide_parts(**changes))
    return path


def write_speech(path: Path, *, seconds: float = 4.0, loudness: float = 0.1) -> Path:
    """Returns a recording of noise that grows loud and soft three times a second."""
    random = np.random.default_rng(0)
    at_s = np.arange(int(16000 * seconds)) / 16000
    pcm = loudness * random.normal(size=len(at_s)) * (1 + np.sin(6 * np.pi * at_s))
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes((32767 * pcm.clip(-1, 1)).astype("<i2").tobytes())
    return path


def loudness_motion(_speaker: Speaker):
    """Returns a stand-in for the bundle's motion: the mouth opens with the loudness of a frame's sound."""

    def motion(pcm: np.ndarray) -> np.ndarray:
        frames = pcm[: len(pcm) // 640 * 640].reshape(-1, 640)
        loudness = np.sqrt(np.mean(frames**2, axis=1)) / bundle_factory.FULL_OPEN_RMS
        return (np.minimum(1, loudness)[:, None, None] * bundle_factory.open_mouth()).astype(np.float32)

    return motion
