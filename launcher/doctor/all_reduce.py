"""One rank of the doctor's self-test: `python -m launcher.doctor.all_reduce BACKEND`.

Checks the result of one all-reduce, then times small ones; rank 0 prints JSON.
"""

import json
import statistics
import sys
import time

import tensorflow as tf

import syncbn

_VALUES = 513  # a packed vector of statistics: count and two sums of 256 channels
_TIMES = 50


def main() -> None:
    """Runs the test on the ranks it was started on."""
    communicator = syncbn.init(sys.argv[1])
    mine = tf.fill([_VALUES], float(communicator.rank + 1))
    total = communicator.all_reduce(mine, name="check")
    expected = sum(range(1, communicator.size + 1))
    if not bool(tf.reduce_all(total == expected)):
        raise RuntimeError(f"expected a sum of {expected}. Received: {total[0].numpy()}")
    seconds = []
    for step in range(_TIMES):
        began = time.perf_counter()
        communicator.all_reduce(mine, name=f"timed-{step}").numpy()
        seconds.append(time.perf_counter() - began)
    communicator.barrier()
    if communicator.rank == 0:
        milliseconds = round(statistics.median(seconds) * 1000, 3)
        print(json.dumps({"ranks": communicator.size, "milliseconds": milliseconds}))


if __name__ == "__main__":
    main()
