"""Checks the cost model of `benchmarks.scaling` against simulated clusters of up to 4,096 ranks.

python -m benchmarks.simulation [--toy] [--output FILE]

Needs SimGrid (Debian: libsimgrid-dev); takes some minutes of one core. The results do not depend
on the machine. Without --toy it writes docs/simulation.md and its figure.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import scaling
from benchmarks.harness.results import arguments
from benchmarks.simulation import page
from benchmarks.simulation.smpi import (
    BANDWIDTH,
    LATENCY,
    MissingSimGridError,
    Network,
    compiled,
    simulate,
)

NETWORKS = ("flat", "fat tree")
# SMPI's name → ours, and the largest number of ranks: a ring's messages grow with their square.
ALGORITHMS = {
    "rdb": ("recursive doubling", 4096),
    "rab_rdb": ("Rabenseifner", 4096),
    "lr": ("ring", 64),
}
RANKS = (8, 64, 512, 4096)


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__).parse_args(argv)
    try:
        found = measure((8,) if options.toy else RANKS)
    except MissingSimGridError as error:
        print(f"benchmarks.simulation: {error}", file=sys.stderr)
        sys.exit(2)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=2) + "\n")
    print("\n".join(page.tables(found)))
    if not options.toy:
        page.write(found)


def measure(counts: Sequence[int]) -> dict[str, Any]:
    """Simulated and predicted seconds of the sums of a step, and of single all-reduces."""
    lengths = sorted({n for c in scaling.RESNET50 for n in scaling.lengths(c)})
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        program = compiled(Path(directory))
        for name in NETWORKS:
            for algorithm, (words, largest) in ALGORITHMS.items():
                for ranks in (count for count in counts if count <= largest):
                    each = simulate(program, Network(name, ranks), algorithm, lengths)
                    step = sum(each[n] for c in scaling.RESNET50 for n in scaling.lengths(c))
                    rows.append(
                        {
                            "network": name,
                            "algorithm": words,
                            "ranks": ranks,
                            "ResNet-50": step,
                            "all-reduces": {str(n): seconds for n, seconds in each.items()},
                        }
                    )
                    print(f"{name}, {words}, {ranks} ranks: {step:.3g} s", file=sys.stderr)
    link = (LATENCY, 1 / BANDWIDTH)
    predicted = [
        {
            "ranks": ranks,
            "recursive doubling": scaling.of_layers("tree", ranks, scaling.RESNET50, *link),
            "ring": scaling.of_layers("ring", ranks, scaling.RESNET50, *link),
        }
        for ranks in counts
    ]
    return {"simulated": rows, "predicted": predicted}


if __name__ == "__main__":
    main()
