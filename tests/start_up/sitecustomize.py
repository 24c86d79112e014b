"""What every Python of the tests runs first, so that two hundred of them start and end sooner.

With Python's own thresholds the garbage collector takes 0.7 of the 3.2 seconds of each import of
TensorFlow, and 0.5 more at the end of the process, searching what lasts. TensorFlow's type hints
are strings, of which typing compiles the same few 18,000 times, in 0.1 seconds. And Keras imports
scikit-learn and matplotlib where it finds them, 0.6 seconds, for wrappers and galleries that no
test uses. conftest.py puts this folder on PYTHONPATH.
"""

import atexit
import gc
import sys
import typing
from collections.abc import Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from types import FrameType

gc.set_threshold(100_000, 50, 100)
atexit.register(gc.freeze)
vars(typing)["compile"] = cache(compile)


class _NotForKeras(MetaPathFinder):
    """Says to Keras, and to nobody else, that these are not installed."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> None:
        if name in ("sklearn", "matplotlib") and _importer().startswith("keras."):
            raise ModuleNotFoundError(f"No module named {name!r} for Keras in tests", name=name)


def _importer() -> str:
    """The name of the module whose import statement is being run."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and "importlib" in frame.f_code.co_filename:
        frame = frame.f_back
    return "" if frame is None else str(frame.f_globals.get("__name__", ""))


sys.meta_path.insert(0, _NotForKeras())
