"""The options of `make soak`."""

import argparse

BACKENDS = ("mpi", "horovod", "tf")


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make soak ARGS=...")
    parser.add_argument("--minutes", type=float, default=30.0, help="for each backend")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="by default all")
    parser.add_argument("--ranks", type=int, default=2)
    return parser
