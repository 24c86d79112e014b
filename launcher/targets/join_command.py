"""The command line of `launcher join` for a job: what makes a container one of the job's."""

from typing import Any

from launcher.spec import JobSpec, RestartPolicy
from launcher.spec.containers import Container

_DEFAULTS = JobSpec(command=("-",))


def join_arguments(spec: JobSpec, role: str, head: str = "head") -> list[str]:
    """For a container with the role `head` or `worker`, or `indexed` where its index decides.

    `head` is the name at which the others find the first one.
    """
    words = ["join", "--name", spec.name, "--backend", spec.backend]
    if role != "worker":
        words += ["--workers", str(spec.ranks // spec.container.slots - 1)]
    if role != "head":
        words += ["--head", head]
    box, plain = spec.container, Container()
    words += _changed("slots", box.slots, plain.slots)
    words += _changed("join_port", box.port, plain.port)
    words += _changed("join_timeout", box.join_timeout, plain.join_timeout)
    words += _changed("output", box.output, plain.output)
    return [*words, *job_arguments(spec), "--", *spec.command]


def job_arguments(spec: JobSpec) -> list[str]:
    """The flags for what the job says differently from the defaults."""
    words = []
    for name in ("hang_timeout", "exit_timeout", "silence_timeout", "grace", "save_timeout"):
        words += _changed(name, getattr(spec, name), getattr(_DEFAULTS, name))
    restart, plain = spec.restart, RestartPolicy()
    words += _changed("max_restarts", restart.max_restarts, plain.max_restarts)
    words += _changed("backoff", restart.backoff, plain.backoff)
    if restart.exit_codes is not None:
        words += ["--restart-codes", ",".join(map(str, restart.exit_codes))]
    words += _changed("threads", spec.resources.threads or spec.resources.cpus, None)
    words += _changed("memory", spec.resources.memory, None)
    if spec.metrics is not None and spec.metrics.port is not None:
        # Prometheus comes from outside the container, over the job's own network.
        words += ["--metrics-port", str(spec.metrics.port), "--metrics-host", "0.0.0.0"]
    return words


def _changed(name: str, value: Any, default: Any) -> list[str]:
    if value == default:
        return []
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return ["--" + name.replace("_", "-"), shown]
