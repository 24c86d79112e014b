"""What each rank runs in the tests of early ends: all-reduces; rank 1 leaves after the third.

leaving_program.py BACKEND exit|three|raise|export SHARED: `export` lets rank 0 work on alone at the
end; the time of the fault is left in the directory SHARED, as rank_program.py does.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    backend, how, shared = sys.argv[1:]
    rank, add = _backend(backend)
    for step in range(6):
        add()
        if rank == 1 and step == 2 and how != "export":
            (Path(shared) / "fault-0").write_text(repr(time.time()))
            if how == "exit":
                sys.exit(0)
            if how == "three":
                sys.exit(3)
            if how == "raise":
                raise ValueError("the cause itself")
    for part in range(28 if how == "export" and rank == 0 else 0):
        time.sleep(0.25)
        print(f"part {part}")


def _backend(name: str) -> tuple[int, Callable[[], object]]:
    if name == "plain mpi":  # a program that does not use syncbn
        from mpi4py import MPI

        return MPI.COMM_WORLD.rank, lambda: MPI.COMM_WORLD.allreduce(1)
    import tensorflow as tf

    import syncbn

    ranks = syncbn.init(name)
    return ranks.rank, lambda: ranks.all_reduce(tf.ones([4]), "sum")


if __name__ == "__main__":
    main()
