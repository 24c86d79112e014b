"""Why an attempt failed: the first cause among the exits of all ranks, named and explained."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

CauseClass = Literal[
    "error",
    "killed",
    "oom",
    "hang",
    "preempted",
    "lost host",
    "bad config",
    "disk full",
    "diverged",
]

# What the backend of a healthy rank prints when another rank has ended: not the cause.
_PEER_NOISE = re.compile(
    r"HorovodInternalError|Horovod has been shut down|Connection (?:reset|closed) by peer"
    r"|Socket closed|Broken pipe|gloo::|\[gloo|Collective ops is aborted|coordination service"
    r"|Connection refused|failed to connect to all addresses|MPI_ERR|MPI_ABORT|StaleHeartbeat"
    r"|CoordinationServiceError|heartbeat timeout|Rendezvous.*(?:timed? ?out|failed)",
    re.IGNORECASE,
)
_OUT_OF_MEMORY = re.compile(
    r"ResourceExhausted|RESOURCE_EXHAUSTED|MemoryError|std::bad_alloc|CUDA_ERROR_OUT_OF_MEMORY"
    r"|out of memory|Cannot allocate memory"
)
# Printed by launcher.train, by syncbn.callbacks.NonFiniteGuard in a user's `fit`, and by the
# comparison of ranks that `syncbn.init` sets up in every program.
_DIVERGED = re.compile(
    r"launcher\.train: (?:rank \d+: )?diverged: (?P<reported>.+?)(?:\. The usual .*)?$"
    r"|(?:NonFinite|Divergence)Error: (?P<raised>.+?)(?:\. The usual .*)?$"
)
# An error, not a warning of a program that continues without the file.
_DISK_FULL = re.compile(
    r"launcher\.train: (?:rank \d+: )?(?P<reported>disk full: .+)"
    r"|(?P<raised>[\w.]*(?:Error|Exception): .*(?:No space left on device|Disk quota exceeded).*)"
)
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Warning)(?:: |$)")
_LONGEST_QUOTE = 160
_USAGE_CODE = 2
_USAGE_CODES = {_USAGE_CODE, 126, 127}

# A pattern in the last lines, and what the user can do about it.
_HINTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"No space left on device|ENOSPC|Disk quota exceeded"),
        "a disk is full: free space where the rank writes, then start again",
    ),
    (
        re.compile(r"Address already in use|EADDRINUSE"),
        "a port is in use: choose another, or 0 for a free one; `ss -ltnp` shows which process "
        "uses it",
    ),
    (
        re.compile(r"No module named"),
        "install the module into the Python of the launcher, or name another Python",
    ),
    (_OUT_OF_MEMORY, "give the rank more memory, or make the batch smaller"),
    (
        _DIVERGED,
        "lower the learning rate, warm up longer, or clip gradients; `--on-nan skip` of "
        "launcher.train skips such updates",
    ),
)


@dataclass(frozen=True)
class Exit:
    """How one rank ended, as its agent saw it.

    `code` is negative for a signal. `asked` means that the launcher ended it; `at` is in seconds
    since the epoch. `refused` says why the command could not be started at all, `lost` how its host
    was lost. `silent` means that no agent reported the exit, `leaving` that the rank had reported
    that it ends because of another rank. With `lingering` the program has ended, with 0 or by an
    exception, but its process has not.
    """

    rank: int
    host: str
    code: int
    at: float
    asked: bool = False
    out_of_memory: str | None = None
    refused: str | None = None
    lost: str | None = None
    silent: bool = False
    leaving: bool = False
    lingering: bool = False
    tail: tuple[str, ...] = ()
    step: int | None = None

    @property
    def status(self) -> int:
        """The code a shell would show: 128 plus the number for a signal."""
        return 128 - self.code if self.code < 0 else self.code

    @property
    def ended_by_others(self) -> bool:
        """Whether the launcher ended the process, or mpirun without a report of the agent."""
        return self.asked or self.silent


@dataclass(frozen=True)
class Cause:
    """The first failure, as a sentence for the user and as fields for programs."""

    kind: CauseClass
    summary: str
    rank: int | None = None
    host: str | None = None
    exit_code: int | None = None
    step: int | None = None
    tail: tuple[str, ...] = ()
    hint: str | None = None

    def as_json(self) -> dict[str, Any]:
        """All but the rank, which the event that contains the cause has already."""
        return {
            "class": self.kind,
            "summary": self.summary,
            "host": self.host,
            "exit_code": self.exit_code,
            "step": self.step,
            "last_lines": list(self.tail),
            "hint": self.hint,
        }


def is_peer_noise(ended: Exit) -> bool:
    """Whether the rank failed only because another rank did.

    It reported so, its last lines show it, or it exited with the usage code and no message, as
    launcher.train does on all ranks but the one that prints the error.
    """
    if ended.code == _USAGE_CODE and ended.refused is None and not ended.tail:
        return True
    noise = ended.leaving or any(_PEER_NOISE.search(line) for line in ended.tail[-12:])
    return ended.code > 0 and noise


def is_crash(ended: Exit) -> bool:
    """Whether native code in the rank's own process crashed."""
    return -ended.code in {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS}


def first_cause(exits: Sequence[Exit]) -> Cause:
    """The cause among failed exits: those that no other rank explains first, then the earliest."""
    return explain(min(exits, key=lambda ended: (_precedence(ended), ended.at)))


def _precedence(ended: Exit) -> int:
    if ended.silent:
        return 1
    if ended.asked:
        return 3
    return 2 if is_peer_noise(ended) else 0


def outcome(ended: Exit) -> str:
    """How the rank ended, without its name: `failed with exit code 1`."""
    return _classify(ended)[1]


def explain(ended: Exit) -> Cause:
    """Classifies one exit and explains it in a sentence."""
    kind, words = _classify(ended)
    who = f"rank {ended.rank} on {ended.host}"
    where = "" if ended.step is None else f" after step {ended.step}"
    if kind in {"error", "oom"}:
        where += _exception(ended)
    if kind == "diverged":
        where = f": {_reported_reason(_DIVERGED, ended)}"  # which names the step
    if kind == "disk full":
        where += f": {_reported_reason(_DISK_FULL, ended).removeprefix('disk full: ')}"
    hint = next((hint for pattern, hint in _HINTS if _in_tail(pattern, ended)), None)
    if kind == "oom" and hint is None:
        hint = "give the rank more memory (--memory), or make the batch smaller"
    return Cause(
        kind,
        f"{who} {words}{where}",
        rank=ended.rank,
        host=ended.host,
        exit_code=ended.status,
        step=ended.step,
        tail=ended.tail,
        hint=hint,
    )


def _classify(ended: Exit) -> tuple[CauseClass, str]:
    if ended.refused is not None:
        return "bad config", f"could not start: {ended.refused}"
    if ended.lost is not None:
        return "lost host", ended.lost
    if ended.silent:
        return "killed", "ended without a report from its agent"
    if ended.out_of_memory == "kernel":
        return "oom", "was killed by the kernel: out of memory"
    if ended.out_of_memory == "limit":
        return "oom", "was killed for exceeding its memory limit"
    if ended.status == 128 + signal.SIGTERM:
        return "preempted", "received a SIGTERM from outside the job"
    if ended.code > 0 and _reported_reason(_DIVERGED, ended):
        return "diverged", "diverged"
    if ended.code > 0 and _reported_reason(_DISK_FULL, ended):
        return "disk full", "could not write"
    if _in_tail(_OUT_OF_MEMORY, ended):
        return "oom", f"ran out of memory (exit code {ended.status})"
    if ended.code < 0:
        return "killed", f"was killed by {_signal_name(-ended.code)}"
    if ended.code in _USAGE_CODES:
        return "bad config", f"refused its arguments or configuration (exit code {ended.code})"
    if ended.code == 0:
        return "error", "ended with exit code 0"
    return "error", f"failed with exit code {ended.code}"


def _exception(ended: Exit) -> str:
    """The last line of an uncaught Python exception."""
    last = ended.tail[-1] if ended.tail else ""
    return f": {last[:_LONGEST_QUOTE]}" if _EXCEPTION.match(last) else ""


def _reported_reason(pattern: re.Pattern[str], ended: Exit) -> str:
    """What the rank itself printed as the reason; empty if nothing matches."""
    found = next((reported for line in ended.tail if (reported := pattern.search(line))), None)
    return "" if found is None else (found["reported"] or found["raised"])[: 2 * _LONGEST_QUOTE]


def _in_tail(pattern: re.Pattern[str], ended: Exit) -> bool:
    return any(pattern.search(line) for line in ended.tail)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
