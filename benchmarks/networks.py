"""A large network's latency by device: `python -m benchmarks.networks --devices cpu cuda`.

The network is HuBERT with random weights of hubert-large's sizes, or any ONNX file of sound to features
(`pcm` (1, samples) to `features` (1, steps, dimension)). Times are those of whole calls, from numpy array to
numpy array. Differences are from the first device's answers, as a share of their root mean square.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np

from cuda_kernels.arrays import F32
from models.speaker_settings import feature_count
from models.time_base import SAMPLE_RATE_HZ
from streaming.pipeline.engine_choice import DeviceName, EngineName, EngineSettings, open_engine
from streaming.pipeline.onnx_engine import Engine, EngineError, NetworkSpec

WARM_UP_RUNS = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One device's figures; times in ms."""

    asked: str
    device: str
    opened_s: float
    p50_ms: float
    p99_ms: float
    new_length_ms: float  # the first call of a length that it has not seen
    difference: float


def write_hubert(path: Path) -> int:
    """Writes HuBERT-large with random weights as `export features` would; returns its dimension."""
    import torch

    from export.geneface.hubert import export_features
    from models.hubert import Hubert

    torch.manual_seed(0)
    hubert = Hubert().requires_grad_(False)
    export_features(hubert, path=path, float32_weights=True)
    return hubert.config.dimension


def spec_of(model: Path, samples: int, dimension: int) -> NetworkSpec:
    """Returns the spec of the network for windows of `samples`."""
    return NetworkSpec(
        model=model,
        inputs={"pcm": (1, samples)},
        output="features",
        output_shape=(1, feature_count(samples), dimension),
    )


def measure(
    asked: str, spec: NetworkSpec, settings: EngineSettings, sound: F32, runs: int
) -> tuple[Row, F32]:
    """Returns a device's figures (`difference` 0) and its answer to `sound` (1, samples)."""

    def say(line: str) -> None:
        print(f"{asked}: {line}", file=sys.stderr)

    start_s = time.perf_counter()
    engine = open_engine(spec, settings, say=say)
    opened_s = time.perf_counter() - start_s
    for _ in range(WARM_UP_RUNS):
        answer = engine.run({"pcm": sound})
    took_ms = [_timed_ms(engine, sound) for _ in range(runs)]
    row = Row(
        asked=asked,
        device=engine.device,
        opened_s=opened_s,
        p50_ms=float(np.median(took_ms)),
        p99_ms=float(np.percentile(took_ms, 99)),
        new_length_ms=_timed_ms(engine, sound[:, : sound.shape[1] * 3 // 4]),
        difference=0.0,
    )
    return row, answer


def _timed_ms(engine: Engine, sound: F32) -> float:
    start_s = time.perf_counter()
    engine.run({"pcm": sound})
    return (time.perf_counter() - start_s) * 1000


def table(rows: Sequence[Row], head: str) -> str:
    """Returns the rows as a table for people."""
    width = max(len(row.device) for row in rows)
    lines = [
        head,
        f"  {'asked':12}  {'ran on'.ljust(width)}  opened s  p50 ms  p99 ms  new length ms  difference",
    ]
    lines += [
        f"  {row.asked:12}  {row.device.ljust(width)}  {row.opened_s:8.1f}  {row.p50_ms:6.1f}"
        f"  {row.p99_ms:6.1f}  {row.new_length_ms:13.1f}  {row.difference:10.1e}"
        for row in rows
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes JSON where asked, prints the table last."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("--features", type=Path, help="an ONNX file (default: HuBERT-large, random weights)")
    parser.add_argument("--dimension", type=int, default=1024, help="of its features (default: 1024)")
    parser.add_argument("--window-s", type=float, default=2.56, help="sound in a call (default: 2.56)")
    parser.add_argument(
        "--devices",
        nargs="+",
        default=["cpu", "auto"],
        choices=("cpu", "cuda", "auto"),
        help="(default: cpu auto)",
    )
    parser.add_argument(
        "--engine", choices=("auto", "onnx", "tensorrt"), default="auto", help="(default: auto)"
    )
    parser.add_argument("--runs", type=int, default=200, help="calls measured (default: 200)")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args(arguments)
    samples = round(given.window_s * SAMPLE_RATE_HZ)
    sound = np.random.default_rng(0).normal(0, 1, (1, samples)).astype(np.float32)
    rows: list[Row] = []
    expected: F32 | None = None
    with tempfile.TemporaryDirectory() as folder:
        model, dimension = given.features, given.dimension
        if model is None:
            model = Path(folder) / "features.onnx"
            dimension = write_hubert(model)
        spec = spec_of(model, samples, dimension)
        for name in given.devices:
            engine = cast(EngineName, "auto" if name == "cpu" else given.engine)
            settings = EngineSettings(engine=engine, device=cast(DeviceName, name))
            try:
                row, answer = measure(name, spec, settings, sound, given.runs)
            except EngineError as error:
                parser.error(str(error))
            expected = answer if expected is None else expected
            error_rms = float(np.sqrt(np.mean((answer - expected) ** 2) / np.mean(expected**2)))
            rows.append(Row(**asdict(row) | {"difference": error_rms}))
        size_mb = model.stat().st_size / 1e6
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    print(table(rows, f"{model.name}, {size_mb:.0f} MB, windows of {given.window_s} s, {given.runs} calls"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
