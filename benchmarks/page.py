"""Writes docs/performance.md and README's table of speed from the output of the benchmarks.

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
# Contender and backend of each column of README's table.
_COLUMNS = {
    "syncbn": ("syncbn", "mpi"),
    "Keras, local": ("Keras local", "mpi"),
    "Keras, synchronized": ("Keras synchronized", "tf"),
}
PARTS = (
    "layer",
    "options",
    "training",
    "end_to_end",
    "startup",
    "latency",
    "memory",
    "scaling",
)

_INTRODUCTION = {
    "layer": "A chain of layers, forward and backward, including the gradients of γ and β and the "
    "moving statistics; sums are sent as float64. `Keras local` and `TensorFlow fused local` do "
    "not communicate; the latter is the kernel of Keras 2, which Keras 3 does not use. `horovod` "
    "uses the settings of `syncbn.init`; the last rows send the same sums with Horovod's default "
    "settings.",
    "options": "The cost of an option: the median step divided by that of the layer without it, "
    "and by that of Keras' local layer with the same option, if Keras has it (for `activation`, "
    "Keras' layer is followed by a ReLU, and for `residual` by an addition and a ReLU; half "
    "precision is compared with the float32 layer).",
    "training": "Forward, backward, averaging of gradients over the ranks, and update, for "
    "ResNet-20 with 32 images of 32x32 on each rank, ResNet-50 and MobileNetV2 with 4 of 224x224. "
    "`Keras local` averages gradients like syncbn, but does not "
    "synchronize statistics.",
    "end_to_end": "The loop of `launcher.train` against its compiled steps alone: what shuffled "
    "input, checks, metrics, heartbeats and the exchange between ranks cost.",
    "startup": "Whole commands, which run one after the other. `plain_keras.py` has the same "
    "network with Keras' normalization and neither syncbn nor communication. Tracing creates the "
    "graph of 50 layers, forward and backward.",
    "latency": "One all-reduce of a small vector over two ranks, and start-up times.",
    "memory": "The memory that one layer holds between forward and backward in addition to its "
    "inputs, and the increase of the resident memory in a first step, including outputs and "
    "gradients, both in multiples of the size of the inputs.",
    "scaling": "More ranks on the same cores. Ranks that share cores wait for each other, so "
    "their figures show the cost of oversubscription, not of a larger machine. Predictions assume "
    "that every pair of ranks communicates like two ranks of this machine; use `python -m "
    "benchmarks.scaling --alpha SECONDS --beta SECONDS` for the parameters of another network.",
}


def write(directory: Path) -> None:
    """Writes the page and its plots, and renews the table in README.

    Args:
        directory: Contains NAME.json for each of PARTS.
    """
    found = {name: json.loads((directory / f"{name}.json").read_text()) for name in PARTS}
    figures.draw(found, DOCUMENTS / "figures")
    (DOCUMENTS / "performance.md").write_text(_page(found))
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text("\n".join([before + BEGIN, "", *_speed(found), "", END + after]))


def _speed(found: dict[str, dict[str, Any]]) -> list[str]:
    """README's table: the median step of each contender and case."""
    medians = {
        (timing["case"], timing["contender"], timing["backend"]): timing["median"]
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
        "<!-- Written by `make bench`, which overwrites changes. -->",
        "",
        f"Measured on {layer['date']} by `make bench`, two ranks with one intra-op thread each, on "
        f"{machine.in_words(layer['machine'])}. Every ratio is one of medians from one run: all "
        "contenders ran concurrently and took turns. For each, only the turns with the least load "
        "by other programs count; *others* is the largest share of the cores that these used.",
        "",
        "## The bars",
        "",
        *_table(
            ("claim", "bar", "measured", "verdict"),
            (_bar(bar).cells() for part in found.values() for bar in part["bars"]),
        ),
    ]
    for name, part in found.items():
        lines += ["", f"## {name.capitalize().replace('_', ' ')}", "", _INTRODUCTION[name], ""]
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
        ("contender", "backend", "min", "median", "p90", "steps", "others"),
        (
            (
                row["contender"],
                row["backend"],
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
        f"A layer of the large case makes {limit['passes over the tensor']:.0f} passes over its "
        "tensor (forward x twice and y, backward dy and x twice and dx). At "
        f"{limit['copy bandwidth of a rank, bytes/s'] / 1e9:.1f} GB/s, the copy bandwidth of each "
        f"of two ranks, they take {with_unit(limit['seconds'])}; syncbn takes "
        f"{limit['ours over the limit']:.2f} times as long.",
        "",
        f"Transport of the statistics: {transports}.",
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
    return ["![Median step of each model](figures/performance-training.svg)"]


def _startup(details: dict[str, Any]) -> list[str]:
    parts = list(next(iter(details["parts"].values())))
    return [
        "The parts of the start-up, and the throughput of the whole training:",
        "",
        *_table(
            ("command", *(part.replace("_", " ") for part in parts), "images/s"),
            (
                (
                    f"`{name}`",
                    *(with_unit(seconds[part]) for part in parts),
                    f"{details['images per second'][name]:,.0f}",
                )
                for name, seconds in details["parts"].items()
            ),
        ),
    ]


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
        f"A message between two ranks takes {link['alpha'] * 1e6:.1f} µs plus "
        f"{link['beta'] * 1e9:.3f} ns per byte. The predicted time of sums in one step:",
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
        "Predicted (tree) and measured:",
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
        "![Predicted time of ResNet-50's sums by number of ranks](figures/performance-scaling.svg)",
    ]


_DETAILS = {
    "layer": _layer,
    "options": _options,
    "training": _training,
    "end_to_end": lambda _: [],
    "startup": _startup,
    "latency": _latency,
    "memory": _memory,
    "scaling": _scaling,
}


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "build/benchmarks"))
