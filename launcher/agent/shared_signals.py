"""Slurm delivers a signal to every process of a job step at once: launcher, agents and ranks.

A rank has then received it already, and whatever only starts or watches ranks must not end by it.
"""

import os
import signal


def reach_every_process() -> bool:
    """Whether this process belongs to a job of Slurm."""
    return "SLURM_JOB_ID" in os.environ


def hold_back() -> None:
    """Blocks SIGTERM here and in the programs that are started from now on; see `senders`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def let_through() -> None:
    """Undoes `hold_back`, in a child before exec."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def senders() -> list[int]:
    """The processes that have sent a SIGTERM since the last call, while it is held back."""
    found = []
    while (received := signal.sigtimedwait({signal.SIGTERM}, 0)) is not None:
        found.append(received.si_pid)
    return found
