"""The figures of one run: parts of a step, time by rank, latencies, drift, progress over time."""

from typing import Any

import numpy as np

from launcher.metrics.definitions import ALL_REDUCE_BUCKETS
from launcher.report.drawing import FAINT, INK, PAPER, SERIES, Figure, number, sheet
from launcher.report.run import Run
from launcher.report.units import seconds_text

PART_NAMES = {
    "compute": "compute",
    "input_wait": "input wait",
    "sync_batch_norm_all_reduce": "SyncBN all-reduce",
    "gradient_all_reduce": "gradient all-reduce",
    "other_all_reduce": "other all-reduce",
}
KIND_NAMES = {"sync_batch_norm": "SyncBN", "gradients": "gradients", "other": "other"}
_MOST_LINES = 6


def own_figures(run: Run) -> list[Figure]:
    """Every figure for which there is data."""
    drawn = [draw(run) for draw in (_parts, _ranks, _latencies, _drift, _time_line)]
    return [figure for figure in drawn if figure is not None]


def _parts(run: Run) -> Figure | None:
    if not run.windows:
        return None
    with sheet(f"parts{run.name}") as drawing:
        axes = drawing.axes
        edges, milliseconds = _window_edges(run), {}
        for part, name in PART_NAMES.items():
            values = run.parts[part].mean(axis=1) * 1e3
            if values.any():
                milliseconds[name] = np.append(values, values[-1])
        axes.stackplot(
            edges,
            *milliseconds.values(),
            labels=milliseconds,
            colors=SERIES,
            step="post",
            edgecolor=PAPER,
            linewidth=0.6,
        )
        axes.set_ylabel("ms per step")
        axes.set_xlabel("step")
        axes.set_xlim(edges[0], edges[-1])
        drawing.legend(3)
    caption = "Mean over ranks. All-reduces include the wait for slower ranks; compute is the rest."
    return Figure("Step time by part", caption, drawing.svg)


def _ranks(run: Run) -> Figure | None:
    if run.world_size < 2 or not run.windows:
        return None
    own = (run.parts["compute"] + run.parts["input_wait"]) * 1e3
    edges = _window_edges(run)
    caption = "Compute and input of each rank, without the waits for others."
    with sheet(f"ranks{run.name}") as drawing:
        axes = drawing.axes
        axes.set_xlabel("step")
        if run.world_size <= _MOST_LINES:
            for rank in range(run.world_size):
                values = np.append(own[:, rank], own[-1, rank])
                axes.step(edges, values, where="post", color=SERIES[rank], label=f"rank {rank}")
            axes.set_ylim(bottom=0)
            axes.set_ylabel("ms per step")
            drawing.legend(_MOST_LINES)
        else:
            median = np.median(own, axis=1, keepdims=True)
            _heat_map(axes, edges, np.arange(run.world_size + 1) - 0.5, (own / median).T - 1, 0.5)
            axes.set_ylabel("rank")
            caption = f"{caption} Blank is the median, full colour 50% above it."
    return Figure("Step time by rank", caption, drawing.svg)


def _latencies(run: Run) -> Figure | None:
    if not run.kinds:
        return None
    with sheet(f"latencies{run.name}") as drawing:
        axes = drawing.axes
        bounds = np.array(
            [ALL_REDUCE_BUCKETS[0] / 2, *ALL_REDUCE_BUCKETS, ALL_REDUCE_BUCKETS[-1] * 2]
        )
        for index, kind in enumerate(run.kinds):
            counts = run.all_reduces(kind)
            axes.stairs(
                counts / counts.sum(),
                bounds,
                color=SERIES[(2, 3, 4)[index]],
                label=KIND_NAMES[kind],
                linewidth=1.8,
            )
        used = np.flatnonzero(sum(run.all_reduces(kind) for kind in run.kinds))
        axes.set_xscale("log")
        axes.set_xlim(bounds[used[0]], bounds[used[-1] + 1])
        axes.xaxis.set_major_formatter(lambda value, _: seconds_text(value))
        axes.xaxis.set_minor_formatter(lambda *_: "")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        drawing.legend()
    caption = "Duration of all-reduces by kind; two peaks indicate ranks that wait for each other."
    return Figure("All-reduce latency", caption, drawing.svg)


def _drift(run: Run) -> Figure | None:
    epochs = [line for line in run.of("layers") if line["drift"]]
    if not epochs:
        return None
    layers = list(epochs[-1]["drift"])
    values = np.array(
        [[number(line["drift"].get(layer, [None])[0]) for line in epochs] for layer in layers]
    )
    with sheet(f"drift{run.name}", max(1.0, 0.22 + 0.045 * len(layers))) as drawing:
        axes = drawing.axes
        axes.set_xlabel("epoch")
        numbers = np.array([line["epoch"] + 1 for line in epochs])
        if len(layers) <= _MOST_LINES:
            for index, layer in enumerate(layers):
                axes.plot(
                    numbers,
                    values[index],
                    color=SERIES[index],
                    marker="o",
                    markersize=3,
                    label=layer,
                )
            axes.set_yscale("log")
            axes.set_ylabel("standard deviations")
            axes.xaxis.get_major_locator().set_params(integer=True)
            drawing.legend()
        else:
            edges = np.append(numbers, numbers[-1] + 1) - 0.5
            _heat_map(
                axes, edges, np.arange(len(layers) + 1) - 0.5, values, max(values.max(), 1e-9)
            )
            shown = range(0, len(layers), max(1, len(layers) // 12))
            axes.set_yticks(list(shown), [layers[index] for index in shown], fontsize=7.5)
            axes.invert_yaxis()
    caption = (
        "Change of each layer's moving mean per epoch; it should become small towards the end."
    )
    return Figure("Drift of the moving statistics", caption, drawing.svg)


def _time_line(run: Run) -> Figure | None:
    starts = run.of("start")
    if not starts and not run.events:
        return None
    with sheet(f"time line{run.name}", 0.8) as drawing:
        axes = drawing.axes
        steps = [line for line in run.lines if line["event"] in {"start", "step", "epoch", "end"}]
        axes.plot(
            [line["time"] - run.began for line in steps],
            [line["step"] for line in steps],
            color=SERIES[0],
            label="steps",
        )
        saves = run.of("checkpoint")
        axes.plot(
            [save["time"] - run.began for save in saves],
            [save["step"] for save in saves],
            color=SERIES[1],
            marker="o",
            markersize=3.5,
            linestyle="none",
            label="checkpoint",
        )
        for number, failure in enumerate(run.events_of("failed")):
            label = "failure" if number == 0 else None
            axes.axvline(failure["time"] - run.began, color=SERIES[3], label=label, linewidth=1.6)
        axes.set_xlim(0, max(run.ended - run.began, 1e-3))
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(lambda value, _: seconds_text(value) if value else "0")
        axes.set_ylabel("step")
        drawing.legend()
    caption = "Steps over time, with checkpoints, failures and repeated steps."
    return Figure("Time line", caption, drawing.svg)


def _heat_map(axes: Any, x: Any, y: Any, values: np.ndarray, most: float) -> None:
    """Cells of one colour, whose opacity grows with the value from 0 to `most`."""
    axes.grid(visible=False)
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            strength = float(np.clip(values[row, column] / most, 0, 1))
            if np.isfinite(strength) and strength > 0.01:
                axes.fill_between(
                    x[column : column + 2],
                    y[row],
                    y[row + 1],
                    color=SERIES[3],
                    alpha=strength,
                    lw=0,
                )
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(y[0], y[-1])
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(True)
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK)


def _window_edges(run: Run) -> np.ndarray:
    """The first step of each window, and the last step of the last window."""
    first = run.windows[0]["step"] - run.windows[0]["steps"]
    return np.array([first, *(window["step"] for window in run.windows)])
