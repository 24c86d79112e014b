"""Slurm's states and reasons in the launcher's words."""

import pytest

from launcher.targets.slurm import queue, reasons
from launcher.targets.slurm.queue import QueuedJob
from launcher.targets.slurm.status import SlurmStatus


def job(state: str, reason: str = "None", exit_code: int = 0) -> QueuedJob:
    return QueuedJob(
        id=7,
        name="digits",
        state=state,
        reason=reason,
        nodes=2,
        node_list="",
        partition="main",
        submitted="2026-01-01T00:00:00",
        restarts=0,
        exit_code=exit_code,
        comment=f"{queue.MARK}1234",
    )


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Resources", "waits for free nodes (Resources)"),
        ("Priority", "waits behind jobs with a higher priority (Priority)"),
        ("QOSMaxGRESPerUser", "waits: a limit of its QOS is reached (QOSMaxGRESPerUser)"),
        ("AssocGrpNodeLimit", "waits: a limit of its account is reached (AssocGrpNodeLimit)"),
        ("JobHeldUser", "is held; release it: scontrol release (JobHeldUser)"),
        (
            "ReqNodeNotAvail, UnavailableNodes:n1",
            "waits: nodes are drained, down or reserved (ReqNodeNotAvail, UnavailableNodes:n1)",
        ),
        ("SomethingNew", "waits (SomethingNew)"),
    ],
)
def test_why_a_job_waits(reason: str, words: str) -> None:
    queued = SlurmStatus(7, "digits", job("PENDING", reason), None)
    assert (queued.state, queued.ended, queued.exit_code) == ("queued", False, 0)
    assert queued.summary() == f"digits (Slurm job 7): queued, {words}"


@pytest.mark.parametrize("reason", ["DependencyNeverSatisfied", "BadConstraints", "InvalidQOS"])
def test_a_job_that_never_starts_has_ended_for_those_who_wait(reason: str) -> None:
    blocked = SlurmStatus(7, "digits", job("PENDING", reason), None)
    assert (blocked.state, blocked.ended, blocked.exit_code) == ("blocked", True, 2)
    assert blocked.cause is not None
    assert blocked.cause["hint"] == "launcher cancel 7 --target slurm"
    assert not reasons.ended(job("PENDING", reason)), "its name is still taken"


@pytest.mark.parametrize(
    ("queued", "state", "exit_code", "kind"),
    [
        (job("COMPLETED"), "succeeded", 0, None),
        (job("CANCELLED"), "stopped", 143, None),
        (job("FAILED", exit_code=143), "stopped", 143, None),
        (job("FAILED", exit_code=1), "failed", 1, "error"),
        (job("FAILED", exit_code=2), "failed", 2, "bad config"),
        (job("NODE_FAIL"), "failed", 1, "lost host"),
        (job("PREEMPTED"), "failed", 1, "preempted"),
        (job("TIMEOUT"), "failed", 1, "error"),
        (job("OUT_OF_MEMORY", exit_code=137), "failed", 1, "oom"),
        (job("CANCELLED", "DependencyNeverSatisfied"), "failed", 2, "bad config"),
        (job("COMPLETING"), "ending", 0, None),
    ],
    ids=lambda value: value.state if isinstance(value, QueuedJob) else "",
)
def test_how_a_job_ended(queued: QueuedJob, state: str, exit_code: int, kind: str | None) -> None:
    status = SlurmStatus(7, "digits", queued, None)
    assert (status.state, status.exit_code) == (state, exit_code)
    assert (status.cause["class"] if status.cause else None) == kind


@pytest.mark.parametrize(
    ("text", "code"),
    [("0", 0), ("36608", 143), ("9", 137), ("143:0", 143), ("0:9", 137), ("", 0)],
)
def test_exit_codes_of_all_versions_of_squeue(text: str, code: int) -> None:
    assert queue._exit_code(text) == code
