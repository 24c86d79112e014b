"""The plots of docs/performance.md."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

_OURS, _RIVAL = "#2f6f9f", "#b8b8b8"


def draw(found: dict[str, dict[str, Any]], directory: Path) -> None:
    """Draws every plot as `performance-NAME.svg`; `found` has the output of each benchmark."""
    directory.mkdir(parents=True, exist_ok=True)
    # The same figures give the same bytes.
    with mpl.rc_context({"svg.hashsalt": "performance", "font.size": 9}):
        for name, figure in (
            ("layer", _bars(found["layer"])),
            ("training", _bars(found["training"])),
            ("latency", _latency(found["latency"])),
            ("scaling", _scaling(found["scaling"])),
        ):
            figure.tight_layout()
            figure.savefig(directory / f"performance-{name}.svg", metadata={"Date": None})


def _bars(part: dict[str, Any]) -> Figure:
    """One panel per case, one bar per contender: the median, with a whisker to the p90."""
    cases = list(dict.fromkeys(timing["case"] for timing in part["timings"]))
    rows = [[t for t in part["timings"] if t["case"] == case] for case in cases]
    figure = Figure(figsize=(7.5, 0.9 + 0.32 * sum(map(len, rows)) + 0.6 * len(cases)))
    panels = figure.subplots(len(cases), squeeze=False, height_ratios=[len(r) for r in rows])
    for panel, case, timings in zip(panels[:, 0], cases, rows, strict=True):
        places = range(len(timings))
        medians = [timing["median"] * 1e3 for timing in timings]
        tails = [(t["p90"] - t["median"]) * 1e3 for t in timings]
        colors = [_OURS if t["contender"] == "syncbn" else _RIVAL for t in timings]
        panel.barh(places, medians, color=colors, xerr=[[0] * len(tails), tails], ecolor="#707070")
        panel.set_yticks(places, [f"{t['contender']} ({t['backend']})" for t in timings])
        panel.invert_yaxis()
        for place, timing in zip(places, timings, strict=True):
            panel.text(timing["p90"] * 1e3, place, f"  {timing['median'] * 1e3:.3g}", va="center")
        panel.margins(x=0.2)
        panel.set_title(case)
    panels[-1, 0].set_xlabel("milliseconds per step, median and p90")
    return figure


def _latency(part: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(7.5, 3.6))
    panel = figure.subplots()
    lines: dict[str, list[tuple[int, float]]] = {}
    for timing in part["timings"]:
        values = int(timing["case"].split()[3])
        label = f"{timing['contender']} ({timing['backend']})"
        lines.setdefault(label, []).append((8 * values, timing["median"] * 1e6))
    for label, points in lines.items():
        panel.plot(*zip(*points, strict=True), marker="o", label=label)
    panel.set(xscale="log", yscale="log", xlabel="bytes", ylabel="µs per all-reduce, median")
    panel.legend(fontsize=7)
    return figure


def _scaling(part: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(7.5, 3.2))
    panel = figure.subplots()
    predicted = part["details"]["predicted"]
    ranks = [row["ranks"] for row in predicted]
    for kind in ("tree", "ring"):
        panel.plot(ranks, [row["ResNet-50"][kind] * 1e3 for row in predicted], "o-", label=kind)
    panel.set(
        xscale="log",
        yscale="log",
        xlabel="ranks",
        ylabel="ms per step",
        title="Predicted cost of the statistics of ResNet-50",
    )
    panel.legend()
    return figure
