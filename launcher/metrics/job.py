"""The launcher's page for a whole job: metrics from its events, and those of its ranks."""

from collections import Counter
from contextlib import suppress
from pathlib import Path

from launcher.metrics import definitions as m
from launcher.metrics.page import Page
from launcher.metrics.snapshots import JobSamples
from launcher.runs.events import Event


class JobPage:
    """An observer of a job's events that keeps the page of metrics.

    Args:
        ranks: The requested world size.
        run: The run's directory, where ranks write their snapshots.
        rank_labels: Whether to label the ranks' metrics by `rank` instead of aggregating them.
    """

    def __init__(self, ranks: int, run: Path, rank_labels: bool = False) -> None:
        self._page = Page(m.JOB_METRICS)
        self._page.registry.register(JobSamples(m.RANK_METRICS, run, rank_labels))
        self._page[m.RANKS].set(ranks)
        self._states: dict[int, str] = {}
        self._joining_since: float | None = None
        self._cause = m.RESTART_REASONS[0]
        self.registry = self._page.registry

    def text(self) -> bytes:
        """The page in Prometheus' text format."""
        return self._page.text()

    def __call__(self, event: Event) -> None:
        take = getattr(self, f"_on_{event.kind}", None)
        if take is not None:
            # A metric that cannot be updated must not end the job.
            with suppress(LookupError, TypeError, ValueError):
                take(event)

    def _on_run(self, event: Event) -> None:
        self._page[m.JOB_START].set(event.time)

    def _on_started(self, event: Event) -> None:
        self._joining_since = event.time
        self._page[m.ATTEMPT].set(event.attempt)
        self._states = dict.fromkeys(range(len(event.details["hosts"])), "starting")
        self._count_states()

    def _on_rank_up(self, event: Event) -> None:
        self._set_state(event, "running")

    def _on_beat(self, event: Event) -> None:
        self._set_state(event, event.details["phase"])
        since = self._joining_since
        if since is not None and not {"starting", "running"} & set(self._states.values()):
            self._page[m.JOB_RENDEZVOUS].set(event.time - since)
            self._joining_since = None

    def _on_rank_ended(self, event: Event) -> None:
        code = event.details["exit_code"]
        if event.details["asked"]:
            reason, state = "stopped", "stopped"
        elif code == 0:
            reason, state = "success", "done"
        else:
            reason, state = ("signal" if code > 128 else "error"), "failed"
        self._page[m.WORKER_EXITS].labels(reason).inc()
        self._set_state(event, state)

    def _on_failed(self, event: Event) -> None:
        self._cause = event.details["class"].replace(" ", "_")

    def _on_restarting(self, _: Event) -> None:
        self._page[m.RESTARTS].labels(self._cause).inc()

    def _set_state(self, event: Event, state: str) -> None:
        if event.rank is not None and self._states.get(event.rank) != state:
            self._states[event.rank] = state
            self._count_states()

    def _count_states(self) -> None:
        found = Counter(self._states.values())
        for state in m.WORKER_STATES:
            self._page[m.WORKERS].labels(state).set(found[state])
