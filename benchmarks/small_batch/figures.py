"""The figures of the page, as SVG files in a colour-blind friendly palette."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.small_batch.estimates import Quantity, Table, accuracy, gap
from benchmarks.small_batch.plan import NORMS, SHARDINGS, Plan
from benchmarks.small_batch.store import Study

# The palette of Okabe and Ito (2008); markers and dashes distinguish lines without colour.
_STYLES: dict[str, dict[str, Any]] = {
    "sync": {"color": "#0072B2", "marker": "o", "linestyle": "-", "label": "SyncBN"},
    "local": {"color": "#D55E00", "marker": "s", "linestyle": "--", "label": "local BN"},
    "none": {"color": "#6E6E6E", "marker": "^", "linestyle": ":", "label": "no norm"},
}
_IMPLEMENTATIONS = {
    "syncbn": {**_STYLES["sync"], "label": "syncbn"},
    "horovod": {**_STYLES["local"], "label": "Horovod's formula"},
    "keras": {"color": "#009E73", "marker": "^", "linestyle": ":", "label": "Keras' formula"},
}
_TITLES = {"shuffled": "shuffled", "by-class": "sorted by class"}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "figure.constrained_layout.use": True,
}


def draw(study: Study, directory: Path) -> list[Path]:
    """Draws all figures; returns their files."""
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / f"study-{name}.svg" for name in ("accuracy", "gap", "numerics")]
    table = Table(study.results)
    _against_batch(study.plan, table, accuracy, "test accuracy, %", files[0])
    _against_batch(study.plan, table, gap, "train − test accuracy, points", files[1])
    _numerics(study, files[2])
    return files


def _against_batch(plan: Plan, table: Table, quantity: Quantity, name: str, file: Path) -> None:
    """One row of axes per sharding, one column per world size."""
    with _saved(file, width=7.6, height=5.0) as figure:
        axes = figure.subplots(
            len(SHARDINGS), len(plan.worlds), sharex=True, sharey="row", squeeze=False
        )
        for row, sharding in zip(axes, SHARDINGS, strict=True):
            for axis, world in zip(row, plan.worlds, strict=True):
                for norm in NORMS:
                    points = [
                        table.estimate(quantity, sharding, world, batch, norm)
                        for batch in plan.batches
                    ]
                    # Shifted, so that error bars do not overlap.
                    shift = 1.0 + 0.06 * (NORMS.index(norm) - 1)
                    axis.errorbar(
                        np.array(plan.batches) * shift,
                        [point.mean for point in points],
                        yerr=[point.half if np.isfinite(point.half) else 0.0 for point in points],
                        capsize=2.5,
                        elinewidth=1.0,
                        **_STYLES[norm],
                    )
                axis.set_xscale("log", base=2)
                axis.set_xticks(plan.batches, [str(batch) for batch in plan.batches])
                axis.set_title(f"{world} ranks, {_TITLES[sharding]}", fontsize=8.5)
            row[0].set_ylabel(name)
        for axis in axes[-1]:
            axis.set_xlabel("images per rank and step")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(NORMS))


def _numerics(study: Study, file: Path) -> None:
    with _saved(file, width=5.6, height=3.6) as figure:
        axis = figure.add_subplot()
        for name, style in _IMPLEMENTATIONS.items():
            points = [point for point in study.numerics if point.implementation == name]
            if points:
                errors = [max(point.largest, 1e-9) for point in points]
                axis.plot([point.ratio for point in points], errors, **style)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.axhline(1.0, color="#333333", linewidth=0.8)
        axis.annotate("no correct digit", (1.0, 1.6), fontsize=8.5, color="#333333")
        axis.set_xlabel("mean / standard deviation of the data")
        axis.set_ylabel("relative error of the variance")
        axis.legend(loc="upper left", bbox_to_anchor=(0.0, 0.9))


@contextmanager
def _saved(file: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure that is saved when the context ends, with the same bytes for the same data."""
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": file.stem}):
        figure = Figure(figsize=(width, height))
        yield figure
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
