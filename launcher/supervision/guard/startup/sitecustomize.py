"""Put before a rank's own modules: lets the launcher ask a hanging Python for its stacks.

Python imports this by its name at start-up; the environment's own sitecustomize follows.
"""

import faulthandler
import importlib.machinery
import importlib.util
import os
import signal
import sys

faulthandler.register(signal.SIGUSR1, all_threads=True)

_here = os.path.dirname(os.path.abspath(__file__))
_others = [entry for entry in sys.path if os.path.abspath(entry) != _here]
_spec = importlib.machinery.PathFinder.find_spec("sitecustomize", _others)
if _spec is not None and _spec.loader is not None:
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["sitecustomize"] = _module
    _spec.loader.exec_module(_module)
