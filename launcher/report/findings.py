"""The findings of a report: what a run's measurements mean, in sentences."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from launcher.report.run import Run
from launcher.report.units import bytes_text, percent, seconds_text


@dataclass(frozen=True)
class Finding:
    """One finding: `headline` in a few words, `text` with the numbers."""

    severity: Literal["good", "note", "bad"]
    headline: str
    text: str


def findings(run: Run) -> list[Finding]:
    """All findings, problems first."""
    sources = (
        _end,
        _loss,
        _restarts,
        _slow_rank,
        _communication,
        _input,
        _throughput,
        _memory,
        _drift,
    )
    found = [finding for source in sources for finding in source(run)]
    return sorted(found, key=lambda finding: ("bad", "note", "good").index(finding.severity))


def _end(run: Run) -> Iterator[Finding]:
    if run.status == "failed":
        done = run.events_of("done")
        cause = (done[-1].get("cause") if done else None) or {}
        failure = run.summary.get("failure") or {}
        text = cause.get("summary") or failure.get("message") or "see journal.jsonl"
        hint = f" To fix it: {cause['hint']}." if cause.get("hint") else ""
        yield Finding("bad", "The job failed", f"{_sentence(text)}{hint}")
    elif run.status == "unfinished":
        yield Finding("note", "Not finished", "The run is in progress, or was killed.")
    elif run.status == "stopped":
        saved = run.of("checkpoint")
        text = (
            f"The state after step {saved[-1]['step']} is saved."
            if saved
            else "No checkpoint was saved."
        )
        yield Finding("note", "Stopped on request", text)


def _loss(run: Run) -> Iterator[Finding]:
    broken = [step["step"] for step in run.of("step") if step["loss"] is None]
    skipped = (run.of("end") or [{}])[-1].get("skipped_updates")
    if skipped:
        many = f"{skipped} update{'s were' if skipped > 1 else ' was'} not finite and skipped"
        first = f", the first in step {broken[0]}" if broken else ""
        yield Finding("note", "Updates were skipped", f"{many} (--on-nan skip){first}.")
    elif broken:
        yield Finding(
            "bad",
            "The loss is not finite",
            f"From step {broken[0]} on it was NaN or infinite. A lower learning rate or a longer "
            "warm-up usually fixes this.",
        )
        return
    epochs = [e for e in run.of("epoch") if e.get("validation_loss") is not None]
    if not epochs:
        return
    best = min(epochs, key=lambda epoch: epoch["validation_loss"])
    last = epochs[-1]
    accuracy = (
        f"Held-out accuracy {last['validation_accuracy']:.2%}, loss {last['validation_loss']:.4f}"
    )
    worse = last["validation_loss"] / max(best["validation_loss"], 1e-12)
    if worse > 1.15 and last["epoch"] - best["epoch"] >= 2:
        yield Finding(
            "note",
            "Held-out loss rose before the end",
            f"{accuracy}. The held-out loss was best after epoch {best['epoch'] + 1} "
            f"({best['validation_loss']:.4f}) and is {percent(worse - 1)} higher at the end.",
        )
    else:
        text = f"{accuracy} after {last['epoch'] + 1} epochs."
        yield Finding("good", "No sign of overfitting", text)


def _restarts(run: Run) -> Iterator[Finding]:
    failures = run.events_of("failed")
    restarts = run.events_of("restarting")
    for failure in failures[: len(restarts)]:
        resumed = next((s for s in run.of("start") if s["time"] > failure["time"]), None)
        back = ""
        if resumed is not None:
            lost = seconds_text(resumed["time"] - failure["time"])
            back = f" Training resumed from step {resumed['step']} {lost} later."
        yield Finding("note", "The job was restarted", f"{_sentence(failure['summary'])}{back}")


def _slow_rank(run: Run) -> Iterator[Finding]:
    own = run.own_seconds
    if len(own) < 2 or not own.any():
        return
    rank = int(own.argmax())
    others = float(np.median(np.delete(own, rank)))
    behind = own[rank] / others - 1 if others else 0.0
    numbers = (
        f"It spends {seconds_text(own[rank])} per step on compute and input, the median of the "
        f"others is {seconds_text(others)}"
    )
    if behind > 0.1:
        yield Finding(
            "bad" if behind > 0.25 else "note",
            f"Rank {rank} is {percent(behind)} slower than the median of the others",
            f"{numbers}. The others wait for it in every all-reduce.",
        )
    else:
        yield Finding("good", "The ranks are balanced", f"The slowest is rank {rank}. {numbers}.")


def _communication(run: Run) -> Iterator[Finding]:
    if run.world_size < 2 or not run.windows:
        return
    for part, kind, name in (
        ("sync_batch_norm_all_reduce", "sync_batch_norm", "SyncBN all-reduces take"),
        ("gradient_all_reduce", "gradients", "The gradient all-reduce takes"),
    ):
        share, (count, size) = run.shares[part], run.per_step(kind)
        if not count:
            continue
        each_step = np.average(
            run.parts[part], axis=0, weights=[window["steps"] for window in run.windows]
        )
        # On a rank that never waits for others, this is the time of the communication alone.
        unavoidable = float(each_step.min())
        total = seconds_text(each_step.mean())
        least = f"{seconds_text(unavoidable)} on the rank that waits least for others"
        text = f"{count:.0f} per step, {bytes_text(size)} from each rank, {total} in total" + (
            f"; {least}." if unavoidable < 0.9 * each_step.mean() else ", equal on all ranks."
        )
        yield Finding("note" if share > 0.3 else "good", f"{name} {percent(share)} of a step", text)


def _input(run: Run) -> Iterator[Finding]:
    share = run.shares["input_wait"]
    if share > 0.1:
        yield Finding(
            "note",
            f"Ranks wait for input {percent(share)} of the time",
            "Input is slower than training: prefetch more, or do less preprocessing per sample.",
        )


def _throughput(run: Run) -> Iterator[Finding]:
    rates = [sum(w["ranks"]["rows"]) / max(w["ranks"]["seconds"]) for w in run.windows]
    if len(rates) < 8:
        return
    quarter = len(rates) // 4
    early, late = np.median(rates[:quarter]), np.median(rates[-quarter:])
    if late < 0.85 * early:
        yield Finding(
            "note",
            "Throughput fell during the run",
            f"From {early:,.0f} to {late:,.0f} examples per second between the first and the last "
            "quarter of the run.",
        )


def _memory(run: Run) -> Iterator[Finding]:
    memory = [max(window["ranks"]["resident_memory"]) for window in run.windows]
    if len(memory) >= 8 and memory[-1] > 1.3 * memory[len(memory) // 4]:
        yield Finding(
            "note",
            "Memory keeps growing",
            f"The largest rank used {bytes_text(memory[len(memory) // 4])} after a quarter of the "
            f"run and {bytes_text(memory[-1])} at its end.",
        )


def _drift(run: Run) -> Iterator[Finding]:
    layers = run.of("layers")
    if len(layers) < 3 or not layers[-1]["drift"]:
        return
    name, (mean, _) = max(layers[-1]["drift"].items(), key=lambda item: item[1][0])
    if mean > 0.25:
        yield Finding(
            "note",
            "The moving statistics have not settled",
            f"In the last epoch the moving mean of {name} still changed by {mean:.2f} standard "
            "deviations, so inference uses outdated statistics. A lower --bn-momentum or more "
            "steps at a small learning rate help.",
        )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
