"""Runs all measurements of the layer and of training, and updates docs/performance.md.

python -m benchmarks [--toy] [--output DIRECTORY]

Takes a quarter of an hour on two idle cores. --toy only checks that the benchmarks run, and does
not update the page.
"""

import argparse
import importlib
from pathlib import Path

from benchmarks import page

NAMES = page.PARTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to check that it works")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    for name in NAMES:
        arguments = ["--output", str(options.output / f"{name}.json")]
        importlib.import_module(f"benchmarks.{name}").main(
            [*arguments, "--toy"] if options.toy else arguments
        )
    if not options.toy:
        page.write(options.output)


if __name__ == "__main__":
    main()
