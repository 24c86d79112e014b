"""Runs contenders in turns of a few steps, and repeats turns that other programs disturbed.

All contenders run concurrently. Other load slows the contender whose turn it is, especially ranks
that wait for each other; so for each contender only the least disturbed turns count.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import psutil

from benchmarks.harness.conductor import Job

# A turn is disturbed if other programs use more than this share of all cores.
_MAX_OTHERS = 0.05
# Time for repeated turns, in seconds.
_EXTRA_SECONDS = 15.0


@dataclass(frozen=True)
class Contender:
    """A contender in one case.

    Attributes:
        name: Its name in the service.
        job: The job that runs it.
        case: The arguments of its step.
    """

    name: str
    job: Job
    case: dict[str, Any]

    @property
    def key(self) -> str:
        return f"{self.name}:{json.dumps(self.case, sort_keys=True)}"


class Turn(NamedTuple):
    """The share of all cores that other programs used, and the seconds of each step and rank."""

    others: float
    seconds: list[float]


class Taken(NamedTuple):
    """The turns that count: all seconds, and the largest share that others used."""

    seconds: list[float]
    others: float


def take_turns(
    contenders: Sequence[Contender], rounds: int, steps: int, *, toy: bool = False
) -> list[Taken]:
    """The `rounds` least disturbed turns of each contender, of `steps` steps on each rank.

    With `toy` no turn is repeated.
    """
    for contender in contenders:
        contender.job.call(
            "prepare", key=contender.key, contender=contender.name, case=contender.case
        )
    turns: list[list[Turn]] = [[] for _ in contenders]
    deadline = float("inf")
    number = 0
    while number < rounds or time.monotonic() < deadline:
        order = [i for i in range(len(contenders)) if _quiet_turns(turns[i]) < rounds]
        if not order:
            break
        for index in order if number % 2 == 0 else reversed(order):
            turns[index].append(_turn(contenders[index], steps))
        number += 1
        if number == rounds:
            deadline = time.monotonic() + (0.0 if toy else _EXTRA_SECONDS)
    for contender in contenders:
        contender.job.call("forget", key=contender.key)
    return [_best(taken, rounds) for taken in turns]


def _turn(contender: Contender, steps: int) -> Turn:
    busy, own, started = busy_seconds(), contender.job.processor_seconds, time.monotonic()
    seconds = [
        second
        for of_rank in contender.job.call("run", key=contender.key, steps=steps)
        for second in of_rank
    ]
    wall = time.monotonic() - started
    busy, own = busy_seconds() - busy, contender.job.processor_seconds - own
    return Turn(max(0.0, busy - own) / (wall * (os.cpu_count() or 1)), seconds)


def _quiet_turns(turns: Sequence[Turn]) -> int:
    return sum(turn.others <= _MAX_OTHERS for turn in turns)


def _best(turns: Sequence[Turn], rounds: int) -> Taken:
    quietest = sorted(turns, key=lambda turn: turn.others)[:rounds]
    return Taken([second for turn in quietest for second in turn.seconds], quietest[-1].others)


def busy_seconds() -> float:
    """The processor time of all programs since the machine started, over all cores."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
