"""Whether a failed attempt is repeated, and after how many seconds."""

import random

from launcher.spec import RestartPolicy
from launcher.supervision.causes import Cause


def worth_a_restart(policy: RestartPolicy, cause: Cause, done: int) -> bool:
    """Whether to restart after `done` restarts. Hangs and lost hosts have no exit code to match."""
    # With the same data and learning rate, from the same checkpoint, the job would diverge again.
    hopeless = cause.kind in {"bad config", "diverged"}
    if hopeless or done >= policy.max_restarts:
        return False
    codes = policy.exit_codes
    return codes is None or cause.exit_code is None or cause.exit_code in codes


def wait_seconds(policy: RestartPolicy, done: int) -> float:
    """The wait after `done` restarts: doubled each time up to the limit, shortened at random."""
    longest = min(policy.backoff_limit, policy.backoff * 2.0 ** min(done, 64))
    return longest * (1.0 - policy.jitter * random.random())
