"""What every Python of the tests runs first: a garbage collector that looks less often.

The suite starts some two hundred processes that import TensorFlow. With Python's own thresholds the
collector takes 0.7 of the 3.2 seconds of each import, and another 0.5 at the end of the process,
searching what lasts. conftest.py puts this folder on PYTHONPATH.
"""

import atexit
import gc

gc.set_threshold(100_000, 50, 100)
atexit.register(gc.freeze)
