"""Plots of validations, drawn into arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from models.time_base import FRAME_RATE_HZ


def draw_curves(
    panels: Mapping[str, Mapping[str, npt.ArrayLike]],
    *,
    x: npt.ArrayLike | None = None,
    x_label: str = "s",
    marks: Sequence[float] = (),
) -> npt.NDArray[np.uint8]:
    """Returns a plot (H, W, 3) of named curves in stacked panels over a common axis.

    Args:
        panels: Title of each panel to its curves by name.
        x: Place of each value on the axis; a value a video frame, in seconds, if absent.
        x_label: What the axis shows.
        marks: Places of vertical lines through all panels.
    """
    figure = Figure(figsize=(11, 2.4 * len(panels) + 0.6), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, values in curves.items():
            series = np.asarray(values)
            places = np.arange(len(series)) / FRAME_RATE_HZ if x is None else np.asarray(x)
            axis.plot(places, series, label=name, lw=1.2)
        for mark in marks:
            axis.axvline(mark, color="black", lw=0.8, ls="--")
        axis.set_title(title, fontsize=9, loc="left")
        axis.legend(fontsize=8, loc="upper right")
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel(x_label)
    return _pixels(canvas)


def draw_matrix(values: npt.ArrayLike, *, title: str, x_label: str, y_label: str) -> npt.NDArray[np.uint8]:
    """Returns a heat map (H, W, 3) of a matrix (rows, columns)."""
    figure = Figure(figsize=(8, 4), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    image = axis.imshow(np.asarray(values), aspect="auto", origin="lower")
    axis.set(title=title, xlabel=x_label, ylabel=y_label)
    figure.colorbar(image)
    return _pixels(canvas)


def _pixels(canvas: FigureCanvasAgg) -> npt.NDArray[np.uint8]:
    canvas.draw()  # type: ignore[no-untyped-call]
    rgba = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return np.ascontiguousarray(rgba[..., :3])
