"""First on a rank's module path: what the agent can only learn from inside a Python program.

Lets the launcher request the stacks of a hanging Python, and reports when the program has ended
but the process has not: MPI_Finalize waits for the peers. Python imports this module by its name
at start-up; it then loads the environment's own sitecustomize.
"""

import atexit
import faulthandler
import importlib.machinery
import importlib.util
import os
import signal
import sys
import time

_PROGRAM = "LAUNCHER_PROGRAM_PID"  # the first Python of the rank: what that starts is not the rank
_SECONDS_TO_LEAVE = 1.0  # an older call of sys.exit was caught, and the program has gone on

faulthandler.register(signal.SIGUSR1, all_threads=True)


def _tell_when_over(path: str) -> None:
    import threading

    own, leave = os.getpid(), sys.exit
    said: list[tuple[float, object]] = [(0.0, None)]
    os.environ[_PROGRAM] = str(own)
    if os.path.exists(path):
        os.unlink(path)  # the rank is a script that runs one Python after the other

    def leave_and_say(status: object = None, /) -> None:
        said[0] = time.monotonic(), status
        leave(status)  # type: ignore[arg-type]

    def tell() -> None:
        if os.getpid() != own:
            return  # a fork of it
        at, status = said[0]
        if getattr(sys, "last_value", None) is not None:
            code = 1  # an exception that nobody caught
        elif status is None or time.monotonic() - at > _SECONDS_TO_LEAVE:
            code = 0
        else:
            code = status & 255 if isinstance(status, int) else 1
        try:
            with open(path, "w") as file:
                file.write(f"{time.time()} {code}\n")
        except OSError:
            pass

    sys.exit = leave_and_say  # type: ignore[assignment]
    # Once threads have ended, and before every function given to atexit: Horovod's already waits
    # for the peers. What is registered last comes first.
    register = getattr(threading, "_register_atexit", None)
    if register is None:
        atexit.register(tell)
    else:
        register(lambda: atexit.register(tell))


if "LAUNCHER_OVER" in os.environ and os.environ.get(_PROGRAM, str(os.getpid())) == str(os.getpid()):
    _tell_when_over(os.environ["LAUNCHER_OVER"])

_here = os.path.dirname(os.path.abspath(__file__))
_others = [entry for entry in sys.path if os.path.abspath(entry) != _here]
_spec = importlib.machinery.PathFinder.find_spec("sitecustomize", _others)
if _spec is not None and _spec.loader is not None:
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["sitecustomize"] = _module
    _spec.loader.exec_module(_module)
