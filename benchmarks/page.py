"""docs/performance.md and README's table of speed, from the figures that the benchmarks wrote.

python -m benchmarks.page [DIRECTORY]
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import figures
from benchmarks.harness import machine
from benchmarks.harness.results import Bar, with_unit

DOCUMENTS = Path(__file__).resolve().parents[1] / "docs"
README = DOCUMENTS.parent / "README.md"
# Around the table in README.
BEGIN, END = "<!-- speed: made by `make bench` -->", "<!-- end of speed -->"
# Contenders and engines, by the heads of README's table.
_COLUMNS = {
    "syncbn": ("syncbn", "mpi"),
    "Keras, local": ("Keras local", "mpi"),
    "Keras, synchronized": ("Keras synchronized", "tf"),
}
PARTS = ("layer", "options", "training", "latency", "memory", "scaling")

_INTRODUCTION = {
    "layer": "A chain of layers, forward and backward, with the gradients of γ and β and the "
    "moving statistics; the sums travel as float64. `Keras local` and `TensorFlow fused local` "
    "send nothing; the second is the kernel that Keras 2 used and Keras 3 no longer does. "
    "`horovod` is what `syncbn.init` makes of it; the last rows send the same sums by Horovod as "
    "it comes.",
    "options": "What an option costs: the median step over that of the layer without it, and over "
    "that of Keras' local layer with the same option, where Keras has it (a ReLU follows Keras' "
    "layer; half precision is compared with float32 of our own).",
    "training": "Forward, backward, gradients averaged over the ranks, and the update, of "
    "ResNet-20 on 32x32 images. `Keras local` averages gradients as syncbn does and statistics "
    "not at all.",
    "latency": "One sum of a small vector over two ranks, and what the programs take to start.",
    "memory": "What one layer keeps between forward and backward beside its inputs, and what a "
    "first step adds to the resident memory, both in sizes of the inputs; outputs and gradients "
    "count.",
    "scaling": "More ranks on the same cores: those that share cores wait for each other's turns, "
    "so their figures say what oversubscribing costs, not what a larger machine would show. "
    "Predictions take every pair of ranks to talk as two ranks of this machine do; `python -m "
    "benchmarks.scaling --alpha SECONDS --beta SECONDS` puts in those of a network.",
}


def write(directory: Path) -> None:
    """Writes the page and its plots, and renews the table in README.

    Args:
        directory: Holds NAME.json of each of PARTS.
    """
    found = {name: json.loads((directory / f"{name}.json").read_text()) for name in PARTS}
    figures.draw(found, DOCUMENTS / "figures")
    (DOCUMENTS / "performance.md").write_text(_page(found))
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text("\n".join([before + BEGIN, "", *_speed(found), "", END + after]))


def _speed(found: dict[str, dict[str, Any]]) -> list[str]:
    """README's table: the median step of ours and of Keras', case by case."""
    medians = {
        (timing["case"], timing["contender"], timing["engine"]): timing["median"]
        for name in ("layer", "training")
        for timing in found[name]["timings"]
    }
    return _table(
        ("median step of two ranks", *_COLUMNS),
        (
            (case, *(with_unit(medians[case, *column]) for column in _COLUMNS.values()))
            for case in dict.fromkeys(case for case, _, _ in medians)
        ),
    )


def _page(found: dict[str, dict[str, Any]]) -> str:
    layer = found["layer"]
    lines = [
        "# Performance",
        "",
        "<!-- Made by `make bench`; changes made here are lost. -->",
        "",
        f"Measured on {layer['date']} by `make bench`, two ranks with one intra-op thread each, on "
        f"{machine.in_words(layer['machine'])}. Every ratio is one of medians from one run: all "
        "contenders were alive at once and took turns. Of each, those turns count in which other "
        "programs took least of the cores, at most the share that stands under *others*.",
        "",
        "## The bars",
        "",
        *_table(
            ("claim", "bar", "measured", "verdict"),
            (_bar(bar).cells() for part in found.values() for bar in part["bars"]),
        ),
    ]
    for name, part in found.items():
        lines += ["", f"## {name.capitalize()}", "", _INTRODUCTION[name], ""]
        lines += [f"`python -m benchmarks.{name}`, load {part['machine']['load']} at the start."]
        for case in dict.fromkeys(timing["case"] for timing in part["timings"]):
            rows = [timing for timing in part["timings"] if timing["case"] == case]
            lines += ["", f"**{case[0].upper()}{case[1:]}**", "", *_timings(rows)]
        lines += ["", *_DETAILS[name](part["details"])]
    return "\n".join(lines).rstrip() + "\n"


def _bar(values: dict[str, Any]) -> Bar:
    return Bar(**{name: value for name, value in values.items() if name != "holds"})


def _timings(rows: list[dict[str, Any]]) -> list[str]:
    return _table(
        ("contender", "engine", "min", "median", "p90", "steps", "others"),
        (
            (
                row["contender"],
                row["engine"],
                *(with_unit(row[key]) for key in ("minimum", "median", "p90")),
                row["samples"],
                f"{row['others']:.0%}",
            )
            for row in rows
        ),
    )


def _table(heads: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    lines = [heads, ("---",) * len(heads), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def _layer(details: dict[str, Any]) -> list[str]:
    limit = details["copy limit"]
    transports = "; ".join(f"{name}: {how}" for name, how in details["transports"].items())
    return [
        f"The large case must move {limit['passes over the tensor']:.0f} times its tensor a layer "
        "(forward x twice and y, backward dy and x twice and dx). At the "
        f"{limit['copy bandwidth of a rank, bytes/s'] / 1e9:.1f} GB/s at which each of two ranks "
        f"copies, that takes {with_unit(limit['seconds'])}: ours takes "
        f"{limit['ours over the limit']:.2f} times as long.",
        "",
        f"How the statistics travelled: {transports}.",
        "",
        "![Median step of every contender](figures/performance-layer.svg)",
    ]


def _options(details: dict[str, Any]) -> list[str]:
    return _table(
        ("option", "over the plain layer", "over Keras local with it"),
        (
            (
                row["option"],
                f"{row['of plain']:.2f}",
                "" if row["of Keras"] is None else f"{row['of Keras']:.2f}",
            )
            for row in details["options"]
        ),
    )


def _training(_: dict[str, Any]) -> list[str]:
    return ["![Median step of ResNet-20](figures/performance-training.svg)"]


def _latency(_: dict[str, Any]) -> list[str]:
    return ["![Median all-reduce by length](figures/performance-latency.svg)"]


def _memory(details: dict[str, Any]) -> list[str]:
    return _table(
        ("contender", "held, bytes", "held, inputs", "peak, inputs"),
        (
            (name, f"{row['held bytes']:.0f}", f"{row['held']:.5f}", f"{row['peak']:.2f}")
            for name, row in details["memory"].items()
        ),
    )


def _scaling(details: dict[str, Any]) -> list[str]:
    link = details["link"]
    return [
        f"Between two ranks here a message takes {link['alpha'] * 1e6:.1f} µs and "
        f"{link['beta'] * 1e9:.3f} ns a byte. Predicted from that, seconds a step spends in sums:",
        "",
        *_table(
            ("ranks", "a layer, tree", "a layer, ring", "ResNet-50, tree", "ResNet-50, ring"),
            (
                (
                    row["ranks"],
                    *(
                        with_unit(row[what][kind])
                        for what in ("layer", "ResNet-50")
                        for kind in ("tree", "ring")
                    ),
                )
                for row in details["predicted"]
            ),
        ),
        "",
        "Predicted (tree) and measured, where it can be measured:",
        "",
        *_table(
            ("ranks", "bytes", "predicted", "measured"),
            (
                (
                    f"{row['ranks']}{' sharing cores' if row['oversubscribed'] else ''}",
                    row["bytes"],
                    with_unit(row["predicted"]),
                    with_unit(row["measured"]),
                )
                for row in details["predicted and measured"]
            ),
        ),
        "",
        "![Predicted cost of ResNet-50's sums by number of ranks](figures/performance-scaling.svg)",
    ]


_DETAILS = {
    "layer": _layer,
    "options": _options,
    "training": _training,
    "latency": _latency,
    "memory": _memory,
    "scaling": _scaling,
}


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "build/benchmarks"))
