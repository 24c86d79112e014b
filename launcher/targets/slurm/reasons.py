"""Slurm's states and reasons in the launcher's words.

https://slurm.schedmd.com/job_state_codes.html and https://slurm.schedmd.com/job_reason_codes.html
"""

from launcher.supervision.causes import Cause, CauseClass
from launcher.targets.slurm.queue import QueuedJob

_STATES = {
    "PENDING": "queued",
    "REQUEUED": "queued",
    "REQUEUE_HOLD": "queued",
    "SPECIAL_EXIT": "queued",
    "CONFIGURING": "starting",
    "RUNNING": "running",
    "SIGNALING": "running",
    "RESIZING": "running",
    "COMPLETING": "ending",
    "STAGE_OUT": "ending",
    "SUSPENDED": "suspended",
    "STOPPED": "suspended",
    "COMPLETED": "succeeded",
    "CANCELLED": "stopped",
}
_STOPPED_CODES = {130, 143}

# Why a job waits: how the reason begins, what it means. The first match counts.
_WAITS = {
    "Resources": "waits for free nodes",
    "Priority": "waits behind jobs with a higher priority",
    "BeginTime": "waits for its start time; Slurm starts a job two minutes after a requeue",
    "DependencyNeverSatisfied": "never starts: the job it depends on has failed",
    "Dependency": "waits for the job it depends on",
    "QOS": "waits: a limit of its QOS is reached",
    "MaxQOS": "waits: a limit of its QOS is reached",
    "InvalidQOS": "never starts: its account may not use the QOS",
    "InvalidAccount": "never starts: the account is not valid",
    "Assoc": "waits: a limit of its account is reached",
    "MaxCpuPerAccount": "waits: a limit of its account is reached",
    "PartitionNodeLimit": "never starts: it requests more nodes than the partition allows",
    "PartitionTimeLimit": "never starts: it requests more time than the partition allows",
    "PartitionDown": "waits: the partition is down",
    "PartitionInactive": "waits: the partition is inactive",
    "PartitionConfig": "never starts: it requests more than the partition allows",
    "BadConstraints": "never starts: no node meets its constraints",
    "JobHeld": "is held; release it: scontrol release",
    "launch failed requeued held": "is held after a failed start; release it: scontrol release",
    "ReqNodeNotAvail": "waits: nodes are drained, down or reserved",
    "Nodes required for job are DOWN": "waits: nodes are drained, down or reserved",
    "NodeDown": "waits: nodes are down",
    "Reservation": "waits for its reservation",
    "Licenses": "waits for licenses",
    "JobArrayTaskLimit": "waits: the array's limit of running tasks is reached",
    "None": "waits for the scheduler",
}
_NEVER = "never starts"

# How a job failed for Slurm: class, words, hint.
_FAILURES: dict[str, tuple[CauseClass, str, str | None]] = {
    "TIMEOUT": (
        "error",
        "reached its time limit before its ranks had saved",
        "a longer --time; more --save-timeout to save in time; --requeue to continue afterwards",
    ),
    "DEADLINE": ("error", "reached its deadline", None),
    "NODE_FAIL": ("lost host", "was ended by the failure of a node", "--requeue continues it"),
    "BOOT_FAIL": ("lost host", "was ended by the failed start of a node", None),
    "OUT_OF_MEMORY": (
        "oom",
        "exceeded the memory of its allocation",
        "give each rank more memory (--memory), or make the batch smaller",
    ),
    "PREEMPTED": ("preempted", "was preempted", "--requeue continues it"),
    "REVOKED": ("error", "was revoked by another cluster", None),
}


def state_of(job: QueuedJob) -> str:
    """queued, blocked, starting, running, suspended, ending, succeeded, stopped or failed."""
    if job.state == "CANCELLED" and job.reason.startswith("Dependency"):
        return "failed"
    state = _STATES.get(job.state, "failed")
    if state == "queued" and waiting(job).startswith(_NEVER):
        return "blocked"
    if job.state == "FAILED" and job.exit_code in _STOPPED_CODES:
        return "stopped"
    return state


def waiting(job: QueuedJob) -> str:
    """Why a queued job waits, with Slurm's own reason."""
    words = next((text for start, text in _WAITS.items() if job.reason.startswith(start)), "waits")
    return f"{words} ({job.reason})"


def cause(job: QueuedJob) -> Cause | None:
    """Why Slurm has ended the job or never starts it; None if it did neither."""
    state = state_of(job)
    if state == "blocked":
        return Cause("bad config", waiting(job), hint=f"launcher cancel {job.id} --target slurm")
    if state != "failed":
        return None
    if job.state == "CANCELLED":
        return Cause("bad config", "was never started: the job it depends on has failed")
    if job.state in _FAILURES:
        kind, words, hint = _FAILURES[job.state]
        return Cause(kind, f"the job {words} (Slurm: {job.state})", hint=hint)
    kind = "bad config" if job.exit_code == 2 else "error"
    return Cause(kind, f"the job ended with exit code {job.exit_code} (Slurm: {job.state})")


def ended(job: QueuedJob) -> bool:
    """Whether the job has ended for good."""
    return state_of(job) in {"succeeded", "stopped", "failed"}
