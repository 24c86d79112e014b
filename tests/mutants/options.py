"""The options of `make mutants`."""

import argparse
import os


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make mutants ARGS=...")
    parser.add_argument("--sample", type=int, default=15, help="mutants of each module, at most")
    parser.add_argument("--seed", type=int, default=0, help="which of them")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", action="append", help="modules whose path has this word")
    return parser
