"""The curves of the report, of one run or of two in the same figure."""

from collections.abc import Sequence

import numpy as np

from launcher.report.drawing import SERIES, Figure, number, sheet
from launcher.report.run import Run

# The names of two runs in the figures.
LETTERS = ("A", "B")


def shared_figures(runs: Sequence[Run]) -> list[Figure]:
    """Every figure for which there is data."""
    drawn = [draw(runs) for draw in (_loss, _accuracy, _throughput)]
    return [figure for figure in drawn if figure is not None]


def _loss(runs: Sequence[Run]) -> Figure | None:
    caption = "Every training step (faint), the running mean, and held-out data after each epoch."
    return _curves(runs, "Loss", caption, "loss", "validation_loss", logarithmic=True)


def _accuracy(runs: Sequence[Run]) -> Figure | None:
    caption = "Fraction of samples classified correctly: training steps and held-out data."
    return _curves(runs, "Accuracy", caption, "accuracy", "validation_accuracy", logarithmic=False)


def _curves(
    runs: Sequence[Run], title: str, caption: str, field: str, held_out: str, logarithmic: bool
) -> Figure | None:
    if not any(run.of("step") for run in runs):
        return None
    with sheet(f"{title}{[run.name for run in runs]}") as drawing:
        axes = drawing.axes
        for index, run in enumerate(runs):
            name = f", {LETTERS[index]}" if len(runs) > 1 else ""
            color, other = SERIES[2 * index], SERIES[2 * index + 1]
            steps = np.array([step["step"] for step in run.of("step")])
            values = np.array([number(step[field]) for step in run.of("step")])
            axes.plot(steps, values, color=color, alpha=0.22, linewidth=0.9)
            axes.plot(steps, _smooth(values), color=color, label=f"training{name}")
            epochs = [epoch for epoch in run.of("epoch") if epoch.get(held_out) is not None]
            axes.plot(
                [epoch["step"] for epoch in epochs],
                [epoch[held_out] for epoch in epochs],
                color=other,
                marker="o",
                markersize=3.5,
                label=f"held out{name}",
            )
        if logarithmic:
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            axes.set_ylim(top=1.01)
        axes.set_xlabel("step")
        drawing.legend(2)
    return Figure(title, caption, drawing.svg)


def _throughput(runs: Sequence[Run]) -> Figure | None:
    if not any(run.windows for run in runs):
        return None
    with sheet(f"throughput{[run.name for run in runs]}") as drawing:
        axes = drawing.axes
        for index, run in enumerate(runs):
            steps = [window["step"] for window in run.windows]
            rates = [
                sum(window["ranks"]["rows"]) / max(window["ranks"]["seconds"])
                for window in run.windows
            ]
            axes.plot(
                steps,
                rates,
                color=SERIES[2 * index],
                marker="o",
                markersize=3,
                label=LETTERS[index],
            )
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        drawing.legend(2)
    return Figure("Throughput", "Examples per second over all ranks during training.", drawing.svg)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a twentieth of the curve."""
    width = max(1, len(values) // 20)
    padded = np.concatenate([np.full(width - 1, values[0] if len(values) else 0.0), values])
    return np.convolve(padded, np.full(width, 1.0 / width), mode="valid")
