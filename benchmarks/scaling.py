"""The cost of synchronization by number of ranks: measured here, predicted for larger machines.

python -m benchmarks.scaling [--toy] [--output FILE]

1, 2, 4 and 8 ranks sum vectors of several lengths with the mpi communicator. A linear fit of the
medians gives alpha, the latency of a message in seconds, and beta, the seconds per byte (Hockney,
1994). The parameters of two ranks give the cost for P ranks (Thakur et al., 2005): a tree takes
ceil(log2 P) steps with the whole vector, a ring 2(P-1) steps with 1/P of it.

More ranks than cores share them and wait for each other, so these measurements are an upper bound,
not the cost on more cores. Predictions assume that every pair of ranks communicates like two ranks
of this machine; set the parameters of your network with --alpha and --beta.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.harness.conductor import Conductor, Plan
from benchmarks.harness.results import Report, Timing, arguments, finish, with_unit
from benchmarks.harness.turns import Contender, take_turns

RANKS, PREDICTED = (1, 2, 4, 8), (2, 4, 8, 64, 512, 4096)
_VALUES, _CHAIN = (130, 1026, 8194, 65538), 20
_LAYER: dict[str, Any] = {"shape": [8, 8, 8, 256], "depth": 10}
_TOY: dict[str, Any] = {"shape": [2, 3, 3, 8], "depth": 2}

# Channels of the 53 normalizations of ResNet-50: the stem, then for each stage of a given width a
# number of blocks of three layers, with one more in the first block.
RESNET50 = [64] + [
    channels
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3))
    for block in range(blocks)
    for channels in (width, width, 4 * width, *([4 * width] if block == 0 else []))
]


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--alpha", type=float, help="latency of your network in seconds")
    parser.add_argument("--beta", type=float, help="seconds per byte of your network")
    options = parser.parse_args(argv)
    report = measure(options.toy, options.alpha, options.beta)
    _show(report)
    finish(report, options.output)


def measure(toy: bool, alpha: float | None = None, beta: float | None = None) -> Report:
    """Measures, fits and predicts."""
    counts = (2,) if toy else RANKS
    values, chain = ((130, 1026), 3) if toy else (_VALUES, _CHAIN)
    rounds, steps = (1, 2) if toy else (3, 8)
    cores = len(os.sched_getaffinity(0))
    shared = [str(count) for count in counts if count > cores]
    settings = {"cores": cores, "oversubscribed ranks": ", ".join(shared) or "none"}
    report = Report("scaling", settings)
    layer = _TOY if toy else _LAYER
    for count in counts:
        with Conductor("benchmarks.scaling_steps") as conductor:
            job = conductor.start([Plan("mpi", "mpirun", "mpi")], count)["mpi"]
            cases = [{"values": v, "chain": chain} for v in values]
            contenders = [Contender("sum", job, case) for case in cases if count > 1]
            contenders.append(Contender("ours", job, layer))
            for contender, taken in zip(
                contenders, take_turns(contenders, rounds, steps, toy=toy), strict=True
            ):
                sums = contender.name == "sum"
                length = chain if sums else layer["depth"]
                each = [second / length for second in taken.seconds]
                case = of_sum(contender.case["values"]) if sums else of_layer(layer["shape"])
                report.timings.append(Timing.of(in_ranks(count), "mpi", case, each, taken.others))
    fits = {
        str(count): fit(
            [8 * v for v in values], [report.median(in_ranks(count), of_sum(v)) for v in values]
        )
        for count in counts
        if count > 1
    }
    report.details["fits"] = fits
    measured_alpha, measured_beta = fits["2"]
    link = (alpha or measured_alpha, beta or measured_beta)
    report.details["link"] = {"alpha": link[0], "beta": link[1], "measured": alpha is beta is None}
    channels = layer["shape"][-1]
    report.details["predicted"] = [
        {
            "ranks": ranks,
            "layer": {kind: of_layers(kind, ranks, [channels], *link) for kind in COSTS},
            "ResNet-50": {kind: of_layers(kind, ranks, RESNET50, *link) for kind in COSTS},
        }
        for ranks in PREDICTED
    ]
    report.details["predicted and measured"] = [
        {
            "ranks": count,
            "oversubscribed": count > cores,
            "bytes": 8 * v,
            "predicted": COSTS["tree"](count, 8 * v, measured_alpha, measured_beta),
            "measured": report.median(in_ranks(count), of_sum(v)),
        }
        for count in counts
        if count > 1
        for v in values
    ]
    return report


def fit(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """alpha and beta of seconds = alpha + beta·bytes, not negative.

    Minimizes the squares of the relative errors, so that short messages have the same weight.
    """
    weights = 1 / np.asarray(seconds)
    rows = np.stack([np.ones(len(sizes)), np.asarray(sizes, float)], axis=1) * weights[:, None]
    (alpha, beta), *_ = np.linalg.lstsq(rows, np.ones(len(sizes)), rcond=None)
    return max(float(alpha), 0.0), max(float(beta), 0.0)


def tree(ranks: int, size: float, alpha: float, beta: float) -> float:
    """Seconds of an all-reduce with recursive doubling."""
    return math.ceil(math.log2(ranks)) * (alpha + size * beta)


def ring(ranks: int, size: float, alpha: float, beta: float) -> float:
    """Seconds of a ring all-reduce."""
    return 2 * (ranks - 1) * (alpha + size / ranks * beta)


COSTS = {"tree": tree, "ring": ring}


def of_layers(kind: str, ranks: int, channels: Sequence[int], alpha: float, beta: float) -> float:
    """Seconds of the sums of these layers in one step."""
    return sum(
        COSTS[kind](ranks, 8 * length, alpha, beta) for c in channels for length in lengths(c)
    )


def lengths(channels: int) -> tuple[int, int]:
    """The numbers of values that a layer sums, forward and backward."""
    return 4 * channels + 2, 2 * channels


def in_ranks(count: int) -> str:
    return "1 rank" if count == 1 else f"{count} ranks"


def of_sum(values: int) -> str:
    return f"an all-reduce of {values} float64"


def of_layer(shape: Sequence[int]) -> str:
    return f"a layer of ({','.join(map(str, shape))}), forward and backward"


def _show(report: Report) -> None:
    table = Table("ranks", "a layer: tree", "ring", "ResNet-50: tree", "ring", title="predicted")
    for row in report.details["predicted"]:
        seconds = [row[what][kind] for what in ("layer", "ResNet-50") for kind in COSTS]
        table.add_row(str(row["ranks"]), *map(with_unit, seconds))
    Console().print(table)
    table = Table("ranks", "bytes", "predicted", "measured", title="predicted and measured")
    for row in report.details["predicted and measured"]:
        note = ", sharing cores" if row["oversubscribed"] else ""
        seconds = [row["predicted"], row["measured"]]
        table.add_row(f"{row['ranks']}{note}", str(row["bytes"]), *map(with_unit, seconds))
    Console().print(table)


if __name__ == "__main__":
    main()
