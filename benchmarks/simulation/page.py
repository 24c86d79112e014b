"""Writes docs/simulation.md and its figure."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks import scaling
from benchmarks.harness.results import with_unit

DOCUMENTS = Path(__file__).resolve().parents[2] / "docs"
_MARKS = {"recursive doubling": "o", "Rabenseifner": "s", "ring": "^"}
_COLORS = {"flat": "#2f6f9f", "fat tree": "#c1652f"}


def tables(found: dict[str, Any]) -> list[str]:
    """A line of Markdown per number of ranks: predicted, and simulated by network."""
    columns = list(dict.fromkeys((r["network"], r["algorithm"]) for r in found["simulated"]))
    heads = ["ranks", "predicted, recursive doubling", "predicted, ring"]
    heads += [f"{network}, {algorithm}" for network, algorithm in columns]
    seconds = {
        (r["network"], r["algorithm"], r["ranks"]): r["ResNet-50"] for r in found["simulated"]
    }
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
    for row in found["predicted"]:
        cells = [f"{row['ranks']:,}", with_unit(row["recursive doubling"]), with_unit(row["ring"])]
        for column in columns:
            taken = seconds.get((*column, row["ranks"]))
            cells.append("" if taken is None else with_unit(taken))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def write(found: dict[str, Any]) -> None:
    """Writes the page and the figure."""
    by_key = {(r["network"], r["algorithm"], r["ranks"]): r for r in found["simulated"]}
    largest = found["predicted"][-1]
    ranks = largest["ranks"]
    flat, tree = (by_key[network, "recursive doubling", ranks] for network in _COLORS)
    halving = by_key["fat tree", "Rabenseifner", ranks]
    lengths = tree["all-reduces"]
    widest = max(lengths, key=int)
    best = _of_step({n: min(tree["all-reduces"][n], halving["all-reduces"][n]) for n in lengths})
    ratio = flat["ResNet-50"] / largest["recursive doubling"]
    text = f"""# Simulated clusters

<!-- Written by `python -m benchmarks.simulation`, which overwrites changes. -->

The cost model of [performance](performance.md#scaling) is a formula, and this machine has two
cores. SimGrid's SMPI runs real MPI programs on a simulated network with contention, so it can check
the formula on large clusters: here the 106 all-reduces of float64 sums in one step of ResNet-50
(53 normalizations, forward and backward), one rank per host, links of 100 Gbit/s. In the flat
network every host has its own link to one switch, 2 µs from any host to any other; the fat tree has
levels of 8 hosts or switches, with half as many links up as down, and 0.5 µs per link.

{chr(10).join(tables(found))}

![Time of the sums of a ResNet-50 step by number of ranks](figures/simulation.svg)

On {ranks:,} ranks of the flat network recursive doubling takes {with_unit(flat["ResNet-50"])}, the
formula's {with_unit(largest["recursive doubling"])} × {ratio:.2f}: without contention the formula
holds. In the fat tree long messages share the links between switches, which the formula does not
know: {with_unit(tree["ResNet-50"])} with recursive doubling. Rabenseifner's algorithm, which sends
a part of the vector to each rank, takes {with_unit(halving["ResNet-50"])}: it is slower for the
short vectors of most layers, but takes {with_unit(halving["all-reduces"][widest])} instead of
{with_unit(tree["all-reduces"][widest])} for the {int(widest):,} values of the widest. With the
better one for each length, as MPI libraries choose by length, a step takes {with_unit(best)}. So
leave the choice to the library, or synchronize within groups (`group_size`) if even this matters.
A ring takes 2(P − 1) messages in a row and is no choice for sums of this size; it
is simulated up to 64 ranks, because the number of its messages grows with the square of the ranks.

What the simulation leaves out: other traffic, the time to add, ranks that arrive at different
times, and more than one rank per host.

```console
python -m benchmarks.simulation
```
"""
    (DOCUMENTS / "simulation.md").write_text(text)
    with mpl.rc_context({"svg.hashsalt": "simulation", "font.size": 9}):
        figure = _figure(found)
        figure.tight_layout()
        figure.savefig(DOCUMENTS / "figures" / "simulation.svg", metadata={"Date": None})


def _of_step(seconds: dict[str, float]) -> float:
    """Seconds of the sums of a ResNet-50 step, from those of an all-reduce of each length."""
    return sum(seconds[str(n)] for c in scaling.RESNET50 for n in scaling.lengths(c))


def _figure(found: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(6, 3.6))
    axes = figure.subplots()
    for network, color in _COLORS.items():
        for algorithm, mark in _MARKS.items():
            rows = [
                r
                for r in found["simulated"]
                if (r["network"], r["algorithm"]) == (network, algorithm)
            ]
            axes.plot(
                [r["ranks"] for r in rows],
                [r["ResNet-50"] * 1e3 for r in rows],
                color=color,
                marker=mark,
                label=f"{network}, {algorithm}",
            )
    for kind, style in (("recursive doubling", "--"), ("ring", ":")):
        axes.plot(
            [r["ranks"] for r in found["predicted"]],
            [r[kind] * 1e3 for r in found["predicted"]],
            color="black",
            linestyle=style,
            linewidth=1,
            label=f"predicted, {kind}",
        )
    axes.set(xscale="log", yscale="log", xlabel="ranks", ylabel="sums of a ResNet-50 step, ms")
    axes.set_xticks([r["ranks"] for r in found["predicted"]])
    axes.set_xticklabels([f"{r['ranks']:,}" for r in found["predicted"]])
    axes.minorticks_off()
    axes.legend(fontsize=7)
    return figure
