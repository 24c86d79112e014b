"""Runs in every Python process of a rank, where it does what the agent cannot do from outside.

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

_PROGRAM_PID = (
    "LAUNCHER_PROGRAM_PID"  # the rank's first Python; its child processes are not the rank
)
_SECONDS_TO_EXIT = 1.0  # after an earlier call of sys.exit the program went on: it was caught

faulthandler.register(signal.SIGUSR1, all_threads=True)


def _report_program_exit(path: str) -> None:
    import threading

    own, original_exit = os.getpid(), sys.exit
    last_call: list[tuple[float, object]] = [(0.0, None)]
    os.environ[_PROGRAM_PID] = str(own)
    if os.path.exists(path):
        os.unlink(path)  # a shell script may run several Python programs one after another

    def record_and_exit(status: object = None, /) -> None:
        last_call[0] = time.monotonic(), status
        original_exit(status)  # type: ignore[arg-type]

    def report() -> None:
        if os.getpid() != own:
            return  # a forked child
        at, status = last_call[0]
        if getattr(sys, "last_value", None) is not None:
            code = 1  # an uncaught exception
        elif status is None or time.monotonic() - at > _SECONDS_TO_EXIT:
            code = 0
        else:
            code = status & 255 if isinstance(status, int) else 1
        try:
            with open(path, "w") as file:
                file.write(f"{time.time()} {code}\n")
        except OSError:
            pass

    sys.exit = record_and_exit  # type: ignore[assignment]
    # Run after all threads have ended and before every other atexit function, since Horovod's waits
    # for the peers. Functions run in reverse order of registration.
    register = getattr(threading, "_register_atexit", None)
    if register is None:
        atexit.register(report)
    else:
        register(lambda: atexit.register(report))


_own_pid = str(os.getpid())
if "LAUNCHER_PROGRAM_EXIT" in os.environ and os.environ.get(_PROGRAM_PID, _own_pid) == _own_pid:
    _report_program_exit(os.environ["LAUNCHER_PROGRAM_EXIT"])

_here = os.path.dirname(os.path.abspath(__file__))
_others = [entry for entry in sys.path if os.path.abspath(entry) != _here]
_spec = importlib.machinery.PathFinder.find_spec("sitecustomize", _others)
if _spec is not None and _spec.loader is not None:
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["sitecustomize"] = _module
    _spec.loader.exec_module(_module)
