"""Contenders take turns of a few steps, and turns that other programs disturbed are taken again.

Everything that takes part is alive at once. What else runs on the machine slows whoever has the
turn, and most of all ranks that wait for each other; so of each contender the turns count in which
other programs took least.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import psutil

from benchmarks.harness.conductor import Job

# Share of all cores that others may take before a turn counts as disturbed.
_QUIET = 0.05
# How much longer than `rounds` turns of all contenders it may go on, in seconds.
_PATIENCE_SECONDS = 15.0


@dataclass(frozen=True)
class Contender:
    """Who takes turns.

    Attributes:
        name: What the service calls it.
        job: Where it runs.
        case: What it is given to do.
    """

    name: str
    job: Job
    case: dict[str, Any]

    @property
    def key(self) -> str:
        return f"{self.name}:{json.dumps(self.case, sort_keys=True)}"


class Turn(NamedTuple):
    """The share of all cores that other programs took, and the seconds of each step and rank."""

    others: float
    seconds: list[float]


class Taken(NamedTuple):
    """Of the turns that count: all seconds, and the largest share that others took."""

    seconds: list[float]
    others: float


def take_turns(
    contenders: Sequence[Contender], rounds: int, steps: int, *, toy: bool = False
) -> list[Taken]:
    """The `rounds` least disturbed turns of each contender, of `steps` steps on each rank.

    With `toy` nothing is said about speed, and no turn is taken again.
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
            deadline = time.monotonic() + (0.0 if toy else _PATIENCE_SECONDS)
    for contender in contenders:
        contender.job.call("forget", key=contender.key)
    return [_best(taken, rounds) for taken in turns]


def _turn(contender: Contender, steps: int) -> Turn:
    busy, own, started = _busy_seconds(), contender.job.processor_seconds, time.monotonic()
    seconds = [
        second
        for of_rank in contender.job.call("run", key=contender.key, steps=steps)
        for second in of_rank
    ]
    wall = time.monotonic() - started
    busy, own = _busy_seconds() - busy, contender.job.processor_seconds - own
    return Turn(max(0.0, busy - own) / (wall * (os.cpu_count() or 1)), seconds)


def _quiet_turns(turns: Sequence[Turn]) -> int:
    return sum(turn.others <= _QUIET for turn in turns)


def _best(turns: Sequence[Turn], rounds: int) -> Taken:
    kept = sorted(turns, key=lambda turn: turn.others)[:rounds]
    return Taken([second for turn in kept for second in turn.seconds], kept[-1].others)


def _busy_seconds() -> float:
    """What all programs have computed since the machine started, over all cores."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
